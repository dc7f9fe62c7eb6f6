// add_product_block() on vectors. kProductDepth rows of a and b at a time are packed as the product
// reads them,
//   a  [rows of C / kTileRows][depth][kTileRows]     b  [columns of C / kTileColumns][depth][...]
// and tiles of C, kTileRows x two vectors, stay in registers while the depth walks past: with AVX2
// 12 sums, 2 vectors of b and a broadcast of 16 registers, with AVX-512 24 sums of 32.
#pragma once
#include "compress/product_tiles.h"

namespace lathe {
namespace {

// Columns of x [depth, columns] as panels of kWidth columns, the last one filled up with zeros.
template <typename V, int64_t kWidth>
void pack(const float* x, int64_t stride, int64_t depth, int64_t columns, bool negate, float* out) {
  const auto sign = V::set(negate ? -1.0f : 1.0f);
  for (int64_t first = 0; first < columns; first += kWidth) {
    const int64_t count = smaller(kWidth, columns - first);
    const float* from = x + first;
    for (int64_t t = 0; t < depth; ++t, out += kWidth, from += stride) {
      if (count < kWidth) {
        for (int64_t j = 0; j < kWidth; ++j) {
          out[j] = j < count ? (negate ? -from[j] : from[j]) : 0.0f;
        }
        continue;
      }
      constexpr int64_t kWhole = kWidth / V::kWidth * V::kWidth;
      for (int64_t j = 0; j < kWhole; j += V::kWidth) {
        V::store(out + j, V::mul(V::load(from + j), sign));
      }
      for (int64_t j = kWhole; j < kWidth; ++j) out[j] = negate ? -from[j] : from[j];
    }
  }
}

// c [kTileRows, two vectors] += a^T b.
template <typename V, int kTileRows>
inline void multiply(const float* a, const float* b, int64_t depth, float* c, int64_t c_stride) {
  using F = typename V::F;
  F sums[kTileRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    sums[r][0] = V::load(c + r * c_stride);
    sums[r][1] = V::load(c + r * c_stride + V::kWidth);
  }
  for (int64_t t = 0; t < depth; ++t, a += kTileRows, b += 2 * V::kWidth) {
    const F b0 = V::load(b);
    const F b1 = V::load(b + V::kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      const F value = V::set(a[r]);
      sums[r][0] = V::fma(value, b0, sums[r][0]);
      sums[r][1] = V::fma(value, b1, sums[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    V::store(c + r * c_stride, sums[r][0]);
    V::store(c + r * c_stride + V::kWidth, sums[r][1]);
  }
}

template <typename V, int kRows>
struct VectorTiles {
  static constexpr int64_t kTileRows = kRows;
  static constexpr int64_t kTileColumns = 2 * V::kWidth;
  static constexpr int64_t kDepthStep = 1;
  void pack_a(const float* x, int64_t stride, int64_t depth, int64_t rows, bool negate,
              float* out) {
    pack<V, kTileRows>(x, stride, depth, rows, negate, out);
  }
  void pack_b(const float* x, int64_t stride, int64_t depth, int64_t columns, float* out) {
    pack<V, kTileColumns>(x, stride, depth, columns, false, out);
  }
  void multiply_tile(const float* a, const float* b, int64_t depth, float* c, int64_t c_stride) {
    multiply<V, kRows>(a, b, depth, c, c_stride);
  }
};

}  // namespace
}  // namespace lathe
