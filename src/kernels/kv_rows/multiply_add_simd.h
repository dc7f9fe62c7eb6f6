// multiply_add_rows() in vectors (V is Avx2 or Avx512): a register-blocked product of kMaxTile rows
// and two vectors of outputs. y is loaded, one fused multiply-add per column of x follows, y is
// stored: the chain of the reference, whatever the blocking.
//
//   packed weight panel [k][32 outputs]: two vectors of AVX-512, or two halves of two AVX2 vectors
//
// A panel (k <= 512: 64 KiB) stays in the L1 or L2 cache for all rows of a run.
#pragma once
#include "kernels/kv_rows/kv_rows.h"

namespace lathe {
namespace {

template <typename V, int kRows>
void multiply_add_tile(const float* x, int64_t x_stride, const float* w, int64_t k, float* y,
                       int64_t y_stride) {
  using F = typename V::F;
  F sums[kRows][2];
#pragma GCC unroll 12
  for (int t = 0; t < kRows; ++t) {
    sums[t][0] = V::load(y + t * y_stride);
    sums[t][1] = V::load(y + t * y_stride + V::kWidth);
  }
  for (int64_t i = 0; i < k; ++i) {
    const F w0 = V::load(w + i * kMultiplyAddPanel);
    const F w1 = V::load(w + i * kMultiplyAddPanel + V::kWidth);
#pragma GCC unroll 12
    for (int t = 0; t < kRows; ++t) {
      const F value = V::set(x[t * x_stride + i]);
      sums[t][0] = V::fma(value, w0, sums[t][0]);
      sums[t][1] = V::fma(value, w1, sums[t][1]);
    }
  }
#pragma GCC unroll 12
  for (int t = 0; t < kRows; ++t) {
    V::store(y + t * y_stride, sums[t][0]);
    V::store(y + t * y_stride + V::kWidth, sums[t][1]);
  }
}

using MultiplyAddTile = void (*)(const float* x, int64_t x_stride, const float* w, int64_t k,
                                 float* y, int64_t y_stride);

template <typename V>
MultiplyAddTile choose_multiply_add_tile(int64_t num_rows) {
  static_assert(V::kMaxTile == 6 || V::kMaxTile == 12);
  if constexpr (V::kMaxTile == 12) {
    switch (num_rows) {
      case 7:
        return multiply_add_tile<V, 7>;
      case 8:
        return multiply_add_tile<V, 8>;
      case 9:
        return multiply_add_tile<V, 9>;
      case 10:
        return multiply_add_tile<V, 10>;
      case 11:
        return multiply_add_tile<V, 11>;
      case 12:
        return multiply_add_tile<V, 12>;
      default:
        break;
    }
  }
  switch (num_rows) {
    case 1:
      return multiply_add_tile<V, 1>;
    case 2:
      return multiply_add_tile<V, 2>;
    case 3:
      return multiply_add_tile<V, 3>;
    case 4:
      return multiply_add_tile<V, 4>;
    case 5:
      return multiply_add_tile<V, 5>;
    default:
      return multiply_add_tile<V, 6>;
  }
}

// One panel times one tile of rows; the last panel's missing columns through a copy.
template <typename V>
void multiply_add_panel(const MultiplyAddRowsArgs& a, const float* x, const float* w, int64_t first,
                        int64_t num_rows, float* y) {
  const MultiplyAddTile tile = choose_multiply_add_tile<V>(num_rows);
  const int64_t count = a.n - first;
  if (count >= kMultiplyAddPanel) {
    for (int64_t j = 0; j < kMultiplyAddPanel; j += 2 * V::kWidth) {
      tile(x, a.x_stride, w + j, a.k, y + j, a.y_stride);
    }
    return;
  }
  float copy[V::kMaxTile * kMultiplyAddPanel];
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t j = 0; j < kMultiplyAddPanel; ++j) {
      copy[t * kMultiplyAddPanel + j] = j < count ? y[t * a.y_stride + j] : 0;
    }
  }
  for (int64_t j = 0; j < count; j += 2 * V::kWidth) {
    tile(x, a.x_stride, w + j, a.k, copy + j, kMultiplyAddPanel);
  }
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t j = 0; j < count; ++j) y[t * a.y_stride + j] = copy[t * kMultiplyAddPanel + j];
  }
}

template <typename V>
void multiply_add_simd(const MultiplyAddRowsArgs& a) {
  for (int64_t first = 0; first < a.n; first += kMultiplyAddPanel) {
    const float* w = a.w + first * a.k;
    // Tiles of nearly equal size: 13 rows are 7 + 6, not 12 + 1.
    int64_t tiles = (a.num_rows + V::kMaxTile - 1) / V::kMaxTile;
    for (int64_t row = 0; row < a.num_rows; --tiles) {
      const int64_t rows = (a.num_rows - row + tiles - 1) / tiles;
      multiply_add_panel<V>(a, a.x + row * a.x_stride, w, first, rows,
                            a.y + row * a.y_stride + first);
      row += rows;
    }
  }
}

}  // namespace
}  // namespace lathe
