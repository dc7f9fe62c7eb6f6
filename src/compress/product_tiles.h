// add_product_block() by tiles of C. Tiles packs kProductDepth rows of a and b at a time as it
// reads them, `depth` floats (rounded up to its kDepthStep) for each row and column of C, and
// multiplies packed tiles: c [kTileRows, kTileColumns] += a^T b.
#pragma once
#include "compress/product.h"

namespace lathe {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename Tiles>
void product_block(const ProductArgs& args, float* scratch) {
  constexpr int64_t kTileRows = Tiles::kTileRows;
  constexpr int64_t kTileColumns = Tiles::kTileColumns;
  static_assert(kMaxProductBlock % kTileRows == 0 && kMaxProductBlock % kTileColumns == 0 &&
                kProductDepth % Tiles::kDepthStep == 0);
  Tiles tiles;
  float* packed_a = scratch;
  float* packed_b = packed_a + kMaxProductBlock * kProductDepth;
  float* edge = packed_b + kMaxProductBlock * kProductDepth;  // a tile that reaches over the border
  for (int64_t first = 0; first < args.depth; first += kProductDepth) {
    const int64_t depth = smaller(kProductDepth, args.depth - first);
    const int64_t packed_depth =
        (depth + Tiles::kDepthStep - 1) / Tiles::kDepthStep * Tiles::kDepthStep;
    tiles.pack_a(args.a + first * args.a_stride, args.a_stride, depth, args.rows, args.subtract,
                 packed_a);
    tiles.pack_b(args.b + first * args.b_stride, args.b_stride, depth, args.columns, packed_b);
    for (int64_t j = 0; j < args.columns; j += kTileColumns) {
      const int64_t columns = smaller(kTileColumns, args.columns - j);
      for (int64_t i = 0; i < args.rows && i < j + columns + args.diagonal; i += kTileRows) {
        const int64_t rows = smaller(kTileRows, args.rows - i);
        const float* a = packed_a + i * packed_depth;
        const float* b = packed_b + j * packed_depth;
        float* c = args.c + i * args.c_stride + j;
        if (rows == kTileRows && columns == kTileColumns) {
          tiles.multiply_tile(a, b, packed_depth, c, args.c_stride);
          continue;
        }
        for (int64_t r = 0; r < kTileRows; ++r) {
          for (int64_t s = 0; s < kTileColumns; ++s) {
            edge[r * kTileColumns + s] = r < rows && s < columns ? c[r * args.c_stride + s] : 0.0f;
          }
        }
        tiles.multiply_tile(a, b, packed_depth, edge, kTileColumns);
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
