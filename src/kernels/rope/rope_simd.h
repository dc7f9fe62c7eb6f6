// The two halves of a head are rotated together, a vector of pairs at a time.
#pragma once
#include "kernels/rope/rope.h"

namespace lathe {
namespace {

template <typename S>
inline void rotate_head(const float* x, float* y, const float* cos, const float* sin,
                        int64_t head_dim, int64_t rotary_dim) {
  const int64_t half = rotary_dim / 2;
  int64_t j = 0;
  for (; j + S::kWidth <= half; j += S::kWidth) {
    const typename S::F first = S::load(x + j);
    const typename S::F second = S::load(x + half + j);
    const typename S::F c = S::load(cos + j);
    const typename S::F s = S::load(sin + j);
    S::store(y + j, S::fmsub(first, c, S::mul(second, s)));
    S::store(y + half + j, S::fma(second, c, S::mul(first, s)));
  }
  if (j < half) {
    const int64_t rest = half - j;
    const typename S::F first = S::load_first(x + j, rest);
    const typename S::F second = S::load_first(x + half + j, rest);
    const typename S::F c = S::load_first(cos + j, rest);
    const typename S::F s = S::load_first(sin + j, rest);
    S::store_first(y + j, S::fmsub(first, c, S::mul(second, s)), rest);
    S::store_first(y + half + j, S::fma(second, c, S::mul(first, s)), rest);
  }
  if (x != y) {
    for (int64_t i = rotary_dim; i < head_dim; ++i) y[i] = x[i];
  }
}

template <typename S>
inline void rope_simd(const RopeArgs& a, Exec& exec) {
  // At least 16 Ki floats for a thread; see rms_norm_simd.h.
  const int64_t grain = 1 + (int64_t{1} << 14) / (a.num_heads * a.head_dim);
  exec.threads.parallel_for(a.num_rows, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t table_row = a.positions[row] * (a.rotary_dim / 2);
      for (int64_t h = 0; h < a.num_heads; ++h) {
        rotate_head<S>(a.x + row * a.x_stride + h * a.head_dim,
                       a.y + row * a.y_stride + h * a.head_dim, a.cos + table_row,
                       a.sin + table_row, a.head_dim, a.rotary_dim);
      }
    }
  });
}

}  // namespace
}  // namespace lathe
