#include <immintrin.h>

#include "compress/magnitudes.h"

namespace lathe {

void add_magnitudes_avx2(const float* x, int64_t stride, int64_t rows, float* amax, double* sum) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 largest[2];
  __m256d sums[4];
  for (int i = 0; i < 2; ++i) largest[i] = _mm256_loadu_ps(amax + 8 * i);
  for (int i = 0; i < 4; ++i) sums[i] = _mm256_loadu_pd(sum + 4 * i);
  for (int64_t t = 0; t < rows; ++t, x += stride) {
    for (int i = 0; i < 2; ++i) {
      const __m256 a = _mm256_andnot_ps(sign, _mm256_loadu_ps(x + 8 * i));
      largest[i] = _mm256_max_ps(a, largest[i]);  // passes over NaN, which shows up in the sum
      sums[2 * i] = _mm256_add_pd(sums[2 * i], _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
      sums[2 * i + 1] =
          _mm256_add_pd(sums[2 * i + 1], _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
    }
  }
  for (int i = 0; i < 2; ++i) _mm256_storeu_ps(amax + 8 * i, largest[i]);
  for (int i = 0; i < 4; ++i) _mm256_storeu_pd(sum + 4 * i, sums[i]);
}

}  // namespace lathe
