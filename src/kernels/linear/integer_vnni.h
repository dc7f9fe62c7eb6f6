// The integer kernel of linear() for AVX-512 with VNNI.
//
// A weight panel is 32 output rows, two vectors of lanes. One group of it (16 or 32 columns) is
// decoded into registers, four columns of 16 rows in each; then the rows of x walk past it, four at
// a time:
//
//   w[h][i]   lane r: w[row 16 h + r][4 i .. 4 i + 3] + offset, unsigned bytes  (8 or 16 registers)
//   x         lane r: x[t][4 i .. 4 i + 3], the same word in every lane (one broadcast load)
//   dot       += w[h][i] * x                   u8 * s8, summed in 32 bits: exact  (4 x 2 registers)
//   acc[t][h] += float(dot) * (weight scale [lane] * input scale [t])
//
// Two vectors, because a load of x then serves two products: with one, the load ports (two per
// cycle) limit the loop; with two, the multipliers do. Zen 5, from registers and the L1 cache: 8
// products and 2 multiplications for the scales are 5 cycles for 512 multiply-adds, so at most 102
// multiply-adds per cycle of the 128 that the products alone would allow.
//
// The multiplier's unsigned operand wants weights >= 0: 4-bit codes come with 12 added (from the
// table), 8-bit ones with 128 (from packing). A dot product starts with -offset * (sum of x in the
// group). The order of additions of a row does not depend on the other rows.
#pragma once
#include <cstdint>

#include "kernels/linear/integer_panels.h"
#include "kernels/linear/panel_scales.h"
#include "kernels/simd/simd_int_avx512.h"

namespace lathe {
namespace {

static_assert(kVnniPanelRows == 2 * IntAvx512::kWidth);

// 4-bit weights: [columns / 8][32 rows][4] bytes.
template <int kNumColumns>
struct NibbleQuads {
  using V = IntAvx512;
  static constexpr int kColumns = kNumColumns;
  static constexpr int kCodeBytes = kVnniPanelRows * kColumns / 2;
  V::I w[2][kColumns / 4];

  [[gnu::always_inline]] void decode(const std::byte* codes, V::Table table) {
#pragma GCC unroll 4
    for (int i = 0; i < kColumns / 8; ++i) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const V::I packed = V::load_int(codes + (2 * i + h) * 64);
        w[h][2 * i] = V::lookup_low(table, packed);
        w[h][2 * i + 1] = V::lookup_high(table, packed);
      }
    }
  }
  static V::I start_from(V::I minus_twelve_sums) { return minus_twelve_sums; }
};

// 8-bit weights: [columns / 4][32 rows][4] bytes, 128 added.
template <int kNumColumns>
struct ByteQuads {
  using V = IntAvx512;
  static constexpr int kColumns = kNumColumns;
  static constexpr int kCodeBytes = kVnniPanelRows * kColumns;
  V::I w[2][kColumns / 4];

  [[gnu::always_inline]] void decode(const std::byte* codes, V::Table) {
#pragma GCC unroll 8
    for (int i = 0; i < kColumns / 4; ++i) {
      w[0][i] = V::load_int(codes + 2 * i * 64);
      w[1][i] = V::load_int(codes + (2 * i + 1) * 64);
    }
  }
  // -12 * sum to -128 * sum: times 32 / 3. The division is exact, so it is the multiplication by
  // the inverse of 3 modulo 2^32.
  static V::I start_from(V::I minus_twelve_sums) {
    return _mm512_mullo_epi32(minus_twelve_sums, V::set_int(static_cast<int>(0xaaaaaaabu * 32u)));
  }
};

// starts[t] = -offset * (sum of x over the group), from the pairs of corrections.
template <typename Columns>
void sum_corrections(const int32_t* corrections, int64_t num_rows, int32_t* starts) {
  for (int64_t t = 0; t < num_rows; t += 16) {
    const int64_t count = num_rows - t < 16 ? num_rows - t : 16;
    const __m512i pairs =
        _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), corrections + t);
    const __m512i sums = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
    _mm512_storeu_si512(starts + t, Columns::start_from(sums));
  }
}

// dots[t][h] of kRows rows of x from `codes` on.
template <int kRows, typename Columns>
[[gnu::always_inline]] inline void multiply_group(const Columns& columns, const int8_t* codes,
                                                  const int32_t* starts, __m512i (*dots)[2]) {
#pragma GCC unroll 4
  for (int t = 0; t < kRows; ++t) dots[t][0] = dots[t][1] = _mm512_set1_epi32(starts[t]);
#pragma GCC unroll 8
  for (int i = 0; i < Columns::kColumns / 4; ++i) {
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) {
      const __m512i x = IntAvx512::broadcast4(codes + t * Columns::kColumns + 4 * i);
      dots[t][0] = _mm512_dpbusd_epi32(dots[t][0], columns.w[0][i], x);
      dots[t][1] = _mm512_dpbusd_epi32(dots[t][1], columns.w[1][i], x);
    }
  }
}

[[gnu::always_inline]] inline __m512 add_scaled(__m512 sum, __m512i dot, __m512 w_scale,
                                                __m512 x_scale) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(w_scale, x_scale), sum);
}

// acc [rows, 32] += one group, for the rows [row, row + kRows) of the block.
template <int kRows, typename Columns>
[[gnu::always_inline]] inline void accumulate_group(const Columns& columns, const InputBlock& x,
                                                    const int32_t* starts, int64_t row,
                                                    const __m512* w_scales, float* acc) {
  __m512i dots[kRows][2];
  multiply_group<kRows>(columns, x.codes + row * Columns::kColumns, starts + row, dots);
#pragma GCC unroll 4
  for (int t = 0; t < kRows; ++t) {
    const __m512 x_scale = _mm512_set1_ps(x.scales[row + t]);
    float* sums = acc + (row + t) * kVnniPanelRows;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      _mm512_store_ps(sums + 16 * h,
                      add_scaled(_mm512_load_ps(sums + 16 * h), dots[t][h], w_scales[h], x_scale));
    }
  }
}

// One panel times one block of input rows. kRows > 0: that many, with the sums in registers; 0: any
// number up to kMaxBlockRows, with the sums in `acc` [rows, 32], 64-byte aligned.
template <typename Columns, PanelScale kScale, int kRows>
void multiply_vnni(const Panels& w, int64_t panel, InputBlock x, float* acc) {
  using V = IntAvx512;
  constexpr int64_t kHalfScales = V::kWidth * panel_scale_bytes(kScale);
  const int64_t num_groups = w.k / Columns::kColumns;
  const V::Table table =
      V::load_table(w.element == PanelElement::kE2M1 ? kOffsetE2m1Table : kOffsetInt4Table);
  const std::byte* codes = w.codes + panel * w.code_bytes;
  const std::byte* scales = w.scales + panel * w.scale_bytes;
  __m512 sums[kRows > 0 ? kRows : 1][2] = {};
  if (kRows == 0) {
    for (int64_t i = 0; i < 2 * x.rows; ++i) _mm512_store_ps(acc + 16 * i, _mm512_setzero_ps());
  }
  alignas(64) int32_t starts[kMaxBlockRows];
  for (int64_t g = 0; g < num_groups; ++g) {
    prefetch_codes<Columns::kCodeBytes>(codes);
    sum_corrections<Columns>(x.corrections, kRows > 0 ? kRows : x.rows, starts);
    const __m512 w_scales[2] = {decode_scales<V, kScale>(scales),
                                decode_scales<V, kScale>(scales + kHalfScales)};
    Columns columns;
    columns.decode(codes, table);
    if constexpr (kRows > 0) {
      __m512i dots[kRows][2];
      multiply_group<kRows>(columns, x.codes, starts, dots);
#pragma GCC unroll 4
      for (int t = 0; t < kRows; ++t) {
        const __m512 x_scale = _mm512_set1_ps(x.scales[t]);
        sums[t][0] = add_scaled(sums[t][0], dots[t][0], w_scales[0], x_scale);
        sums[t][1] = add_scaled(sums[t][1], dots[t][1], w_scales[1], x_scale);
      }
    } else {
      int64_t t = 0;
      for (; t + 4 <= x.rows; t += 4) accumulate_group<4>(columns, x, starts, t, w_scales, acc);
      switch (x.rows - t) {
        case 3:
          accumulate_group<3>(columns, x, starts, t, w_scales, acc);
          break;
        case 2:
          accumulate_group<2>(columns, x, starts, t, w_scales, acc);
          break;
        case 1:
          accumulate_group<1>(columns, x, starts, t, w_scales, acc);
          break;
        default:
          break;
      }
    }
    codes += Columns::kCodeBytes;
    scales += 2 * kHalfScales;
    x.codes += x.rows * Columns::kColumns;
    x.scales += x.rows;
    x.corrections += x.rows;
  }
  if constexpr (kRows > 0) {
    for (int t = 0; t < kRows; ++t) {
      _mm512_store_ps(acc + t * kVnniPanelRows, sums[t][0]);
      _mm512_store_ps(acc + t * kVnniPanelRows + 16, sums[t][1]);
    }
  }
}

template <typename Columns, PanelScale kScale>
MultiplyPanel choose_vnni_rows(int64_t num_rows) {
  switch (num_rows) {
    case 1:
      return multiply_vnni<Columns, kScale, 1>;
    case 2:
      return multiply_vnni<Columns, kScale, 2>;
    default:
      return multiply_vnni<Columns, kScale, 0>;
  }
}

template <typename Columns>
MultiplyPanel choose_vnni(PanelScale scale, int64_t num_rows) {
  switch (scale) {
    case PanelScale::kNone:
      return choose_vnni_rows<Columns, PanelScale::kNone>(num_rows);
    case PanelScale::kE8M0:
      return choose_vnni_rows<Columns, PanelScale::kE8M0>(num_rows);
    case PanelScale::kE4M3:
      return choose_vnni_rows<Columns, PanelScale::kE4M3>(num_rows);
    case PanelScale::kBF16:
      return choose_vnni_rows<Columns, PanelScale::kBF16>(num_rows);
    case PanelScale::kF32:
      break;
  }
  return choose_vnni_rows<Columns, PanelScale::kF32>(num_rows);
}

template <typename Columns>
void run_vnni_columns(const LinearArgs& args, Exec& exec) {
  run_panels<IntAvx512, kVnniPanelRows>(args, exec, choose_vnni<Columns>);
}

inline void run_vnni(const LinearArgs& args, Exec& exec) {
  const Panels& w = static_cast<const PanelWeight&>(*args.weight).panels;
  if (w.element == PanelElement::kInt8) {
    if (w.group == 32) return run_vnni_columns<ByteQuads<32>>(args, exec);
    return run_vnni_columns<ByteQuads<16>>(args, exec);
  }
  if (w.group == 32) return run_vnni_columns<NibbleQuads<32>>(args, exec);
  return run_vnni_columns<NibbleQuads<16>>(args, exec);
}

}  // namespace
}  // namespace lathe
