// Rows of x, rotated by a block Hadamard and quantized to the grid of an activation format, in one
// pass. Two kinds of output:
//   values  the quantized numbers as floats, for floating-point kernels
//   codes   integers with a float scale per group, for the integer kernels of linear/
//
// With a = max |x| of the row or group and everything in fp32:
//   int8   scale = a / 127, code = rint(x * (127 / a)); groups with a < 2^-100 become zero
//   mxfp4  scale = 2^(b - 127), byte b by the compressed-tensors rule; code = 2 * E2M1(x / scale)
//   nvfp4  block = E4M3(global_scale * (a / 6)), scale = block / global_scale,
//          code = 2 * E2M1(x / scale); global_scale 0 stands for 2688 / a of the row, so that a row
//          does not depend on its batch
//   fp8    scale = a / 448 of the row, value = E4M3(x / scale) * scale
//   mxfp8  scale = 2^(floor(log2 a) - 8), one more when the significand of a rounds up to 2 in
//          E4M3's three bits; value = E4M3(x / scale) * scale
// A group that holds a NaN or an infinity gets the scale NaN (values: NaN), so it shows in y.
// Source: spec/mr-gptq.md sections 1.5, 1.6, 3.1.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/registry.h"
#include "quant/weight_format.h"

namespace lathe {

// Integer kernels multiply a 4-bit weight code w as the unsigned byte w + kCodeOffset (E2M1
// doubled: 0..24, INT4: 4..19). What this adds to a dot product is taken out again by the
// correction of the group of x: two int16, the sums of -kCodeOffset * code over the columns 0 and 1
// (mod 4) and over the columns 2 and 3, the first in the low half. At most 12 * 16 * 127 = 24384 in
// magnitude.
inline constexpr int kCodeOffset = 12;

struct QuantizeActivationsArgs {
  const float* x = nullptr;                           // [m, k], row-major
  int64_t m = 0;                                      // 0 is a no-op
  int64_t k = 0;                                      // a multiple of hadamard and of the groups
  int64_t hadamard = 0;                               // 0, 16, 32, 64, 128
  ActivationFormat format = ActivationFormat::kNone;  // codes: int8, mxfp4 or nvfp4
  float global_scale = 0;                             // nvfp4
  int64_t group = 32;       // columns of an int8 group and of an output scale: 16 or 32, a divisor
                            // of the format's own group
  float* values = nullptr;  // [m, k], or null
  // Or integers, in blocks of rows as in LinearInput.
  int8_t* codes = nullptr;
  float* scales = nullptr;
  int32_t* corrections = nullptr;
  int64_t block_rows = 1;  // >= 1
};

// Columns that share a scale in the format itself: 32, 16 (nvfp4), `int8_group` for int8; 0 for a
// whole row (fp8) or none.
int64_t activation_group(ActivationFormat format, int64_t int8_group);

// Runs the best kernel. Parallel over rows. Throws kInvalidArgument on sizes that do not fit.
void quantize_activations(const QuantizeActivationsArgs& args, Exec& exec);
std::span<const Kernel<QuantizeActivationsArgs>> quantize_activations_kernels();

// Where row's group is in blocks of rows (see LinearInput).
inline int64_t blocked_index(int64_t row, int64_t group_idx, int64_t num_groups, int64_t m,
                             int64_t block_rows) {
  const int64_t begin = row / block_rows * block_rows;
  const int64_t rows = m - begin < block_rows ? m - begin : block_rows;
  return begin * num_groups + group_idx * rows + row - begin;
}

}  // namespace lathe
