#include <immintrin.h>

#include "compress/group_error.h"

namespace lathe {
namespace {

inline __m256 round_nearest(__m256 v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// E2M1 has steps of 1/2 below 2, 1 below 4 and 2 above: round |r| to the step of its binade, half
// to even, and clamp to 6. The sign does not matter, the error of -x is that of x.
inline __m256 nearest_e2m1_magnitude(__m256 a) {
  const __m256 two = _mm256_set1_ps(2.0f);
  __m256 inverse_step =
      _mm256_blendv_ps(_mm256_set1_ps(1.0f), two, _mm256_cmp_ps(a, two, _CMP_LT_OQ));
  inverse_step = _mm256_blendv_ps(inverse_step, _mm256_set1_ps(0.5f),
                                  _mm256_cmp_ps(a, _mm256_set1_ps(4.0f), _CMP_GE_OQ));
  __m256 step = _mm256_blendv_ps(_mm256_set1_ps(1.0f), _mm256_set1_ps(0.5f),
                                 _mm256_cmp_ps(a, two, _CMP_LT_OQ));
  step = _mm256_blendv_ps(step, two, _mm256_cmp_ps(a, _mm256_set1_ps(4.0f), _CMP_GE_OQ));
  const __m256 rounded = _mm256_mul_ps(round_nearest(_mm256_mul_ps(a, inverse_step)), step);
  return _mm256_min_ps(rounded, _mm256_set1_ps(6.0f));
}

inline float sum_lanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

}  // namespace

double group_error_avx2(const WeightFormat& format, const GroupErrorArgs& args) {
  const __m256 scale = _mm256_set1_ps(static_cast<float>(args.scale));
  const __m256 inverse = _mm256_set1_ps(static_cast<float>(1.0 / args.scale));
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 total = _mm256_setzero_ps();
  const auto add = [&](__m256 error, int64_t i) {
    __m256 term = _mm256_mul_ps(error, error);
    if (args.weights != nullptr) term = _mm256_mul_ps(term, _mm256_loadu_ps(args.weights + i));
    total = _mm256_add_ps(total, term);
  };
  if (format.element == ElementType::kE2M1) {
    for (int64_t i = 0; i < args.n; i += 8) {
      const __m256 a = _mm256_andnot_ps(sign, _mm256_loadu_ps(args.x + i));
      const __m256 q = nearest_e2m1_magnitude(_mm256_mul_ps(a, inverse));
      add(_mm256_fnmadd_ps(q, scale, a), i);
    }
  } else {
    const bool symmetric = format.scale == ScaleType::kE8M0 || format.scale == ScaleType::kE4M3;
    const bool is_int4 = format.element == ElementType::kInt4;
    const __m256 low = _mm256_set1_ps(is_int4 ? (symmetric ? -7.0f : -8.0f) : -127.0f);
    const __m256 high = _mm256_set1_ps(is_int4 ? 7.0f : 127.0f);
    for (int64_t i = 0; i < args.n; i += 8) {
      const __m256 x = _mm256_loadu_ps(args.x + i);
      __m256 q = round_nearest(_mm256_mul_ps(x, inverse));
      q = _mm256_min_ps(_mm256_max_ps(q, low), high);
      add(_mm256_fnmadd_ps(q, scale, x), i);
    }
  }
  return static_cast<double>(sum_lanes(total));
}

}  // namespace lathe
