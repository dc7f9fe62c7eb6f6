// The tile registers of AMX: eight of 16 rows x 64 bytes. A product adds 16 x 32 numbers of bf16
// times 32 x 16 (in pairs, [16][16][2]) to 16 x 16 of fp32:
//
//   c[r][n] += a[r][2 i] * b[i][n][0] + a[r][2 i + 1] * b[i][n][1]    i = 0 .. 15, one by one
//
// rounded to fp32, with subnormal numbers as zero. So a row of c depends on that row of a alone.
// To be included by files built for the instruction set only.
#pragma once
#include <cstdint>

#include "kernels/simd/simd_avx512.h"

namespace lathe {
namespace {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileColumns = 32;  // of a, in bf16
inline constexpr int64_t kTileElements = kTileRows * kTileColumns;

// To be called between ordinary stores and tile loads of the same memory: to the compiler, a tile
// load is an instruction that reads no memory.
inline void finish_stores() { asm volatile("" ::: "memory"); }

// The tiles of a 32 x 32 block of c, in the registers of the same number:
//   c00 c01 c10 c11 (0 .. 3), a0 a1 (4, 5), b0 b1 (6, 7)
// with `upper` rows in c0x and a0, and `lower` in c1x and a1. Until the object goes, the thread's
// tiles are set up so.
class TileBlock {
 public:
  TileBlock() = default;
  TileBlock(const TileBlock&) = delete;
  TileBlock& operator=(const TileBlock&) = delete;
  ~TileBlock() {
    if (upper_ != 0) _tile_release();
  }

  // 1 to 16 rows above, 0 to 16 below.
  void set_rows(int64_t upper, int64_t lower) {
    if (upper == upper_ && lower == lower_) return;
    upper_ = upper;
    lower_ = lower;
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const int64_t rows[8] = {upper, upper, lower, lower, upper, lower, kTileRows, kTileRows};
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = static_cast<uint8_t>(rows[i]);
      config.bytes[i] = rows[i] == 0 ? 0 : 64;
    }
    _tile_loadconfig(&config);
  }

 private:
  int64_t upper_ = 0;
  int64_t lower_ = 0;
};

alignas(64) inline constexpr uint16_t kCounting16[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                                         11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                                         22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

// x = high + low, both bf16 in the upper half of a float (the lower half of `low` does not count):
// low is what rounding left of x, rounded itself (halves away from zero), so that 2^-17 of x is
// missing at most. Infinities and NaN stand in high alone.
struct Bf16Terms {
  __m512 high, low;
};

inline __m512 round_to_bf16(__m512 x) {
  const __m256i half = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m512 rest_of_bf16(__m512 x, __m512 high) {
  const __m512 rest = _mm512_sub_ps(x, high);
  const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(rest), _mm512_set1_epi32(0x8000));
  // Where x is NaN or infinite, so is high, and the rest is NaN: nothing.
  const __m512i nan_to_zero = _mm512_set1_epi32(0x88);
  return _mm512_fixupimm_ps(_mm512_castsi512_ps(rounded), rest, nan_to_zero, 0);
}

inline Bf16Terms split_terms(__m512 x) {
  const __m512 high = round_to_bf16(x);
  return {high, rest_of_bf16(x, high)};
}

// The upper halves of two vectors of floats, as pairs.
inline __m512i pair_upper(__m512 even, __m512 odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
  // low | (odd & mask)
  return _mm512_ternarylogic_epi32(low, _mm512_castps_si512(odd), _mm512_set1_epi32(~0xffff), 0xf8);
}

// 32 numbers in kTerms numbers each, at `stride` from one to the next; the third one is what is
// left of x, all of it.
template <int kTerms>
inline void split_bf16(__m512 x0, __m512 x1, uint16_t* out, int64_t stride) {
  static_assert(kTerms == 2 || kTerms == 3);
  const __m512i odd_halves =
      _mm512_add_epi16(_mm512_slli_epi16(_mm512_load_si512(kCounting16), 1), _mm512_set1_epi16(1));
  const auto store = [&](int term, __m512 a, __m512 b) {
    _mm512_storeu_si512(
        out + term * stride,
        _mm512_permutex2var_epi16(_mm512_castps_si512(a), odd_halves, _mm512_castps_si512(b)));
  };
  const Bf16Terms first = split_terms(x0);
  const Bf16Terms second = split_terms(x1);
  store(0, first.high, second.high);
  store(1, first.low, second.low);
  if constexpr (kTerms == 3) {
    const auto third = [](__m512 x, const Bf16Terms& terms) {
      const __m512i low =
          _mm512_and_si512(_mm512_castps_si512(terms.low), _mm512_set1_epi32(~0xffff));
      const __m512 rest = _mm512_sub_ps(_mm512_sub_ps(x, terms.high), _mm512_castsi512_ps(low));
      return _mm512_fixupimm_ps(rest, rest, _mm512_set1_epi32(0x88), 0);
    };
    store(2, third(x0, first), third(x1, second));
  }
}

}  // namespace
}  // namespace lathe
