// Eight floats at a time (AVX2, FMA), as a set of named operations that the *_simd.h kernels are
// written in; simd_avx512.h has the same names for sixteen. To be included by files built for the
// instruction set only. Everything is in an unnamed namespace: an inline function with linkage
// could be merged by the linker with the copy of a file built for other instructions.
//
// min and max return b when either operand is NaN, as the hardware does; callers rely on it.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace lathe {
namespace {

struct Avx2 {
  using F = __m256;   // floats
  using I = __m256i;  // 32-bit integers
  static constexpr int kWidth = 8;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }    // a * b + c
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
  static F fmsub(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }  // a * b - c

  // The first `count` lanes (0 <= count < kWidth); the others read as zero and are not written.
  static F load_first(const float* p, int64_t count) {
    return _mm256_maskload_ps(p, first_lanes(count));
  }
  static void store_first(float* p, F x, int64_t count) {
    _mm256_maskstore_ps(p, first_lanes(count), x);
  }
  // Lane i of x where begin <= i < end, and of otherwise elsewhere.
  static F select_range(F x, F otherwise, int64_t begin, int64_t end) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i inside =
        _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(begin)), lane),
                            _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(end)), lane));
    return _mm256_blendv_ps(otherwise, x, _mm256_castsi256_ps(inside));
  }

  static float sum(F x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float largest(F x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }

  static F reverse(F x) {
    return _mm256_permutevar8x32_ps(x, _mm256_set_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // 2^(n - 1) for whole n in [-125, 128].
  static F half_power_of_two(F n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(126));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static F zero_where_less(F x, F a, F b) {  // a < b ? 0 : x
    return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), x);
  }

  // Pairs of bf16: kWidth pairs, and the fp32 values of their first and second members.
  static I load_pairs(const uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static F first_of_pairs(I x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
  static F second_of_pairs(I x) {
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(~0xffff)));
  }

 private:
  static __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace
}  // namespace lathe
