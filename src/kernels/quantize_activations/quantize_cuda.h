// Inputs of linear layers on the GPU, made in one pass over memory by the operation in front of
// them: RMSNorm (and the residual addition before it), the gate of an MLP, or nothing. Each row is
// rotated by a block Hadamard and quantized by the rules of quantize_activations.h, bit for bit in
// fp32 where the input of the quantizer is the same.
//
// How the quantized row travels, by element and format:
//   kF32   the quantized numbers; every format
//   kBF16  none: x rounded. mxfp4: the numbers, exact. mxfp8: the numbers, exact above 2^-133.
//          nvfp4, fp8: exact as E2M1 * block scale, or E4M3, where row_scales takes the factor of
//          the row (1 / global scale; a / 448); without row_scales the numbers, rounded.
//          int8 (group 32): the numbers, rounded
//   kE4M3  fp8: codes, the factor a / 448 in row_scales. mxfp4: E2M1 * 2^s as E4M3 codes, with the
//          factor 2^(b - 133) of the row in row_scales, b the largest scale byte of the row. Exact
//          for groups whose byte is at least b - 14; what is smaller is rounded to E4M3's
//          multiples of 2^-9 (of the row's largest number: 2^-17). Nothing else.
// Where row_scales is given it is always written; ones where there is no factor.
// A group (fp8: a row) that holds a NaN or an infinity comes out as NaNs.
//
// Rows are independent: a row has the same bits alone and in any batch. Only enqueues work on the
// stream. All functions throw kInvalidArgument on sizes that do not fit: k a multiple of 8, of the
// Hadamard block and of the group, at most kMaxQuantizeCols; rows 16-byte aligned. m = 0 is a
// no-op.
#pragma once
#include <cstdint>

#include "kernels/activation/gated_activation.h"
#include "kernels/linear/linear_cuda.h"

namespace lathe {

inline constexpr int64_t kMaxQuantizeCols = 32768;  // eight columns x 8 x 512 threads

struct QuantizedTarget {
  ActivationFormat format = ActivationFormat::kNone;
  int64_t hadamard = 0;                      // 0, 16, 32, 64, 128
  CudaElement element = CudaElement::kBF16;  // of data, see above
  void* data = nullptr;                      // [m, k] dense
  float* row_scales = nullptr;               // [m] or null; needed where element is kE4M3
  float global_scale = 0;                    // nvfp4; 0: 2688 / a of the row
};

// hidden += branch, or += rms_norm(branch) * branch_gain (Gemma);
// target = quantize(rotate(rms_norm(hidden) * gain)).
// The norms as in rms_norm.h, sums in fp32.
struct AddNormQuantizeArgs {
  float* hidden = nullptr;  // [m, k]; written only where branch is given
  int64_t m = 0;
  int64_t k = 0;
  const void* branch = nullptr;                     // [m, k] or null
  CudaElement branch_element = CudaElement::kBF16;  // kF32 or kBF16
  const float* branch_gain = nullptr;               // [k], or null: added as it is
  const float* gain = nullptr;                      // [k], or null: no norm
  float eps = 0;
  const int32_t* rows = nullptr;  // [m]: row i of the target is made from hidden's row rows[i];
                                  // null: i. Not together with branch
  QuantizedTarget target = {};    // data null: only the addition
};
void add_norm_quantize_cuda(const AddNormQuantizeArgs& args, CudaStream stream);

// target = quantize(rotate(f(gate) * up)); gate is the first half of each row, up the second.
struct GatedQuantizeArgs {
  const void* gate_up = nullptr;             // [m, 2 * size], row stride `stride` (elements)
  CudaElement element = CudaElement::kBF16;  // kF32 or kBF16
  int64_t m = 0;
  int64_t size = 0;    // columns of the target
  int64_t stride = 0;  // 0: 2 * size
  GateFunction function = GateFunction::kSilu;
  QuantizedTarget target = {};
};
void gated_quantize_cuda(const GatedQuantizeArgs& args, CudaStream stream);

// target = quantize(rotate(x)).
struct QuantizeCudaArgs {
  const void* x = nullptr;                   // [m, k], row stride `stride` (elements)
  CudaElement element = CudaElement::kBF16;  // kF32 or kBF16
  int64_t m = 0;
  int64_t k = 0;
  int64_t stride = 0;  // 0: k
  QuantizedTarget target = {};
};
void quantize_cuda(const QuantizeCudaArgs& args, CudaStream stream);

}  // namespace lathe
