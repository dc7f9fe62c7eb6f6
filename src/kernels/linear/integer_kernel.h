// The integer kernel of linear(), for every vector length (V is Avx2 or Avx512).
//
// A weight panel is kLanes output rows. One group of a panel (16 or 32 columns) is decoded into
// registers, four columns of all rows in each; then the rows of x walk past it:
//
//   w[i]     lane r: w[row r][4 i .. 4 i + 3], signed bytes          (4 or 8 registers)
//   x        lane r: x[t][4 i .. 4 i + 3] + 128, the same word in every lane (one broadcast load)
//   dot     += x * w[i]                    u8 * s8, in lanes
//   acc[t]  += float(dot) * (weight scale [lane] * input scale [t])
//
// So weights come from memory once for the whole block of rows, decoding costs nothing when there
// are more than a few rows, and a row of y is summed in the same order however many rows there are:
// its bits do not depend on the batch.
//
// Exactness. x is stored as code + 128, so that the multiplier's unsigned operand can hold it; the
// correction -128 * (sum of w in the group) is the start value of the sum. In AVX2's 16-bit lanes
// (8 steps of two products) the corrected sum is at most 8 * 2 * 128 * 12 = 24576 for E2M1 (values
// times two) and 8 * 2 * 128 * 8 = 16384 for INT4; the low nibbles of INT8 reach 4 * 2 * 128 * 15 =
// 15360 in their 4 steps: all below 32768, and intermediate sums may wrap.
#pragma once
#include <cstdint>

#include "kernels/linear/panel_scales.h"
#include "kernels/linear/panels.h"

namespace lathe {
namespace {

// kColumns columns of all rows of a panel, decoded into registers. dots() multiplies them with
// kBatch rows of x in step: with one row after the other the additions of one dot product wait for
// each other longer than the schedulers can look ahead (Zen 3: 8.8 cycles for 256 products with one
// row, 7.5 with two, 7.0 with four).
template <typename V, int kBatch, int kSteps>
void multiply_steps(const uint8_t* x, int64_t stride, const typename V::Int* w,
                    typename V::Dot* sums) {
#pragma GCC unroll 8
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 4
    for (int t = 0; t < kBatch; ++t) {
      sums[t] = V::step(sums[t], V::broadcast4(x + t * stride + 4 * i), w[i]);
    }
  }
}

template <typename V, int kNumColumns>
struct NibbleColumns {
  static constexpr int kColumns = kNumColumns;
  static constexpr int kCodeBytes = V::kLanes * kColumns / 2;
  static constexpr int kBatch = 4;
  typename V::Int w[kColumns / 4];
  typename V::Dot correction;

  void decode(const std::byte* codes, typename V::Table table) {
#pragma GCC unroll 4
    for (int i = 0; i < kColumns / 8; ++i) {
      const auto packed = V::load_int(codes + i * V::kLanes * 4);
      w[2 * i] = V::lookup_low(table, packed);
      w[2 * i + 1] = V::lookup_high(table, packed);
    }
    correction = V::template start<kColumns / 4>(w);
  }
  template <int kRows>
  void dots(const uint8_t* x, int64_t stride, typename V::Int* out) const {
    typename V::Dot sums[kRows];
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) sums[t] = correction;
    multiply_steps<V, kRows, kColumns / 4>(x, stride, w, sums);
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) out[t] = V::finish(sums[t]);
  }
};

// Bytes, where the machine multiplies them without saturating.
template <typename V, int kNumColumns>
struct ByteColumns {
  static constexpr int kColumns = kNumColumns;
  static constexpr int kCodeBytes = V::kLanes * kColumns;
  static constexpr int kBatch = 4;
  typename V::Int w[kColumns / 4];
  typename V::Dot correction;

  void decode(const std::byte* codes, typename V::Table) {
#pragma GCC unroll 8
    for (int i = 0; i < kColumns / 4; ++i) w[i] = V::load_int(codes + i * V::kLanes * 4);
    correction = V::template start<kColumns / 4>(w);
  }
  template <int kRows>
  void dots(const uint8_t* x, int64_t stride, typename V::Int* out) const {
    typename V::Dot sums[kRows];
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) sums[t] = correction;
    multiply_steps<V, kRows, kColumns / 4>(x, stride, w, sums);
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) out[t] = V::finish(sums[t]);
  }
};

// Bytes as low + 16 * high, with low in 0..15 and high in -8..7.
template <typename V>
struct SplitByteColumns {
  static constexpr int kColumns = 16;
  static constexpr int kCodeBytes = V::kLanes * kColumns;
  static constexpr int kBatch = 2;
  typename V::Int low[4], high[4];
  typename V::Dot low_correction, high_correction;

  void decode(const std::byte* codes, typename V::Table table) {
    const auto identity = V::load_table(kUInt4Table);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto packed = V::load_int(codes + i * V::kLanes * 4);
      low[i] = V::lookup_low(identity, packed);
      high[i] = V::lookup_high(table, packed);
    }
    low_correction = V::template start<4>(low);
    high_correction = V::template start<4>(high);
  }
  template <int kRows>
  void dots(const uint8_t* x, int64_t stride, typename V::Int* out) const {
    typename V::Dot low_sums[kRows], high_sums[kRows];
#pragma GCC unroll 2
    for (int t = 0; t < kRows; ++t) {
      low_sums[t] = low_correction;
      high_sums[t] = high_correction;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
      for (int t = 0; t < kRows; ++t) {
        const auto word = V::broadcast4(x + t * stride + 4 * i);
        low_sums[t] = V::step(low_sums[t], word, low[i]);
        high_sums[t] = V::step(high_sums[t], word, high[i]);
      }
    }
#pragma GCC unroll 2
    for (int t = 0; t < kRows; ++t) out[t] = V::finish_nibbles(low_sums[t], high_sums[t]);
  }
};

// acc[t] += dot product * w_scale * x_scales[t] for kRows rows.
template <typename V, int kRows, typename Columns>
void accumulate(const Columns& columns, const uint8_t* x, int64_t stride, typename V::Float w_scale,
                const float* x_scales, float* acc) {
  typename V::Int dots[kRows];
  columns.template dots<kRows>(x, stride, dots);
#pragma GCC unroll 4
  for (int t = 0; t < kRows; ++t) {
    const auto scale = V::mul(w_scale, V::set1(x_scales[t]));
    float* sum = acc + t * V::kLanes;
    V::store(sum, V::fma(V::float_from_int(dots[t]), scale, V::load(sum)));
  }
}

// One panel times one block of `num_rows` input rows. kRows > 0: that many, with the sums in
// registers; 0: any number up to kMaxBlockRows, with the sums in `acc` [num_rows, kLanes].
template <typename V, typename Columns, int kGroup, PanelScale kScale, int kRows>
void multiply_panel(const Panels& w, int64_t panel, const uint8_t* x, const float* x_scales,
                    int64_t num_rows, float* acc) {
  using Float = typename V::Float;
  const int64_t num_groups = w.k / kGroup;
  const int64_t rows = kRows > 0 ? kRows : num_rows;
  const auto table = V::load_table(w.element == PanelElement::kE2M1 ? kE2m1Table : kInt4Table);
  const std::byte* codes = w.codes + panel * w.code_bytes;
  const std::byte* scales = w.scales + panel * w.scale_bytes;
  Float sums[kRows > 0 ? kRows : 1];
  for (Float& sum : sums) sum = V::zero();
  if (kRows == 0) {
    for (int64_t t = 0; t < rows; ++t) V::store(acc + t * V::kLanes, V::zero());
  }

  for (int64_t g = 0; g < num_groups; ++g) {
    const Float w_scale = decode_scales<V, kScale>(scales);
    scales += V::kLanes * panel_scale_bytes(kScale);
    for (int part = 0; part < kGroup; part += Columns::kColumns) {
      Columns columns;
      columns.decode(codes, table);
      codes += Columns::kCodeBytes;
      if constexpr (kRows > 0) {
        typename V::Int dots[kRows];
        columns.template dots<kRows>(x + part, kGroup, dots);
#pragma GCC unroll 4
        for (int t = 0; t < kRows; ++t) {
          const Float scale = V::mul(w_scale, V::set1(x_scales[t]));
          sums[t] = V::fma(V::float_from_int(dots[t]), scale, sums[t]);
        }
      } else {
        int64_t t = 0;
        for (; t + Columns::kBatch <= rows; t += Columns::kBatch) {
          accumulate<V, Columns::kBatch>(columns, x + t * kGroup + part, kGroup, w_scale,
                                         x_scales + t, acc + t * V::kLanes);
        }
        for (; t < rows; ++t) {
          accumulate<V, 1>(columns, x + t * kGroup + part, kGroup, w_scale, x_scales + t,
                           acc + t * V::kLanes);
        }
      }
    }
    x += rows * kGroup;
    x_scales += rows;
  }
  if constexpr (kRows > 0) {
    for (int t = 0; t < kRows; ++t) V::store(acc + t * V::kLanes, sums[t]);
  }
}

// y of one panel and block: row scale, bias, and the lanes that exist.
template <typename V>
void store_panel(const float* acc, int64_t num_rows, const float* row_scales, const float* bias,
                 int64_t num_lanes, float* y, int64_t y_stride) {
  const auto scale = V::load(row_scales);
  const auto offset = V::load(bias);
  for (int64_t t = 0; t < num_rows; ++t, y += y_stride, acc += V::kLanes) {
    const auto result = V::fma(V::load(acc), scale, offset);
    if (num_lanes == V::kLanes) {
      V::store(y, result);
    } else {
      float lanes[V::kLanes];
      V::store(lanes, result);
      for (int64_t i = 0; i < num_lanes; ++i) y[i] = lanes[i];
    }
  }
}

using MultiplyPanel = void (*)(const Panels& w, int64_t panel, const uint8_t* x,
                               const float* x_scales, int64_t num_rows, float* acc);

template <typename V, typename Columns, int kGroup, PanelScale kScale>
MultiplyPanel choose_rows(int64_t num_rows) {
  switch (num_rows) {
    case 1:
      return multiply_panel<V, Columns, kGroup, kScale, 1>;
    case 2:
      return multiply_panel<V, Columns, kGroup, kScale, 2>;
    default:
      return multiply_panel<V, Columns, kGroup, kScale, 0>;
  }
}

template <typename V, typename Columns, int kGroup>
MultiplyPanel choose_scale(PanelScale scale, int64_t num_rows) {
  switch (scale) {
    case PanelScale::kNone:
      return choose_rows<V, Columns, kGroup, PanelScale::kNone>(num_rows);
    case PanelScale::kE8M0:
      return choose_rows<V, Columns, kGroup, PanelScale::kE8M0>(num_rows);
    case PanelScale::kE4M3:
      return choose_rows<V, Columns, kGroup, PanelScale::kE4M3>(num_rows);
    case PanelScale::kBF16:
      return choose_rows<V, Columns, kGroup, PanelScale::kBF16>(num_rows);
    case PanelScale::kF32:
      break;
  }
  return choose_rows<V, Columns, kGroup, PanelScale::kF32>(num_rows);
}

template <typename V, int kGroup>
MultiplyPanel choose_multiply(const Panels& w, int64_t num_rows) {
  if (w.element != PanelElement::kInt8) {
    return choose_scale<V, NibbleColumns<V, kGroup>, kGroup>(w.scale, num_rows);
  }
  if constexpr (V::kMultipliesAnyByte) {
    return choose_scale<V, ByteColumns<V, kGroup>, kGroup>(w.scale, num_rows);
  } else {
    return choose_scale<V, SplitByteColumns<V>, kGroup>(w.scale, num_rows);
  }
}

// Panels that a thread takes at a time: small enough that two threads finish together, large
// enough (for many input rows) that a block of input rows is used several times while it is in L2.
inline constexpr int64_t kChunksPerThread = 16;

template <typename V>
void run_integer(const LinearArgs& args, Exec& exec) {
  const Panels& w = static_cast<const PanelWeight&>(*args.weight).panels;
  const LinearInput& input = *args.input;
  const int64_t m = input.m;
  const int64_t block_rows = input.block_rows;
  const int64_t num_chunks = kChunksPerThread * exec.threads.num_threads();
  int64_t grain = w.num_panels / num_chunks;
  if (grain < 1) grain = 1;
  exec.threads.parallel_for(w.num_panels, grain, [&](int64_t begin, int64_t end, int) {
    alignas(64) float acc[kMaxBlockRows * V::kLanes];
    for (int64_t row = 0; row < m; row += block_rows) {
      const int64_t rows = m - row < block_rows ? m - row : block_rows;
      const MultiplyPanel multiply =
          w.group == 32 ? choose_multiply<V, 32>(w, rows) : choose_multiply<V, 16>(w, rows);
      for (int64_t panel = begin; panel < end; ++panel) {
        multiply(w, panel, input.codes + row * w.k, input.scales + row * (w.k / w.group), rows,
                 acc);
        const int64_t first = panel * V::kLanes;
        const int64_t lanes = w.n - first < V::kLanes ? w.n - first : V::kLanes;
        store_panel<V>(acc, rows, w.row_scales + first, w.bias + first, lanes,
                       args.y + row * args.y_stride + first, args.y_stride);
      }
    }
  });
}

}  // namespace
}  // namespace lathe
