#include "kernels/kv_rows/kv_rows_simd.h"
#include "kernels/kv_rows/multiply_add_simd.h"
#include "kernels/simd/simd_int_avx2.h"

namespace lathe {
namespace {

struct KvAvx2 : IntAvx2 {
  template <int kDim>
  static void load_tuples(const float* p, F* out) {
    if constexpr (kDim == 1) {
      out[0] = load(p);
    } else if constexpr (kDim == 2) {
      const F a = load(p);
      const F b = load(p + kWidth);
      // Inside 128-bit halves first: a0 a2 b0 b2 | a4 a6 b4 b6; then the middle two change places.
      out[0] = in_order(_mm256_shuffle_ps(a, b, 0x88));
      out[1] = in_order(_mm256_shuffle_ps(a, b, 0xdd));
    } else {
      const I at = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
      for (int j = 0; j < kDim; ++j) out[j] = _mm256_i32gather_ps(p + j, at, 4);
    }
  }
  static I select_greater(F a, F b, I yes, I no) {
    return _mm256_blendv_epi8(no, yes, as_int(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }
  static void store_code_bytes(uint8_t* p, I v) {
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }

  static void look_up(const HiggsGrid& grid, const uint8_t* codes, int64_t num_codes, float* out) {
    if (grid.dim == 4) {
      for (int64_t i = 0; i < num_codes; ++i) {
        _mm_storeu_ps(out + 4 * i, _mm_loadu_ps(grid.points + 4 * codes[i]));
      }
    } else if (grid.dim == 1) {
      for (int64_t i = 0; i < num_codes; i += kWidth) {
        store(out + i, _mm256_i32gather_ps(grid.points, load_u8(codes + i), 4));
      }
    } else {  // a pair is 64 bits
      const auto* pairs = reinterpret_cast<const long long*>(grid.points);
      for (int64_t i = 0; i < num_codes; i += 8) {
        const I index = load_u8(codes + i);
        const I low = _mm256_i32gather_epi64(pairs, _mm256_castsi256_si128(index), 8);
        const I high = _mm256_i32gather_epi64(pairs, _mm256_extracti128_si256(index, 1), 8);
        store(out + 2 * i, as_float(low));
        store(out + 2 * i + kWidth, as_float(high));
      }
    }
  }

 private:
  static F in_order(F v) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
  }
};

}  // namespace

void multiply_add_rows_avx2(const MultiplyAddRowsArgs& args, Exec&) {
  multiply_add_simd<IntAvx2>(args);
}
void encode_kv_rows_avx2(const KvRowsArgs& args, Exec& exec) {
  encode_kv_rows_simd<KvAvx2>(args, exec);
}
void decode_kv_rows_avx2(const KvRowsArgs& args, Exec& exec) {
  decode_kv_rows_simd<KvAvx2>(args, exec);
}

}  // namespace lathe
