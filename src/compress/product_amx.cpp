// add_product_block() with AMX. A factor is two numbers of bf16, high + low (amx_tiles.h), and
//   a b = a_high b_high + a_low b_high + a_high b_low,
// all added to the same sums. Packed, for 32 rows of a and b at a time (filled up with zeros),
//   a  [rows of C / 16][depth / 32][high, low][16][32]
//   b  [columns of C / 16][depth / 32][high, low][16 pairs][16][2]
#include "compress/product_tiles.h"
#include "kernels/simd/amx_tiles.h"

namespace lathe {
namespace {

constexpr int64_t kTermElements = 2 * kTileElements;

// 16 x 16 numbers of 32 bits.
void transpose(__m512i (&rows)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Now 4 x 4 blocks are transposed inside; what is left is to transpose the blocks.
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) rows[i] = t[i];
}

// x [depth, columns], row by row: its columns lie far apart in memory.
template <bool kTransposed>
void pack(const float* x, int64_t stride, int64_t depth, int64_t columns, float sign,
          uint16_t* out) {
  const int64_t steps = (depth + kTileColumns - 1) / kTileColumns;
  const __m512 signs = _mm512_set1_ps(sign);
  for (int64_t t = 0; t < steps * kTileColumns; t += 2) {
    uint16_t* to = out + t / kTileColumns * kTermElements + t % kTileColumns * kTileRows;
    for (int64_t col = 0; col < columns; col += 16, to += steps * kTermElements) {
      const auto mask = static_cast<__mmask16>((1u << smaller(16, columns - col)) - 1);
      const auto load = [&](int64_t row) {
        return row < depth
                   ? _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + row * stride + col), signs)
                   : _mm512_setzero_ps();
      };
      const Bf16Terms even = split_terms(load(t));
      const Bf16Terms odd = split_terms(load(t + 1));
      _mm512_storeu_si512(to, pair_upper(even.high, odd.high));
      _mm512_storeu_si512(to + kTileElements, pair_upper(even.low, odd.low));
    }
  }
  if constexpr (!kTransposed) return;
  const int64_t num_tiles = (columns + 15) / 16 * steps * 2;
  for (int64_t tile = 0; tile < num_tiles; ++tile, out += kTileElements) {
    __m512i rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(out + i * 32);
    transpose(rows);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * 32, rows[i]);
  }
}

// c [32, 32] += a^T b; a and b of two tiles each, tile_stride apart.
void multiply(const uint16_t* a, const uint16_t* b, int64_t steps, float* c, int64_t c_stride) {
  const int64_t c_bytes = c_stride * 4;
  const int64_t tile_stride = steps * kTermElements;
  float* lower = c + 16 * c_stride;
  finish_stores();
  _tile_loadd(0, c, c_bytes);
  _tile_loadd(1, c + 16, c_bytes);
  _tile_loadd(2, lower, c_bytes);
  _tile_loadd(3, lower + 16, c_bytes);
  const auto load_a = [&](int64_t term) {
    _tile_loadd(4, a + term * kTileElements, 64);
    _tile_loadd(5, a + tile_stride + term * kTileElements, 64);
  };
  const auto load_b = [&](int64_t term) {
    _tile_loadd(6, b + term * kTileElements, 64);
    _tile_loadd(7, b + tile_stride + term * kTileElements, 64);
  };
  const auto multiply_all = [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  };
  for (int64_t i = 0; i < steps; ++i, a += kTermElements, b += kTermElements) {
    load_b(0);
    load_a(1);
    multiply_all();
    load_a(0);
    multiply_all();
    load_b(1);
    multiply_all();
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, lower, c_bytes);
  _tile_stored(3, lower + 16, c_bytes);
}

// A float of the packed factors is the two terms of a number.
class AmxTiles {
 public:
  static constexpr int64_t kTileRows = 2 * lathe::kTileRows;
  static constexpr int64_t kTileColumns = kTileRows;
  static constexpr int64_t kDepthStep = lathe::kTileColumns;
  AmxTiles() { tiles_.set_rows(kTileRows / 2, kTileRows / 2); }
  void pack_a(const float* x, int64_t stride, int64_t depth, int64_t rows, bool negate,
              float* out) {
    pack<true>(x, stride, depth, rows, negate ? -1.0f : 1.0f, reinterpret_cast<uint16_t*>(out));
  }
  void pack_b(const float* x, int64_t stride, int64_t depth, int64_t columns, float* out) {
    pack<false>(x, stride, depth, columns, 1.0f, reinterpret_cast<uint16_t*>(out));
  }
  void multiply_tile(const float* a, const float* b, int64_t depth, float* c, int64_t c_stride) {
    multiply(reinterpret_cast<const uint16_t*>(a), reinterpret_cast<const uint16_t*>(b),
             depth / kDepthStep, c, c_stride);
  }

 private:
  TileBlock tiles_;
};

}  // namespace

void add_product_amx(const ProductArgs& args, float* scratch) {
  product_block<AmxTiles>(args, scratch);
}

}  // namespace lathe
