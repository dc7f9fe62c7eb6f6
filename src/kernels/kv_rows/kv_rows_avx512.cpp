#include "kernels/kv_rows/kv_rows_simd.h"
#include "kernels/kv_rows/multiply_add_simd.h"
#include "kernels/simd/simd_int_avx512.h"

namespace lathe {
namespace {

struct KvAvx512 : IntAvx512 {
  // Coordinate j of kWidth consecutive tuples, for each j.
  template <int kDim>
  static void load_tuples(const float* p, F* out) {
    if constexpr (kDim == 1) {
      out[0] = load(p);
    } else if constexpr (kDim == 2) {
      const I even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      const I odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
      const F a = load(p);
      const F b = load(p + kWidth);
      out[0] = _mm512_permutex2var_ps(a, even, b);
      out[1] = _mm512_permutex2var_ps(a, odd, b);
    } else {
      const I at = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
      for (int j = 0; j < kDim; ++j) out[j] = _mm512_i32gather_ps(at, p + j, 4);
    }
  }
  static I select_greater(F a, F b, I yes, I no) {
    return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
  }
  static void store_code_bytes(uint8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }

  // Points of the codes, side by side; `codes` and `out` are padded to whole vectors.
  static void look_up(const HiggsGrid& grid, const uint8_t* codes, int64_t num_codes, float* out) {
    if (grid.dim == 4) {
      for (int64_t i = 0; i < num_codes; ++i) {
        _mm_storeu_ps(out + 4 * i, _mm_loadu_ps(grid.points + 4 * codes[i]));
      }
    } else if (grid.dim == 1) {  // at most 16 points
      const F table = load_first(grid.points, grid.num_points % 16);
      const F points = grid.num_points == 16 ? load(grid.points) : table;
      for (int64_t i = 0; i < num_codes; i += kWidth) {
        store(out + i, _mm512_permutexvar_ps(load_u8(codes + i), points));
      }
    } else if (grid.num_points == 16) {
      // Coordinates apart in a register each; the results are interleaved.
      F table[2];
      load_tuples<2>(grid.points, table);
      const I low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      const I high =
          _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      for (int64_t i = 0; i < num_codes; i += kWidth) {
        const I index = load_u8(codes + i);
        const F x = _mm512_permutexvar_ps(index, table[0]);
        const F y = _mm512_permutexvar_ps(index, table[1]);
        store(out + 2 * i, _mm512_permutex2var_ps(x, low, y));
        store(out + 2 * i + kWidth, _mm512_permutex2var_ps(x, high, y));
      }
    } else {  // a pair is 64 bits
      for (int64_t i = 0; i < num_codes; i += 8) {
        const __m256i index =
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
        const __m512i pairs = _mm512_i32gather_epi64(index, grid.points, 8);
        _mm512_storeu_si512(out + 2 * i, pairs);
      }
    }
  }
};

}  // namespace

void multiply_add_rows_avx512(const MultiplyAddRowsArgs& args, Exec&) {
  multiply_add_simd<IntAvx512>(args);
}
void encode_kv_rows_avx512(const KvRowsArgs& args, Exec& exec) {
  encode_kv_rows_simd<KvAvx512>(args, exec);
}
void decode_kv_rows_avx512(const KvRowsArgs& args, Exec& exec) {
  decode_kv_rows_simd<KvAvx512>(args, exec);
}

}  // namespace lathe
