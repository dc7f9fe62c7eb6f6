// Eight lanes of AVX2 under the names that the kernel templates use. simd_avx512.h has the same
// with sixteen lanes. Everything is in an unnamed namespace: a template instantiated with Avx2 is
// then local to its file, which is the only one built with the flags it needs.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace lathe {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  static constexpr int kMaxTile =
      6;  // 6 rows x 2 vectors of sums, 2 of weights and 1 of x: 15 of 16
  using Float = __m256;
  using Int = __m256i;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float set1(float value) { return _mm256_set1_ps(value); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

  static Int load_int(const void* p) { return _mm256_loadu_si256(static_cast<const Int*>(p)); }
  static Int set1_int(int32_t value) { return _mm256_set1_epi32(value); }
  static Int broadcast4(const void* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  static Float float_from_int(Int v) { return _mm256_cvtepi32_ps(v); }
  static Float as_float(Int v) { return _mm256_castsi256_ps(v); }

  // kLanes values widened to 32 bits.
  static Int load_u8(const void* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }
  static Int load_s8(const void* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }
  static Int load_u16(const void* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static Float load_f16(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  // Bytes of E4M3, one in each lane: shifted into place the exponent is too small by 127 - 7, which
  // the product mends exactly, for subnormals too. All ones besides the sign is NaN.
  static Float float_from_e4m3(Int bytes) {
    const Int magnitude = _mm256_and_si256(bytes, _mm256_set1_epi32(0x7f));
    const Int sign = _mm256_slli_epi32(_mm256_xor_si256(bytes, magnitude), 24);
    const Int nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
    const Float value =
        _mm256_mul_ps(as_float(_mm256_slli_epi32(magnitude, 20)), _mm256_set1_ps(0x1p120f));
    return _mm256_or_ps(value, as_float(_mm256_or_si256(sign, nan)));
  }
  template <int kBits>
  static Int shift_left(Int v) {
    return _mm256_slli_epi32(v, kBits);
  }
  static Int max_u32(Int a, Int b) { return _mm256_max_epu32(a, b); }

  // Lane i of an order-preserving exchange: i ^ kDistance (1, 2 or 4), for butterflies.
  template <int kDistance>
  static Float swap_lanes(Float v) {
    if constexpr (kDistance == 4) return _mm256_permute2f128_ps(v, v, 1);
    return _mm256_permute_ps(v, kDistance == 1 ? 0xb1 : 0x4e);
  }
  // Changes the sign of the lanes whose index has the bit kDistance.
  template <int kDistance>
  static Float negate_lanes(Float v) {
    const Int mask =
        _mm256_setr_epi32(0, kDistance == 1 ? kSign : 0, kDistance == 2 ? kSign : 0,
                          kDistance == 1 || kDistance == 2 ? kSign : 0, kDistance == 4 ? kSign : 0,
                          kDistance != 2 ? kSign : 0, kDistance != 1 ? kSign : 0, kSign);
    return _mm256_xor_ps(v, _mm256_castsi256_ps(mask));
  }

  static Int as_int(Float v) { return _mm256_castps_si256(v); }
  static Int and_int(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int or_int(Int a, Int b) { return _mm256_or_si256(a, b); }
  static Int xor_int(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static Int add_int(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int sub_int(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  template <int kBits>
  static Int shift_right(Int v) {
    return _mm256_srli_epi32(v, kBits);
  }
  template <int kBits>
  static Int shift_right_signed(Int v) {
    return _mm256_srai_epi32(v, kBits);
  }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  // `value` where a > b (a >= b, a < b), 0 elsewhere.
  static Int where_greater(Float a, Float b, Int value) {
    return _mm256_and_si256(as_int(_mm256_cmp_ps(a, b, _CMP_GT_OQ)), value);
  }
  static Int where_greater_equal(Float a, Float b, Int value) {
    return _mm256_and_si256(as_int(_mm256_cmp_ps(a, b, _CMP_GE_OQ)), value);
  }
  static Float select_less(Float a, Float b, Float yes, Float no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static Int round_to_int(Float v) { return _mm256_cvtps_epi32(v); }  // nearest even
  static uint32_t reduce_max_u32(Int v) {
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(half));
  }
  // The low byte (word) of every lane, kLanes of them; values fit.
  static void store_low_bytes(int8_t* p, Int v) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static void store_low_words(int16_t* p, Int v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
  }
  // Two int16 in a word: factor * (sum over columns 0 and 1 mod 4), and over columns 2 and 3.
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
  using Table = Int;
  static Table load_table(const int8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  static Int lookup_low(Table table, Int codes) {
    return _mm256_shuffle_epi8(table, _mm256_and_si256(codes, _mm256_set1_epi8(15)));
  }
  static Int lookup_high(Table table, Int codes) {
    return _mm256_shuffle_epi8(table,
                               _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15)));
  }

  // 2 * kLanes bytes: the low nibbles through the table to values[0], values[1], the high ones to
  // values[2], values[3].
  static void load_nibbles(const void* p, Table table, Float* values) {
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
  // lane, summed over the steps of one group. In 16 bits, where additions wrap: only the end result
  // has to fit (integer_kernel.h has the bound), and every pair of products, which the instruction
  // saturates: 2 * 24 * 128 = 6144.
  using Dot = Int;
  static Dot start(const int32_t* correction) { return _mm256_set1_epi32(*correction); }
  // The empty asm keeps the additions in one chain. GCC 12 would make a tree of them, which needs
  // more registers than there are beside the weights, and spills.
  static Dot step(Dot dot, Int w, Int x) {
    Dot sum = _mm256_add_epi16(dot, _mm256_maddubs_epi16(w, x));
    asm("" : "+x"(sum));
    return sum;
  }
  static Int finish(Dot dot) { return _mm256_madd_epi16(dot, _mm256_set1_epi16(1)); }

  // The same of two neighbouring 16-bit numbers, summed in 32 bits.
  static Int load_s8_as_s16(const void* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static Int step_wide(Int dot, Int w, Int x) {
    Int sum = _mm256_add_epi32(dot, _mm256_madd_epi16(w, x));
    asm("" : "+x"(sum));
    return sum;
  }

 private:
  static constexpr int32_t kSign = INT32_MIN;
};

}  // namespace
}  // namespace lathe
