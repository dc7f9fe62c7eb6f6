// The operations that integer kernels and decoders of packed formats need on top of simd_avx2.h;
// simd_int_avx512.h has the same names. To be included by files built for the instruction set only.
#pragma once
#include "kernels/simd/simd_avx2.h"

namespace lathe {
namespace {

struct IntAvx2 : Avx2 {
  // Rows of a register-blocked matrix product: 6 x 2 sums, 2 vectors of weights and 1 of x are 15
  // of 16 registers.
  static constexpr int kMaxTile = 6;

  static I set_int(int32_t value) { return _mm256_set1_epi32(value); }
  static I load_int(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  // The same four bytes in every lane.
  static I broadcast4(const void* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  static I as_int(F v) { return _mm256_castps_si256(v); }
  static F as_float(I v) { return _mm256_castsi256_ps(v); }
  static F float_from_int(I v) { return _mm256_cvtepi32_ps(v); }
  static I round_to_int(F v) { return _mm256_cvtps_epi32(v); }  // nearest even

  static I and_int(I a, I b) { return _mm256_and_si256(a, b); }
  static I or_int(I a, I b) { return _mm256_or_si256(a, b); }
  static I xor_int(I a, I b) { return _mm256_xor_si256(a, b); }
  static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I max_u32(I a, I b) { return _mm256_max_epu32(a, b); }
  template <int kBits>
  static I shift_left(I v) {
    return _mm256_slli_epi32(v, kBits);
  }
  template <int kBits>
  static I shift_right(I v) {
    return _mm256_srli_epi32(v, kBits);
  }
  template <int kBits>
  static I shift_right_signed(I v) {
    return _mm256_srai_epi32(v, kBits);
  }
  static uint32_t largest_u32(I v) {
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(half));
  }

  // `value` where a > b (a >= b), 0 elsewhere; `yes` where a < b, `no` elsewhere.
  static I where_greater(F a, F b, I value) {
    return _mm256_and_si256(as_int(_mm256_cmp_ps(a, b, _CMP_GT_OQ)), value);
  }
  static I where_greater_equal(F a, F b, I value) {
    return _mm256_and_si256(as_int(_mm256_cmp_ps(a, b, _CMP_GE_OQ)), value);
  }
  static F select_less(F a, F b, F yes, F no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }

  // Butterflies: lane i receives lane i ^ kDistance; the lanes with that bit change their sign.
  template <int kDistance>
  static F swap_lanes(F v) {
    if constexpr (kDistance == 4) return _mm256_permute2f128_ps(v, v, 1);
    return _mm256_permute_ps(v, kDistance == 1 ? 0xb1 : 0x4e);
  }
  template <int kDistance>
  static F negate_lanes(F v) {
    const I lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const I bit = _mm256_and_si256(lane, _mm256_set1_epi32(kDistance));
    const I sign = _mm256_slli_epi32(bit, kDistance == 1 ? 31 : kDistance == 2 ? 30 : 29);
    return _mm256_xor_ps(v, as_float(sign));
  }

  // kWidth values widened to 32 bits.
  static I load_u8(const void* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }
  static I load_s8(const void* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }
  static I load_u16(const void* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static F load_f16(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  // Bytes of E4M3, one in each lane: shifted into place the exponent is too small by 127 - 7, which
  // the product mends exactly, for subnormals too. All ones besides the sign is NaN.
  static F float_from_e4m3(I bytes) {
    const I magnitude = _mm256_and_si256(bytes, _mm256_set1_epi32(0x7f));
    const I sign = _mm256_slli_epi32(_mm256_xor_si256(bytes, magnitude), 24);
    const I nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
    const F value =
        _mm256_mul_ps(as_float(_mm256_slli_epi32(magnitude, 20)), _mm256_set1_ps(0x1p120f));
    return _mm256_or_ps(value, as_float(_mm256_or_si256(sign, nan)));
  }
  // The low byte of every lane; values fit.
  static void store_low_bytes(int8_t* p, I v) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  // Two int16 in a word: factor * (sum over columns 0 and 1 mod 4), and over columns 2 and 3.
  // count: 16 or 32.
  static int32_t scaled_pair_sums(const int8_t* codes, int64_t count, int factor) {
    const __m128i ones = _mm_set1_epi8(1);
    const auto* p = reinterpret_cast<const __m128i*>(codes);
    __m128i sums = _mm_maddubs_epi16(ones, _mm_loadu_si128(p));
    if (count == 32) sums = _mm_add_epi16(sums, _mm_maddubs_epi16(ones, _mm_loadu_si128(p + 1)));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0x4e));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0xb1));
    return _mm_cvtsi128_si32(_mm_mullo_epi16(sums, _mm_set1_epi16(static_cast<int16_t>(factor))));
  }

  // Looks up the low and the high nibble of every byte in a 16-entry table.
  using Table = I;
  static Table load_table(const int8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  static I lookup_low(Table table, I codes) {
    return _mm256_shuffle_epi8(table, _mm256_and_si256(codes, _mm256_set1_epi8(15)));
  }
  static I lookup_high(Table table, I codes) {
    return lookup_low(table, _mm256_srli_epi16(codes, 4));
  }
  // 2 * kWidth bytes: the low nibbles through the table to values[0], values[1], the high ones to
  // values[2], values[3].
  static void load_nibbles(const void* p, Table table, F* values) {
    const __m128i codes = _mm_loadu_si128(static_cast<const __m128i*>(p));
    const __m128i mask = _mm_set1_epi8(15);
    const __m128i entries = _mm256_castsi256_si128(table);
    const __m128i low = _mm_shuffle_epi8(entries, _mm_and_si128(codes, mask));
    const __m128i high = _mm_shuffle_epi8(entries, _mm_and_si128(_mm_srli_epi16(codes, 4), mask));
    values[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low));
    values[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(low, 8)));
    values[2] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high));
    values[3] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(high, 8)));
  }

  // Dot products of four neighbouring bytes, w (unsigned, 0..24) * x (signed), in every 32-bit
  // lane, summed over the steps of one group from a start of two int16 (scaled_pair_sums). In 16
  // bits, where additions wrap: only the end result has to fit (linear/integer_simd.h has the
  // bound), and every pair of products, which the instruction saturates: 2 * 24 * 128 = 6144.
  using Dot = I;
  static Dot start(const int32_t* correction) { return _mm256_set1_epi32(*correction); }
  // The empty asm keeps the additions in one chain. GCC 12 would make a tree of them, which needs
  // more registers than there are beside the weights, and spills.
  static Dot step(Dot dot, I w, I x) {
    Dot sum = _mm256_add_epi16(dot, _mm256_maddubs_epi16(w, x));
    asm("" : "+x"(sum));
    return sum;
  }
  static I finish(Dot dot) { return _mm256_madd_epi16(dot, _mm256_set1_epi16(1)); }

  // dot + products of four neighbouring bytes, w (signed) * x (signed, not -128), in 32 bits.
  static I abs_bytes(I w) { return _mm256_abs_epi8(w); }
  static I step_bytes(I dot, I magnitude_of_w, I w, I x) {
    const I pairs = _mm256_maddubs_epi16(magnitude_of_w, _mm256_sign_epi8(x, w));
    I sum = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    asm("" : "+x"(sum));
    return sum;
  }
};

}  // namespace
}  // namespace lathe
