// What a quantized weight matrix is, bit for bit: the contract between checkpoints (formats/),
// calibration (compress/) and the packed layouts of the kernels (kernels/linear). A weight is
//   w[n, k] = element(code[n, k]) * scale[n, k / group_size] / global_scale
// and y = x W^T.  Source: spec/mr-gptq.md sections 1 and 8.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "tensor/buffer.h"

namespace lathe {

enum class ElementType {
  kE2M1,  // 4 bits: 0, .5, 1, 1.5, 2, 3, 4, 6 and sign
  kInt4,  // 4 bits, two's complement in the nibble: -8..7
  kInt8,  // two's complement
  kE4M3,  // fp8, "fn" variant: no infinity, 0x7f and 0xff are NaN
};
int element_bits(ElementType element);  // 4 or 8

enum class ScaleType {
  kE8M0,  // one byte, 2^(b - 127)
  kE4M3,  // one byte
  kBF16,
  kF16,
  kF32,
  kLogLinear8,  // MXFP4 with a fitted grid: one byte q, 2^(log_alpha * q + log_beta) (spec 1.8)
};
int64_t scale_bytes(ScaleType scale);

struct WeightFormat {
  ElementType element = ElementType::kE2M1;
  ScaleType scale = ScaleType::kE8M0;
  int64_t group_size = 32;  // columns that share a scale; 0: the whole row

  bool operator==(const WeightFormat&) const = default;
};

// The formats by name: mxfp4, mxfp4-fitted, nvfp4, int4 (group 32, bf16 scale), int8 (per row,
// f32), fp8 (E4M3, per row, f32), mxfp8, and the two that the paper compares with, nvint4 (group
// 16, E4M3 scale, -7..7) and mxint4 (group 32, E8M0 scale, -7..7). Throws kInvalidArgument listing
// them for anything else.
WeightFormat weight_format_from_name(std::string_view name);
std::string weight_format_name(const WeightFormat& format);
double bits_per_weight(const WeightFormat& format);  // 4.25 for MXFP4

struct QuantizedMatrix {
  WeightFormat format;
  int64_t rows = 0;        // N, output features
  int64_t cols = 0;        // K, input features; a multiple of group_size
  Buffer codes;            // 4 bits: [N, K/2], even column in the low nibble; 8 bits: [N, K]
  Buffer scales;           // [N, K/group_size], row-major, in ScaleType
  float global_scale = 1;  // a divisor at decode (NVFP4: 2688 / amax; MXFP4 with the 4/3 rule: 3)
  float log_alpha = 0;     // kLogLinear8 only
  float log_beta = 0;

  int64_t num_groups() const { return format.group_size == 0 ? 1 : cols / format.group_size; }
  int64_t code_row_bytes() const { return cols * element_bits(format.element) / 8; }
};

// Allocates codes and scales (zeroed) for [rows, cols]. Throws kInvalidArgument when cols is not a
// multiple of the group size (or odd, for 4-bit elements).
QuantizedMatrix make_quantized_matrix(const WeightFormat& format, int64_t rows, int64_t cols);

// The number that one code of an element type stands for, before any scale.
float element_value(ElementType element, uint8_t code);
// scale[n, g] as stored, decoded (exact), without the global scale.
double stored_scale(const QuantizedMatrix& matrix, int64_t row, int64_t group);
// The effective scale scale[n, g] / global_scale as a float, evaluated in double and rounded once.
float effective_scale(const QuantizedMatrix& matrix, int64_t row, int64_t group);

// Decodes rows [row_begin, row_end) into out [row_end - row_begin, cols], fp32: element * scale /
// global_scale in double, rounded once. The definition that every kernel is tested against.
void dequantize_rows(const QuantizedMatrix& matrix, int64_t row_begin, int64_t row_end, float* out);

// How a linear layer's input is quantized at run time.
enum class ActivationFormat {
  kNone,   // floating point
  kInt8,   // int8, absmax / 127 per group of 32 (or 16, where the weight's group is 16)
  kMxfp4,  // E2M1, group 32, E8M0 scale by the compressed-tensors rule (spec 1.5 ct_even)
  kNvfp4,  // E2M1, group 16, E4M3 scale, static global scale from calibration
  kFp8,    // E4M3 per token, absmax / 448
  kMxfp8,  // E4M3, group 32, E8M0 scale
};
ActivationFormat activation_format_from_name(
    std::string_view name);  // none int8 mxfp4 nvfp4 fp8 mxfp8
std::string_view activation_format_name(ActivationFormat format);

// Everything about one linear layer beyond its numbers.
struct LinearScheme {
  ActivationFormat activations = ActivationFormat::kNone;
  float input_global_scale =
      0;                 // kNvfp4: 2688 / amax of the calibrated (rotated) input; 0: dynamic
  int64_t hadamard = 0;  // block size of the rotation merged into the weight; the input
                         // needs the same one online. 0: none
};

}  // namespace lathe
