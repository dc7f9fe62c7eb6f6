// The operations of attention_codes_simd.h, 64 codes at a time (AVX-512 F, BW, VL, DQ, VNNI, VBMI).
#pragma once
#include "kernels/attention/code_tables.h"
#include "kernels/simd/simd_int_avx512.h"

namespace lathe {
namespace {

struct CodesAvx512 : IntAvx512 {
  static constexpr int64_t kBytes = 64;
  using Bytes = __m512i;

  static Bytes load_bytes(const void* p) { return load_int(p); }
  static Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
  static Bytes high_nibbles(Bytes v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
  static Bytes with_high_bits(Bytes nibbles, Bytes bits, int q) {
    const Bytes shifted = q == 0   ? _mm512_slli_epi16(bits, 4)
                          : q == 1 ? _mm512_slli_epi16(bits, 2)
                          : q == 2 ? bits
                                   : _mm512_srli_epi16(bits, 2);
    return _mm512_or_si512(nibbles, _mm512_and_si512(shifted, _mm512_set1_epi8(0x30)));
  }

  static Bytes load_table16(const int8_t* table) { return load_table(table); }
  static Bytes lookup16(Bytes table, Bytes codes) { return _mm512_shuffle_epi8(table, codes); }
  static Bytes load_table64(const int8_t* table) { return load_int(table); }
  static Bytes lookup64(Bytes table, Bytes codes) { return _mm512_permutexvar_epi8(codes, table); }
  struct Table256 {
    __m512i part[4];
  };
  static Table256 load_table256(const int8_t* table) {
    return {{load_int(table), load_int(table + 64), load_int(table + 128), load_int(table + 192)}};
  }
  static Bytes lookup256(const Table256& table, Bytes codes) {
    const __m512i low = _mm512_permutex2var_epi8(table.part[0], codes, table.part[1]);
    const __m512i high = _mm512_permutex2var_epi8(table.part[2], codes, table.part[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
  }

  static void store_widened(int16_t* to, Bytes v) {
    _mm512_storeu_si512(to, _mm512_cvtepi8_epi16(_mm512_castsi512_si256(v)));
    _mm512_storeu_si512(to + 32, _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(v, 1)));
  }
  static void store_bf16_of_e4m3(int16_t* to, Bytes v) {
    const __m512i magnitude = _mm512_and_si512(v, _mm512_set1_epi8(0x7f));
    const __m512i low = _mm512_permutex2var_epi8(load_int(kE4m3Table.low), magnitude,
                                                 load_int(kE4m3Table.low + 64));
    const __m512i high =
        _mm512_or_si512(_mm512_permutex2var_epi8(load_int(kE4m3Table.high), magnitude,
                                                 load_int(kE4m3Table.high + 64)),
                        _mm512_andnot_si512(_mm512_set1_epi8(0x7f), v));
    // Codes 16 i .. 16 i + 7 of every 128-bit lane i, and the other eight.
    const __m512i even = _mm512_unpacklo_epi8(low, high);
    const __m512i odd = _mm512_unpackhi_epi8(low, high);
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(even, first, odd));
    _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi64(even, second, odd));
  }

  static I add_pair_products(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }
  static F load_bf16(const void* p) { return as_float(shift_left<16>(load_u16(p))); }
  static void store_int16(int16_t* to, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(v));
  }
};

}  // namespace
}  // namespace lathe
