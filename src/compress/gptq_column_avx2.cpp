// Divides and compares in double precision, as the reference does: then every tie and near-tie
// falls the same way. This runs once per weight, the error update after it hundreds of times.
#include <immintrin.h>

#include "compress/gptq_column.h"

namespace lathe {
namespace {

// r = target * global_scale / scale, 0 where the scale is 0.
inline __m256d scaled(__m128 target, const double* scale, __m256d global_scale) {
  const __m256d s = _mm256_loadu_pd(scale);
  const __m256d r = _mm256_div_pd(_mm256_mul_pd(_mm256_cvtps_pd(target), global_scale), s);
  return _mm256_andnot_pd(_mm256_cmp_pd(s, _mm256_setzero_pd(), _CMP_EQ_OQ), r);
}

// Four E2M1 codes as 32-bit integers. The seven midpoints, with the side on which a tie falls.
inline __m128i e2m1_codes(__m256d r) {
  const __m256d sign = _mm256_set1_pd(-0.0);
  const __m256d a = _mm256_andnot_pd(sign, r);
  const auto above = [&](double midpoint) {
    return _mm256_castpd_si256(_mm256_cmp_pd(a, _mm256_set1_pd(midpoint), _CMP_GT_OQ));
  };
  const auto at_least = [&](double midpoint) {
    return _mm256_castpd_si256(_mm256_cmp_pd(a, _mm256_set1_pd(midpoint), _CMP_GE_OQ));
  };
  // Each true comparison is -1.
  __m256i count = _mm256_add_epi64(above(0.25), at_least(0.75));
  count = _mm256_add_epi64(count, _mm256_add_epi64(above(1.25), at_least(1.75)));
  count = _mm256_add_epi64(count, _mm256_add_epi64(above(2.5), at_least(3.5)));
  count = _mm256_add_epi64(count, above(5.0));
  const __m256i negative = _mm256_slli_epi64(_mm256_srli_epi64(_mm256_castpd_si256(r), 63), 3);
  const __m256i code = _mm256_sub_epi64(negative, count);
  const __m256i even = _mm256_permutevar8x32_epi32(code, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
  return _mm256_castsi256_si128(even);
}

inline __m128i integer_codes(__m256d r, __m256d low, __m256d high) {
  const __m256d rounded = _mm256_round_pd(r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm256_cvtpd_epi32(_mm256_min_pd(_mm256_max_pd(rounded, low), high));
}

inline void store_bytes(__m256i values, uint8_t* out) {
  const __m256i bytes = _mm256_shuffle_epi8(
      values, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8,
                               12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  const auto low = static_cast<uint32_t>(_mm256_extract_epi32(bytes, 0));
  const auto high = static_cast<uint32_t>(_mm256_extract_epi32(bytes, 4));
  __builtin_memcpy(out, &low, 4);
  __builtin_memcpy(out + 4, &high, 4);
}

}  // namespace

int64_t round_column_avx2(const WeightFormat& format, const RoundColumnArgs& args) {
  const __m256d global_scale = _mm256_set1_pd(args.global_scale);
  const int64_t end = args.n & ~int64_t{7};
  switch (format.element) {
    case ElementType::kE2M1: {
      const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
      for (int64_t i = 0; i < end; i += 8) {
        const __m128i low =
            e2m1_codes(scaled(_mm_loadu_ps(args.target + i), args.scale + i, global_scale));
        const __m128i high =
            e2m1_codes(scaled(_mm_loadu_ps(args.target + i + 4), args.scale + i + 4, global_scale));
        const __m256i code = _mm256_set_m128i(high, low);
        const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(code, _mm256_set1_epi32(8)), 28);
        const __m256 value =
            _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, code), _mm256_castsi256_ps(sign));
        _mm256_storeu_ps(args.values + i,
                         _mm256_mul_ps(value, _mm256_loadu_ps(args.effective + i)));
        store_bytes(code, args.codes + i);
      }
      return end;
    }
    case ElementType::kInt4:
    case ElementType::kInt8: {
      const bool symmetric = format.scale == ScaleType::kE8M0 || format.scale == ScaleType::kE4M3;
      const bool is_int4 = format.element == ElementType::kInt4;
      const __m256d lowest = _mm256_set1_pd(is_int4 ? (symmetric ? -7 : -8) : -127);
      const __m256d highest = _mm256_set1_pd(is_int4 ? 7 : 127);
      const __m256i mask = _mm256_set1_epi32(is_int4 ? 15 : 255);
      for (int64_t i = 0; i < end; i += 8) {
        const __m128i low = integer_codes(
            scaled(_mm_loadu_ps(args.target + i), args.scale + i, global_scale), lowest, highest);
        const __m128i high = integer_codes(
            scaled(_mm_loadu_ps(args.target + i + 4), args.scale + i + 4, global_scale), lowest,
            highest);
        const __m256i q = _mm256_set_m128i(high, low);
        _mm256_storeu_ps(args.values + i,
                         _mm256_mul_ps(_mm256_cvtepi32_ps(q), _mm256_loadu_ps(args.effective + i)));
        store_bytes(_mm256_and_si256(q, mask), args.codes + i);
      }
      return end;
    }
    case ElementType::kE4M3:
      break;
  }
  return 0;
}

void add_outer_avx2(float* t, const float* factor, const float* error, int64_t begin, int64_t end) {
  static_assert(kSlab == 64);
  __m256 e[8];
  for (int i = 0; i < 8; ++i) e[i] = _mm256_loadu_ps(error + 8 * i);
  for (int64_t j = begin; j < end; ++j) {
    const __m256 f = _mm256_broadcast_ss(factor + j);
    float* row = t + j * kSlab;
    for (int i = 0; i < 8; ++i) {
      _mm256_storeu_ps(row + 8 * i, _mm256_fmadd_ps(f, e[i], _mm256_loadu_ps(row + 8 * i)));
    }
  }
}

}  // namespace lathe
