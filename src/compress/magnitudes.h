// Largest and summed magnitudes of the columns of calibration inputs.
#pragma once
#include <cstdint>

namespace lathe {

inline constexpr int64_t kMagnitudeColumns = 16;

// Of the first columns of x [rows, stride]: amax[j] = max(amax[j], |x|), where a NaN is passed
// over, and sum[j] += |x|, in the order of the rows.
void add_magnitudes_ref(const float* x, int64_t stride, int64_t rows, int64_t columns, float* amax,
                        double* sum);
// Of 16 columns.
void add_magnitudes_avx2(const float* x, int64_t stride, int64_t rows, float* amax, double* sum);

}  // namespace lathe
