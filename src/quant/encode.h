// From numbers to codes: nearest code under scales that are already chosen, and the plain choice of
// scales from the largest magnitude. The search for better scales is in compress/.
#pragma once
#include <cstdint>
#include <span>

#include "quant/mx_scale.h"
#include "quant/weight_format.h"

namespace lathe {

// Nearest code of r = x * global_scale / scale, ties to even, saturating. Integer elements: -8..7
// for int4 with a floating-point scale; -7..7 with an E8M0 or E4M3 scale (nvint4, mxint4);
// -127..127 for int8.
uint8_t encode_element(const WeightFormat& format, double r);

// The largest magnitude that the scale maps to: 6 for E2M1, 448 for E4M3, 127 for int8; for int4
// 7.5 (a scale of 2 a / 15, spec 1.7) or 7 with an E8M0 or E4M3 scale.
double element_limit(const WeightFormat& format);

// Stores scale[row, group] rounded to the scale type: nearest even, saturating for E4M3; for E8M0
// and kLogLinear8 the nearest code in log2. Scales are never negative. value >= 0.
void store_scale(QuantizedMatrix& matrix, int64_t row, int64_t group, double value);

// Codes of one row of w [cols] under the stored scales and global scale. A group whose scale is 0
// gets codes 0.
void encode_row(QuantizedMatrix& matrix, int64_t row, const float* w);

// NVFP4's per-tensor factor 448 * limit / amax (2688 / amax for E2M1): the block that holds the
// largest magnitude then gets the scale 448. 1 for amax = 0; always finite.
float nvfp4_global_scale(float amax, double limit = 6);

float max_abs(std::span<const float> values);

// Fills every scale of `matrix` from w [rows, cols] by the largest magnitude of each group.
//   E8M0 with E2M1: mx_rule. E8M0 otherwise: the smallest power of two that does not clip.
//   E4M3:  scale = E4M3(global_scale * amax_group / limit)
//   kLogLinear8: fits log_alpha and log_beta to the groups' own range (spec 1.8)
//   otherwise: amax / limit, rounded to the scale type.
// global_scale <= 0: chosen from w (nvfp4_global_scale), else taken as given (fused layers share
// one). Throws kInvalidArgument when w holds a NaN or an infinity.
void choose_absmax_scales(QuantizedMatrix& matrix, const float* w,
                          MxScaleRule mx_rule = MxScaleRule::kCtEven, float global_scale = 0);

// make_quantized_matrix + choose_absmax_scales + encode_row for every row: round to nearest.
QuantizedMatrix quantize_absmax(const WeightFormat& format, const float* w, int64_t rows,
                                int64_t cols, MxScaleRule mx_rule = MxScaleRule::kCtEven,
                                float global_scale = 0);

}  // namespace lathe
