// Two passes over a row: the second hits L1 (norm_size <= 8192 is at most 32 KiB), so each byte
// comes from memory once. Four partial sums hide the latency of the multiply-add.
#pragma once
#include "kernels/rms_norm/rms_norm.h"

namespace lathe {
namespace {

template <typename S>
inline float sum_of_squares(const float* x, int64_t size) {
  constexpr int64_t kW = S::kWidth;
  typename S::F sums[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
  int64_t j = 0;
  for (; j + 4 * kW <= size; j += 4 * kW) {
#pragma GCC unroll 4  // else GCC at -O2 keeps the sums in memory
    for (int i = 0; i < 4; ++i) {
      const typename S::F v = S::load(x + j + i * kW);
      sums[i] = S::fma(v, v, sums[i]);
    }
  }
  for (; j + kW <= size; j += kW) {
    const typename S::F v = S::load(x + j);
    sums[0] = S::fma(v, v, sums[0]);
  }
  if (j < size) {
    const typename S::F v = S::load_first(x + j, size - j);
    sums[1] = S::fma(v, v, sums[1]);
  }
  return S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
}

template <typename S>
inline void rms_norm_row(const RmsNormArgs& a, const float* x, float* y) {
  constexpr int64_t kW = S::kWidth;
  const float mean_sq = sum_of_squares<S>(x, a.norm_size) / static_cast<float>(a.norm_size);
  const typename S::F scale = S::set(1.0f / __builtin_sqrtf(mean_sq + a.eps));
  const typename S::F offset = S::set(a.plus_one ? 1.0f : 0.0f);
  int64_t j = 0;
  for (; j + kW <= a.norm_size; j += kW) {
    const typename S::F gain = S::add(S::load(a.weight + j), offset);
    S::store(y + j, S::mul(S::mul(S::load(x + j), scale), gain));
  }
  if (j < a.norm_size) {
    const int64_t rest = a.norm_size - j;
    const typename S::F gain = S::add(S::load_first(a.weight + j, rest), offset);
    S::store_first(y + j, S::mul(S::mul(S::load_first(x + j, rest), scale), gain), rest);
  }
}

template <typename S>
inline void rms_norm_simd(const RmsNormArgs& a, Exec& exec) {
  // A piece for a thread is at least 16 Ki floats, some microseconds: less is not worth waking it.
  const int64_t grain = 1 + (int64_t{1} << 14) / (a.num_heads * a.norm_size);
  exec.threads.parallel_for(a.num_tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < a.num_heads; ++h) {
        rms_norm_row<S>(a, a.x + t * a.x_stride + h * a.norm_size,
                        a.y + t * a.y_stride + h * a.norm_size);
      }
    }
  });
}

}  // namespace
}  // namespace lathe
