#include "kernels/attention/attention_traits_avx512.h"
#include "kernels/simd/amx_tiles.h"

namespace lathe {
namespace {

// Products with whole tiles of keys or values in bf16; the other factor, fp32, is two numbers of
// bf16 (amx_tiles.h). A row's bits do not depend on the others, and which products come here
// depends on what the row sees alone.
class TileMatrix {
 public:
  bool multiply(const Product& p) {
    if (p.begin != 0 || p.end % kTileColumns != 0 || p.end > kMaxColumns ||
        p.num_columns % (2 * kTileRows) != 0) {
      return false;
    }
    for (int64_t row = 0; row < p.num_rows; row += 2 * kTileRows) {
      const int64_t rows = p.num_rows - row < 2 * kTileRows ? p.num_rows - row : 2 * kTileRows;
      const int64_t upper = rows < kTileRows ? rows : kTileRows;
      tiles_.set_rows(upper, rows - upper);
      split(p, row, upper, halves_);
      if (rows > upper) split(p, row + upper, rows - upper, halves_ + kHalf);
      for (int64_t column = 0; column < p.num_columns; column += 2 * kTileRows) {
        const int64_t ahead = row == 0 ? p.ahead : 0;
        if (rows > upper) {
          multiply_tiles<true>(p, row, column, ahead);
        } else {
          multiply_tiles<false>(p, row, column, ahead);
        }
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kMaxColumns = 256;
  static constexpr int64_t kHalf = 2 * kTileRows * kMaxColumns;

  // [columns / 32][high, low][16][32]
  static void split(const Product& p, int64_t row, int64_t rows, uint16_t* out) {
    for (int64_t k = 0; k < p.end; k += kTileColumns, out += 2 * kTileElements) {
      for (int64_t r = 0; r < rows; ++r) {
        const float* from = p.a + (row + r) * p.a_stride + k;
        split_bf16<2>(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16), out + r * kTileColumns,
                      kTileElements);
      }
    }
  }

  template <bool kTwo>
  void multiply_tiles(const Product& p, int64_t row, int64_t column, int64_t ahead) {
    float* upper = p.c + row * p.c_stride + column;
    float* lower = upper + kTileRows * p.c_stride;
    const int64_t c_bytes = p.c_stride * 4;
    finish_stores();
    _tile_loadd(0, upper, c_bytes);
    _tile_loadd(1, upper + 16, c_bytes);
    if constexpr (kTwo) {
      _tile_loadd(2, lower, c_bytes);
      _tile_loadd(3, lower + 16, c_bytes);
    }
    const char* b = static_cast<const char*>(p.b) + column * 4;
    const int64_t b_bytes = p.b_stride * 4;
    const uint16_t* a = halves_;
    for (int64_t k = 0; k < p.end; k += kTileColumns, b += kTileRows * b_bytes) {
      if (ahead != 0) {
        for (int64_t i = 0; i < kTileRows; ++i) prefetch(b + i * b_bytes + ahead, 128);
      }
      _tile_loadd(6, b, b_bytes);
      _tile_loadd(7, b + 64, b_bytes);
#pragma GCC unroll 2
      for (int term = 0; term < 2; ++term, a += kTileElements) {
        _tile_loadd(4, a, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kTwo) {
          _tile_loadd(5, a + kHalf, 64);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    _tile_stored(0, upper, c_bytes);
    _tile_stored(1, upper + 16, c_bytes);
    if constexpr (kTwo) {
      _tile_stored(2, lower, c_bytes);
      _tile_stored(3, lower + 16, c_bytes);
    }
  }

  TileBlock tiles_;
  alignas(64) uint16_t halves_[2 * kHalf];
};

struct Traits : TraitsAvx512 {
  using Matrix = TileMatrix;
};

}  // namespace

AttentionSteps attention_steps_amx() { return {partial_simd<Traits>, merge_simd<Avx2>}; }

}  // namespace lathe
