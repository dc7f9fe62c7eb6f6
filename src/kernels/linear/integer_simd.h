// The integer kernel of linear(), for every vector length (V is IntAvx2 or IntAvx512).
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
// int8 weights and x are widened to 16 bits instead (two columns in a word): as fast as halving the
// weights into nibbles, and simpler.
#pragma once
#include <cstdint>

#include "kernels/linear/panel_scales.h"
#include "kernels/linear/panels.h"

namespace lathe {
namespace {

// kNumColumns columns of all rows of a panel, decoded into registers. dots() multiplies them with
// kRows rows of x in step: with one row after the other the additions of one dot product wait for
// each other longer than the schedulers can look ahead (Zen 3: 8.8 cycles for 256 products with one
// row, 7.5 with two, 7.0 with four).
template <typename V, int kNumColumns>
struct NibbleColumns {
  using Code = int8_t;  // of x
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
  [[gnu::always_inline]] void dots(const Code* x, const int32_t* corrections,
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

// int8 weights, in 16 bits. 32 columns are 16 registers, more than there are: the compiler keeps
// some in the L1 cache.
template <typename V, int kNumColumns>
struct WideColumns {
  using Code = int16_t;
  static constexpr int kColumns = kNumColumns;
  static constexpr int kCodeBytes = V::kWidth * kColumns;
  typename V::I w[kColumns / 2];

  [[gnu::always_inline]] void decode(const std::byte* codes, typename V::Table) {
#pragma GCC unroll 16
    for (int i = 0; i < kColumns / 2; ++i) w[i] = V::load_s8_as_s16(codes + i * V::kWidth * 2);
  }
  template <int kRows>
  [[gnu::always_inline]] void dots(const Code* x, const int32_t*, typename V::I* out) const {
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) out[t] = V::set_int(0);
#pragma GCC unroll 16
    for (int i = 0; i < kColumns / 2; ++i) {
#pragma GCC unroll 4
      for (int t = 0; t < kRows; ++t) {
        out[t] = V::step_wide(out[t], w[i], V::broadcast4(x + t * kColumns + 2 * i));
      }
    }
  }
};

// A block of input rows.
template <typename Columns>
struct InputBlock {
  const typename Columns::Code* codes;  // [groups][rows][columns]
  const float* scales;                  // [groups][rows]
  const int32_t* corrections;           // [groups][rows]
  int64_t rows;
};

// acc[t] += dot product * w_scale * scales[t] for kRows rows. Inlined, so that the columns stay in
// registers from one call to the next.
template <typename V, int kRows, typename Columns>
[[gnu::always_inline]] inline void accumulate(const Columns& columns, const InputBlock<Columns>& x,
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
void multiply_panel(const Panels& w, int64_t panel, InputBlock<Columns> x, float* acc) {
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

// y of one panel and block: row scale, bias, and the lanes that exist.
template <typename V>
void store_panel(const float* acc, int64_t num_rows, const float* row_scales, const float* bias,
                 int64_t num_lanes, float* y, int64_t y_stride) {
  const auto scale = V::load(row_scales);
  const auto offset = V::load(bias);
  for (int64_t t = 0; t < num_rows; ++t, y += y_stride, acc += V::kWidth) {
    const auto result = V::fma(V::load(acc), scale, offset);
    if (num_lanes == V::kWidth) {
      V::store(y, result);
    } else {
      float lanes[V::kWidth];
      V::store(lanes, result);
      for (int64_t i = 0; i < num_lanes; ++i) y[i] = lanes[i];
    }
  }
}

template <typename Columns>
using MultiplyPanel = void (*)(const Panels& w, int64_t panel, InputBlock<Columns> x, float* acc);

template <typename V, typename Columns, PanelScale kScale>
MultiplyPanel<Columns> choose_rows(int64_t num_rows) {
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
MultiplyPanel<Columns> choose_multiply(PanelScale scale, int64_t num_rows) {
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

// Panels that a thread takes at a time: small enough that two threads finish together, large
// enough (for many input rows) that a block of input rows is used several times while it is in L2.
inline constexpr int64_t kChunksPerThread = 16;

template <typename V, typename Columns>
void run_columns(const LinearArgs& args, const typename Columns::Code* codes, Exec& exec) {
  const Panels& w = static_cast<const PanelWeight&>(*args.weight).panels;
  const LinearInput& input = *args.input;
  const int64_t m = input.m;
  const int64_t block_rows = input.block_rows;
  const int64_t num_groups = w.k / Columns::kColumns;
  const int64_t num_chunks = kChunksPerThread * exec.threads.num_threads();
  const int64_t grain = w.num_panels < num_chunks ? 1 : w.num_panels / num_chunks;
  exec.threads.parallel_for(w.num_panels, grain, [&](int64_t begin, int64_t end, int) {
    alignas(64) float acc[kMaxBlockRows * V::kWidth];
    for (int64_t row = 0; row < m; row += block_rows) {
      const InputBlock<Columns> x{codes + row * w.k, input.scales + row * num_groups,
                                  input.corrections + row * num_groups,
                                  m - row < block_rows ? m - row : block_rows};
      const MultiplyPanel<Columns> multiply = choose_multiply<V, Columns>(w.scale, x.rows);
      for (int64_t panel = begin; panel < end; ++panel) {
        multiply(w, panel, x, acc);
        const int64_t first = panel * V::kWidth;
        const int64_t lanes = w.n - first < V::kWidth ? w.n - first : V::kWidth;
        store_panel<V>(acc, x.rows, w.row_scales + first, w.bias + first, lanes,
                       args.y + row * args.y_stride + first, args.y_stride);
      }
    }
  });
}

template <typename V>
void run_integer(const LinearArgs& args, Exec& exec) {
  const Panels& w = static_cast<const PanelWeight&>(*args.weight).panels;
  const LinearInput& input = *args.input;
  if (w.element == PanelElement::kInt8) {
    if (w.group == 32) return run_columns<V, WideColumns<V, 32>>(args, input.wide_codes, exec);
    return run_columns<V, WideColumns<V, 16>>(args, input.wide_codes, exec);
  }
  if (w.group == 32) return run_columns<V, NibbleColumns<V, 32>>(args, input.codes, exec);
  return run_columns<V, NibbleColumns<V, 16>>(args, input.codes, exec);
}

}  // namespace
}  // namespace lathe
