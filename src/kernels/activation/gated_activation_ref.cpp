#include <cmath>

#include "kernels/activation/gated_activation.h"

namespace lathe {
namespace {

double silu(double x) { return x / (1 + std::exp(-x)); }

double gelu_tanh(double x) {
  constexpr double kSqrt2OverPi = 0.79788456080286535588;
  return 0.5 * x * (1 + std::tanh(kSqrt2OverPi * (x + 0.044715 * x * x * x)));
}

}  // namespace

void gated_activation_ref(const GatedActivationArgs& a, Exec&) {
  for (int64_t row = 0; row < a.num_rows; ++row) {
    const float* gate = a.gate + row * a.gate_stride;
    const float* up = a.up + row * a.up_stride;
    float* y = a.y + row * a.y_stride;
    for (int64_t j = 0; j < a.size; ++j) {
      const double x = double{gate[j]};
      const double gated = a.function == GateFunction::kSilu ? silu(x) : gelu_tanh(x);
      y[j] = static_cast<float>(gated * double{up[j]});
    }
  }
}

}  // namespace lathe
