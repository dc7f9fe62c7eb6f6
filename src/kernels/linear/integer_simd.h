// The integer kernel of linear() without VNNI (V is IntAvx2; integer_vnni.h is its counterpart for
// AVX-512).
//
// A weight panel is kWidth output rows. One group of a panel (16 or 32 columns) is decoded into
// registers, four columns of all rows in each; then the rows of x walk past it:
//
//   w[i]     lane r: w[row r][4 i .. 4 i + 3] + 12, unsigned bytes   (4 or 8 registers)
//   x        lane r: x[t][4 i .. 4 i + 3], the same word in every lane (one broadcast load)
//   dot     += w[i] * x                    u8 * s8, in lanes
//   acc[t]  += float(dot) * (weight scale [lane] * input scale [t])
//
// So weights come from memory once for the whole block of rows, decoding costs nothing when there
// are more than a few rows, and a row of y is summed in the same order however many rows there are:
// its bits do not depend on the batch.
//
// Exactness. 12 is added to the weights, so that the multiplier's unsigned operand can hold them; a
// dot product starts with the correction -12 * (sum of x in the group), which the quantizer of x
// has computed. In AVX2's 16-bit lanes (8 steps of two products) the corrected sum is at most
// 8 * 2 * 12 * 128 = 24576: below 32768, and intermediate sums may wrap.
//
// int8 weights: |w| * (x with the sign of w), u8 * s8 in pairs of 16 bits, at most
// 2 * 128 * 127 = 32512, and widened at once.
#pragma once
#include <cstdint>

#include "kernels/linear/integer_panels.h"
#include "kernels/linear/panel_scales.h"

namespace lathe {
namespace {

// kNumColumns columns of all rows of a panel, decoded into registers. dots() multiplies them with
// kRows rows of x in step: with one row after the other the additions of one dot product wait for
// each other longer than the schedulers can look ahead (Zen 3: 8.8 cycles for 256 products with one
// row, 7.5 with two, 7.0 with four).
template <typename V, int kNumColumns>
struct NibbleColumns {
  static constexpr int kColumns = kNumColumns;
  static constexpr int kCodeBytes = V::kWidth * kColumns / 2;
  typename V::I w[kColumns / 4];

  [[gnu::always_inline]] void decode(const std::byte* codes, typename V::Table table) {
#pragma GCC unroll 4
    for (int i = 0; i < kColumns / 8; ++i) {
      const auto packed = V::load_int(codes + i * V::kWidth * 4);
      w[2 * i] = V::lookup_low(table, packed);
      w[2 * i + 1] = V::lookup_high(table, packed);
    }
  }
  template <int kRows>
  [[gnu::always_inline]] void dots(const int8_t* x, const int32_t* corrections,
                                   typename V::I* out) const {
    typename V::Dot sums[kRows];
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) sums[t] = V::start(corrections + t);
#pragma GCC unroll 8
    for (int i = 0; i < kColumns / 4; ++i) {
#pragma GCC unroll 4
      for (int t = 0; t < kRows; ++t) {
        sums[t] = V::step(sums[t], w[i], V::broadcast4(x + t * kColumns + 4 * i));
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) out[t] = V::finish(sums[t]);
  }
};

// int8 weights.
template <typename V, int kNumColumns>
struct ByteColumns {
  static constexpr int kColumns = kNumColumns;
  static constexpr int kCodeBytes = V::kWidth * kColumns;
  typename V::I w[kColumns / 4];

  [[gnu::always_inline]] void decode(const std::byte* codes, typename V::Table) {
#pragma GCC unroll 8
    for (int i = 0; i < kColumns / 4; ++i) w[i] = V::load_int(codes + i * V::kWidth * 4);
  }
  template <int kRows>
  [[gnu::always_inline]] void dots(const int8_t* x, const int32_t*, typename V::I* out) const {
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) out[t] = V::set_int(0);
#pragma GCC unroll 8
    for (int i = 0; i < kColumns / 4; ++i) {
      const auto magnitude = V::abs_bytes(w[i]);
#pragma GCC unroll 4
      for (int t = 0; t < kRows; ++t) {
        out[t] = V::step_bytes(out[t], magnitude, w[i], V::broadcast4(x + t * kColumns + 4 * i));
      }
    }
  }
};

// acc[t] += dot product * w_scale * scales[t] for kRows rows. Inlined, so that the columns stay in
// registers from one call to the next.
template <typename V, int kRows, typename Columns>
[[gnu::always_inline]] inline void accumulate(const Columns& columns, const InputBlock& x,
                                              int64_t row, typename V::F w_scale, float* acc) {
  typename V::I dots[kRows];
  columns.template dots<kRows>(x.codes + row * Columns::kColumns, x.corrections + row, dots);
#pragma GCC unroll 4
  for (int t = 0; t < kRows; ++t) {
    const auto scale = V::mul(w_scale, V::set(x.scales[row + t]));
    float* sum = acc + (row + t) * V::kWidth;
    V::store(sum, V::fma(V::float_from_int(dots[t]), scale, V::load(sum)));
  }
}

// One panel times one block of input rows. kRows > 0: that many, with the sums in registers; 0: any
// number up to kMaxBlockRows, with the sums in `acc` [rows, kWidth].
template <typename V, typename Columns, PanelScale kScale, int kRows>
void multiply_panel(const Panels& w, int64_t panel, InputBlock x, float* acc) {
  using F = typename V::F;
  const int64_t num_groups = w.k / Columns::kColumns;
  const auto table =
      V::load_table(w.element == PanelElement::kE2M1 ? kOffsetE2m1Table : kOffsetInt4Table);
  const std::byte* codes = w.codes + panel * w.code_bytes;
  const std::byte* scales = w.scales + panel * w.scale_bytes;
  F sums[kRows > 0 ? kRows : 1];
  for (F& sum : sums) sum = V::zero();
  if (kRows == 0) {
    for (int64_t t = 0; t < x.rows; ++t) V::store(acc + t * V::kWidth, V::zero());
  }
  for (int64_t g = 0; g < num_groups; ++g) {
    prefetch_codes<Columns::kCodeBytes>(codes);
    const F w_scale = decode_scales<V, kScale>(scales);
    Columns columns;
    columns.decode(codes, table);
    if constexpr (kRows > 0) {
      typename V::I dots[kRows];
      columns.template dots<kRows>(x.codes, x.corrections, dots);
#pragma GCC unroll 4
      for (int t = 0; t < kRows; ++t) {
        const F scale = V::mul(w_scale, V::set(x.scales[t]));
        sums[t] = V::fma(V::float_from_int(dots[t]), scale, sums[t]);
      }
    } else {
      int64_t t = 0;
      for (; t + 4 <= x.rows; t += 4) accumulate<V, 4>(columns, x, t, w_scale, acc);
      if (t + 2 <= x.rows) {
        accumulate<V, 2>(columns, x, t, w_scale, acc);
        t += 2;
      }
      if (t < x.rows) accumulate<V, 1>(columns, x, t, w_scale, acc);
    }
    codes += Columns::kCodeBytes;
    scales += V::kWidth * panel_scale_bytes(kScale);
    x.codes += x.rows * Columns::kColumns;
    x.scales += x.rows;
    x.corrections += x.rows;
  }
  if constexpr (kRows > 0) {
    for (int t = 0; t < kRows; ++t) V::store(acc + t * V::kWidth, sums[t]);
  }
}

template <typename V, typename Columns, PanelScale kScale>
MultiplyPanel choose_rows(int64_t num_rows) {
  switch (num_rows) {
    case 1:
      return multiply_panel<V, Columns, kScale, 1>;
    case 2:
      return multiply_panel<V, Columns, kScale, 2>;
    default:
      return multiply_panel<V, Columns, kScale, 0>;
  }
}

template <typename V, typename Columns>
MultiplyPanel choose_multiply(PanelScale scale, int64_t num_rows) {
  switch (scale) {
    case PanelScale::kNone:
      return choose_rows<V, Columns, PanelScale::kNone>(num_rows);
    case PanelScale::kE8M0:
      return choose_rows<V, Columns, PanelScale::kE8M0>(num_rows);
    case PanelScale::kE4M3:
      return choose_rows<V, Columns, PanelScale::kE4M3>(num_rows);
    case PanelScale::kBF16:
      return choose_rows<V, Columns, PanelScale::kBF16>(num_rows);
    case PanelScale::kF32:
      break;
  }
  return choose_rows<V, Columns, PanelScale::kF32>(num_rows);
}

template <typename V, typename Columns>
void run_columns(const LinearArgs& args, Exec& exec) {
  run_panels<V, V::kWidth>(args, exec, choose_multiply<V, Columns>);
}

template <typename V>
void run_integer(const LinearArgs& args, Exec& exec) {
  const Panels& w = static_cast<const PanelWeight&>(*args.weight).panels;
  if (w.element == PanelElement::kInt8) {
    if (w.group == 32) return run_columns<V, ByteColumns<V, 32>>(args, exec);
    return run_columns<V, ByteColumns<V, 16>>(args, exec);
  }
  if (w.group == 32) return run_columns<V, NibbleColumns<V, 32>>(args, exec);
  return run_columns<V, NibbleColumns<V, 16>>(args, exec);
}

}  // namespace
}  // namespace lathe
