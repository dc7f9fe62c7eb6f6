#include "kernels/rope/rope.h"

namespace lathe {

void rope_ref(const RopeArgs& a, Exec&) {
  const int64_t half = a.rotary_dim / 2;
  for (int64_t row = 0; row < a.num_rows; ++row) {
    const float* cos = a.cos + a.positions[row] * half;
    const float* sin = a.sin + a.positions[row] * half;
    for (int64_t h = 0; h < a.num_heads; ++h) {
      const float* x = a.x + row * a.x_stride + h * a.head_dim;
      float* y = a.y + row * a.y_stride + h * a.head_dim;
      for (int64_t j = 0; j < half; ++j) {
        const double first = double{x[j]};
        const double second = double{x[j + half]};
        y[j] = static_cast<float>(first * double{cos[j]} - second * double{sin[j]});
        y[j + half] = static_cast<float>(second * double{cos[j]} + first * double{sin[j]});
      }
      for (int64_t j = a.rotary_dim; j < a.head_dim; ++j) y[j] = x[j];
    }
  }
}

}  // namespace lathe
