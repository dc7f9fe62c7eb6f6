#include <cmath>

#include "kernels/rms_norm/rms_norm.h"

namespace lathe {

void rms_norm_ref(const RmsNormArgs& a, Exec&) {
  for (int64_t t = 0; t < a.num_tokens; ++t) {
    for (int64_t h = 0; h < a.num_heads; ++h) {
      const float* x = a.x + t * a.x_stride + h * a.norm_size;
      float* y = a.y + t * a.y_stride + h * a.norm_size;
      double sum_sq = 0;
      for (int64_t j = 0; j < a.norm_size; ++j) sum_sq += double{x[j]} * double{x[j]};
      const double scale = 1 / std::sqrt(sum_sq / static_cast<double>(a.norm_size) + double{a.eps});
      for (int64_t j = 0; j < a.norm_size; ++j) {
        const double gain = (a.plus_one ? 1.0 : 0.0) + double{a.weight[j]};
        y[j] = static_cast<float>(double{x[j]} * scale * gain);
      }
    }
  }
}

}  // namespace lathe
