// add_product_block() on vectors. kProductDepth rows of a and b at a time are packed as the product
// reads them,
//   a  [rows of C / kTileRows][depth][kTileRows]     b  [columns of C / kTileColumns][depth][...]
// and tiles of C, kTileRows x two vectors, stay in registers while the depth walks past: with AVX2
// 12 sums, 2 vectors of b and a broadcast of 16 registers, with AVX-512 24 sums of 32.
#pragma once
#include "compress/product.h"

namespace lathe {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

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

template <typename V, int kTileRows>
void product_block(const ProductArgs& args, float* scratch) {
  constexpr int64_t kTileColumns = 2 * V::kWidth;
  static_assert(kMaxProductBlock % kTileRows == 0 && kMaxProductBlock % kTileColumns == 0);
  float* packed_a = scratch;
  float* packed_b = packed_a + kMaxProductBlock * kProductDepth;
  float* edge = packed_b + kMaxProductBlock * kProductDepth;  // a tile that reaches over the border
  for (int64_t first = 0; first < args.depth; first += kProductDepth) {
    const int64_t depth = smaller(kProductDepth, args.depth - first);
    pack<V, kTileRows>(args.a + first * args.a_stride, args.a_stride, depth, args.rows,
                       args.subtract, packed_a);
    pack<V, kTileColumns>(args.b + first * args.b_stride, args.b_stride, depth, args.columns, false,
                          packed_b);
    for (int64_t j = 0; j < args.columns; j += kTileColumns) {
      const int64_t columns = smaller(kTileColumns, args.columns - j);
      for (int64_t i = 0; i < args.rows && i < j + columns + args.diagonal; i += kTileRows) {
        const int64_t rows = smaller(kTileRows, args.rows - i);
        const float* a = packed_a + i * depth;
        const float* b = packed_b + j * depth;
        float* c = args.c + i * args.c_stride + j;
        if (rows == kTileRows && columns == kTileColumns) {
          multiply<V, kTileRows>(a, b, depth, c, args.c_stride);
          continue;
        }
        for (int64_t r = 0; r < kTileRows; ++r) {
          for (int64_t s = 0; s < kTileColumns; ++s) {
            edge[r * kTileColumns + s] = r < rows && s < columns ? c[r * args.c_stride + s] : 0.0f;
          }
        }
        multiply<V, kTileRows>(a, b, depth, edge, kTileColumns);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t s = 0; s < columns; ++s) {
            c[r * args.c_stride + s] = edge[r * kTileColumns + s];
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace lathe
