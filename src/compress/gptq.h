// GPTQ with static scales, and round-to-nearest, for every weight format.
//
// The scales of all groups are fixed before the first column is rounded and belong to the columns'
// places in the matrix, whatever the order of visiting: so nothing is permuted at run time.
// Source: Frantar et al., "GPTQ" (2023); spec/mr-gptq.md 4.3.
#pragma once
#include <cstdint>
#include <vector>

#include "compress/calibration_profile.h"
#include "compress/hessian_factor.h"
#include "quant/weight_format.h"
#include "tensor/exec.h"

namespace lathe {

inline constexpr int64_t kGptqBlock = 128;  // columns that are finished at a time

struct GptqResult {
  // tr(D H D^T) of what was chosen, without the damping: the squared output error over the
  // calibration tokens (times 2 / tokens). By row, and the sum.
  std::vector<double> row_errors;
  double output_error = 0;
};

// Fills matrix.codes; the scales are there already and are not changed. w: [rows, cols], the
// (rotated) weights. `block` columns are finished at a time, the rest of the matrix feels them
// through one matrix product; it does not change the result but for rounding in the last bit. Rows
// are independent and are shared among the threads.
// targets (optional, [rows, cols]): receives what was rounded, the weights with the errors of the
// columns before them worked in.
GptqResult gptq(QuantizedMatrix& matrix, const float* w, const HessianFactor& factor, Exec& exec,
                int64_t block = kGptqBlock, float* targets = nullptr,
                CalibrationProfile* profile = nullptr);

// Codes nearest to w under the scales of the matrix: encode_row() on all rows, in parallel.
void round_to_nearest(QuantizedMatrix& matrix, const float* w, Exec& exec);

}  // namespace lathe
