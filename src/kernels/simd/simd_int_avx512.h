// The operations that integer kernels and decoders of packed formats need on top of simd_avx512.h
// (AVX-512 F, BW, VL, DQ and VNNI); simd_int_avx2.h says what they do.
#pragma once
#include "kernels/simd/simd_avx512.h"

namespace lathe {
namespace {

struct IntAvx512 : Avx512 {
  static constexpr int kMaxTile = 12;  // 12 x 2 sums, 2 vectors of weights: 26 of 32 registers

  static I set_int(int32_t value) { return _mm512_set1_epi32(value); }
  static I load_int(const void* p) { return _mm512_loadu_si512(p); }
  static I broadcast4(const void* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
  static I as_int(F v) { return _mm512_castps_si512(v); }
  static F as_float(I v) { return _mm512_castsi512_ps(v); }
  static F float_from_int(I v) { return _mm512_cvtepi32_ps(v); }
  static I round_to_int(F v) { return _mm512_cvtps_epi32(v); }

  static I and_int(I a, I b) { return _mm512_and_si512(a, b); }
  static I or_int(I a, I b) { return _mm512_or_si512(a, b); }
  static I xor_int(I a, I b) { return _mm512_xor_si512(a, b); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I max_u32(I a, I b) { return _mm512_max_epu32(a, b); }
  template <int kBits>
  static I shift_left(I v) {
    return _mm512_slli_epi32(v, kBits);
  }
  template <int kBits>
  static I shift_right(I v) {
    return _mm512_srli_epi32(v, kBits);
  }
  template <int kBits>
  static I shift_right_signed(I v) {
    return _mm512_srai_epi32(v, kBits);
  }
  static uint32_t largest_u32(I v) { return _mm512_reduce_max_epu32(v); }

  static I where_greater(F a, F b, I value) {
    return _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), value);
  }
  static I where_greater_equal(F a, F b, I value) {
    return _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), value);
  }
  static F select_less(F a, F b, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
  }

  template <int kDistance>
  static F swap_lanes(F v) {
    if constexpr (kDistance == 8) return _mm512_shuffle_f32x4(v, v, 0x4e);
    if constexpr (kDistance == 4) return _mm512_shuffle_f32x4(v, v, 0xb1);
    return _mm512_permute_ps(v, kDistance == 1 ? 0xb1 : 0x4e);
  }
  template <int kDistance>
  static F negate_lanes(F v) {
    constexpr __mmask16 kLanes = kDistance == 1   ? 0xaaaa
                                 : kDistance == 2 ? 0xcccc
                                 : kDistance == 4 ? 0xf0f0
                                                  : 0xff00;
    return as_float(_mm512_mask_xor_epi32(as_int(v), kLanes, as_int(v), set_int(INT32_MIN)));
  }

  static I load_u8(const void* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static I load_s8(const void* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static I load_u16(const void* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static F load_f16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static F float_from_e4m3(I bytes) {
    const I magnitude = _mm512_and_si512(bytes, set_int(0x7f));
    const I sign = _mm512_slli_epi32(_mm512_xor_si512(bytes, magnitude), 24);
    const I nan =
        _mm512_maskz_mov_epi32(_mm512_cmpeq_epi32_mask(magnitude, set_int(0x7f)), set_int(-1));
    const F value = _mm512_mul_ps(as_float(_mm512_slli_epi32(magnitude, 20)), set(0x1p120f));
    return as_float(_mm512_or_si512(as_int(value), _mm512_or_si512(sign, nan)));
  }
  static void store_low_bytes(int8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }
  static int32_t scaled_pair_sums(const int8_t* codes, int64_t count, int factor) {
    const __m128i ones = _mm_set1_epi8(1);
    const auto* p = reinterpret_cast<const __m128i*>(codes);
    __m128i sums = _mm_maddubs_epi16(ones, _mm_loadu_si128(p));
    if (count == 32) sums = _mm_add_epi16(sums, _mm_maddubs_epi16(ones, _mm_loadu_si128(p + 1)));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0x4e));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0xb1));
    return _mm_cvtsi128_si32(_mm_mullo_epi16(sums, _mm_set1_epi16(static_cast<int16_t>(factor))));
  }

  using Table = I;
  static Table load_table(const int8_t* table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  static I lookup_low(Table table, I codes) {
    return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
  }
  static I lookup_high(Table table, I codes) {
    return lookup_low(table, _mm512_srli_epi16(codes, 4));
  }
  static void load_nibbles(const void* p, Table table, F* values) {
    const __m256i codes = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i entries = _mm512_castsi512_si256(table);
    const __m256i low = _mm256_shuffle_epi8(entries, _mm256_and_si256(codes, mask));
    const __m256i high =
        _mm256_shuffle_epi8(entries, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask));
    values[0] = float_from_int(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(low)));
    values[1] = float_from_int(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(low, 1)));
    values[2] = float_from_int(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(high)));
    values[3] = float_from_int(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(high, 1)));
  }
};

}  // namespace
}  // namespace lathe
