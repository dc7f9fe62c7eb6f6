// The operations of attention_codes_simd.h, 32 codes at a time.
#pragma once
#include "kernels/simd/simd_int_avx2.h"

namespace lathe {
namespace {

struct CodesAvx2 : IntAvx2 {
  static constexpr int64_t kBytes = 32;  // codes in a vector
  using Bytes = __m256i;

  static Bytes load_bytes(const void* p) { return load_int(p); }
  static Bytes low_nibbles(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static Bytes high_nibbles(Bytes v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
  // nibbles | bits 2 q and 2 q + 1 of `bits` at positions 4 and 5.
  static Bytes with_high_bits(Bytes nibbles, Bytes bits, int q) {
    const Bytes shifted = q == 0   ? _mm256_slli_epi16(bits, 4)
                          : q == 1 ? _mm256_slli_epi16(bits, 2)
                          : q == 2 ? bits
                                   : _mm256_srli_epi16(bits, 2);
    return _mm256_or_si256(nibbles, _mm256_and_si256(shifted, _mm256_set1_epi8(0x30)));
  }

  static Bytes load_table16(const int8_t* table) { return load_table(table); }
  static Bytes lookup16(Bytes table, Bytes codes) { return _mm256_shuffle_epi8(table, codes); }
  // Larger tables sixteen entries at a time: a code elsewhere gets its top bit set, which makes the
  // shuffle give 0.
  using LargeTable = const int8_t*;
  static LargeTable load_table64(const int8_t* table) { return table; }
  static LargeTable load_table256(const int8_t* table) { return table; }
  template <int kParts>
  static Bytes lookup_parts(LargeTable table, Bytes codes) {
    Bytes result = _mm256_setzero_si256();
    for (int i = 0; i < kParts; ++i) {
      const Bytes entry =
          _mm256_adds_epu8(_mm256_sub_epi8(codes, _mm256_set1_epi8(static_cast<char>(16 * i))),
                           _mm256_set1_epi8(0x70));
      result = _mm256_or_si256(result, _mm256_shuffle_epi8(load_table(table + 16 * i), entry));
    }
    return result;
  }
  static Bytes lookup64(LargeTable table, Bytes codes) { return lookup_parts<4>(table, codes); }
  static Bytes lookup256(LargeTable table, Bytes codes) { return lookup_parts<16>(table, codes); }

  static void store_widened(int16_t* to, Bytes v) {
    auto* out = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(out, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v)));
    _mm256_storeu_si256(out + 1, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1)));
  }
  static void store_bf16_of_e4m3(int16_t* to, Bytes v) {
    auto* out = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(out, bf16_of_e4m3(_mm256_castsi256_si128(v)));
    _mm256_storeu_si256(out + 1, bf16_of_e4m3(_mm256_extracti128_si256(v, 1)));
  }

  // sum + the products of two neighbouring int16, in every 32-bit lane.
  static I add_pair_products(I sum, I a, I b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
  static F load_bf16(const void* p) { return as_float(shift_left<16>(load_u16(p))); }
  static void store_int16(int16_t* to, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
  }

 private:
  // Half a float has an exponent of five bits: shifted into it, E4M3 is 2^-8 times too small.
  static __m256i bf16_of_e4m3(__m128i bytes) {
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8);
    const __m256i half = _mm256_and_si256(_mm256_srai_epi16(wide, 1),
                                          _mm256_set1_epi16(static_cast<int16_t>(0xbfff)));
    const __m256 scale = _mm256_set1_ps(256.0f);
    const __m256 low = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)), scale);
    const __m256 high = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)), scale);
    const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(low), 16),
                                               _mm256_srli_epi32(_mm256_castps_si256(high), 16));
    const __m256i bf16 = _mm256_permute4x64_epi64(packed, 0xd8);
    const __m256i top = _mm256_set1_epi16(0x7f00);
    const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(wide, top), top);
    return _mm256_or_si256(bf16, _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7fc0)));
  }
};

}  // namespace
}  // namespace lathe
