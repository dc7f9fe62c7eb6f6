// The gate of a gated MLP: y[t, j] = f(gate[t, j]) * up[t, j], with
//   silu(x)      = x / (1 + exp(-x))
//   gelu_tanh(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
// Sources: Shazeer, "GLU Variants Improve Transformer" (2020); Hendrycks and Gimpel, "GELU" (2016).
#pragma once
#include <cstdint>
#include <span>

#include "kernels/registry.h"

namespace lathe {

enum class GateFunction { kSilu, kGeluTanh };

struct GatedActivationArgs {
  const float* gate = nullptr;  // [num_rows, size], row stride gate_stride
  const float* up = nullptr;    // [num_rows, size], row stride up_stride
  float* y = nullptr;           // [num_rows, size], row stride y_stride; may be gate or up itself
  int64_t num_rows = 0;
  int64_t size = 0;
  int64_t gate_stride = 0;  // >= size; 0 means size. Gate and up side by side in one [num_rows,
  int64_t up_stride = 0;    // 2 * size] buffer: both strides are 2 * size
  int64_t y_stride = 0;
  GateFunction function = GateFunction::kSilu;
};

// Does not allocate. Throws kInvalidArgument on a bad size or stride.
void gated_activation(const GatedActivationArgs& args, Exec& exec);
std::span<const Kernel<GatedActivationArgs>> gated_activation_kernels();

void gated_activation_ref(const GatedActivationArgs& args, Exec& exec);
void gated_activation_avx2(const GatedActivationArgs& args, Exec& exec);
void gated_activation_avx512(const GatedActivationArgs& args, Exec& exec);

}  // namespace lathe
