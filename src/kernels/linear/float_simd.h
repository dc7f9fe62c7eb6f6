// The floating-point kernel of linear(), for every vector length (V is IntAvx2 or IntAvx512): dense
// weights, and quantized ones under floating-point activations.
//
// A weight panel is two vectors of output rows. A slab of its columns is decoded to fp32 into
// scratch, once for a whole block of input rows:
//
//   slab  [columns][2 vectors]      w of the panel, fp32                (16 KiB: L1)
//   x     [rows of a block][columns]                                    (96 KiB: L2)
//   acc   [panels of a chunk][rows of a block][2 vectors]               (sums so far)
//
// and multiplied by a register-blocked kernel (kMaxTile rows x 2 vectors; for a few rows, several
// panels at once instead, since one row alone has too few independent additions). Every element of
// y is one chain of fused multiply-adds in the order of k, whatever the blocking: a row has the
// same bits alone and in a batch. Blocking after Goto and van de Geijn, "Anatomy of
// high-performance matrix multiplication" (2008).
#pragma once
#include <cstdint>

#include "kernels/linear/panel_scales.h"
#include "kernels/linear/panels.h"

namespace lathe {
namespace {

// Rows of an input block and columns of a slab, by the sizes in the picture above; few rows take
// short slabs, since several panels' slabs then share the L1 cache.
inline constexpr int64_t kFloatBlockRows = 96;
inline constexpr int64_t kLongSlab = 256;
inline constexpr int64_t kShortSlab = 64;
// Panels that a thread takes at a time: a single row uses four at once (see panels_at_once), and
// eight share a slab of x before it leaves the L2 cache.
inline constexpr int64_t kMinChunkPanels = 4;
inline constexpr int64_t kMaxChunkPanels = 8;

// Bytes ahead of the weights in use that are asked for, see integer_panels.h; half as many, since
// up to four panels are read at once.
inline constexpr int64_t kFloatPrefetchBytes = 4096;

constexpr int64_t element_bytes(PanelElement element) {
  switch (element) {
    case PanelElement::kF32:
      return 4;
    case PanelElement::kBF16:
    case PanelElement::kF16:
      return 2;
    default:
      return 1;  // 8 bits; 4 bits have their own way
  }
}

// Vector `index` of dense weights, to fp32.
template <typename V, PanelElement kElement>
typename V::F load_dense(const std::byte* w, int64_t index) {
  if constexpr (kElement == PanelElement::kBF16) {
    return V::as_float(V::template shift_left<16>(V::load_u16(w + 2 * index * V::kWidth)));
  } else if constexpr (kElement == PanelElement::kF16) {
    return V::load_f16(w + 2 * index * V::kWidth);
  } else {
    static_assert(kElement == PanelElement::kF32);
    return V::load(reinterpret_cast<const float*>(w) + index * V::kWidth);
  }
}

// Columns [begin, end) of one scale group (or of the whole row) of a panel, to fp32.
template <typename V, PanelElement kElement>
void decode_columns(const std::byte* codes, int64_t begin, int64_t end, typename V::F scale0,
                    typename V::F scale1, typename V::Table table, float* out) {
  constexpr int64_t kRows = 2 * V::kWidth;
  if constexpr (kElement == PanelElement::kE2M1 || kElement == PanelElement::kInt4) {
    for (int64_t k = begin; k < end; k += 2, out += 2 * kRows) {
      __builtin_prefetch(codes + k / 2 * kRows + kFloatPrefetchBytes);
      typename V::F values[4];  // two of column k, two of column k + 1
      V::load_nibbles(codes + k / 2 * kRows, table, values);
      V::store(out, V::mul(values[0], scale0));
      V::store(out + V::kWidth, V::mul(values[1], scale1));
      V::store(out + kRows, V::mul(values[2], scale0));
      V::store(out + kRows + V::kWidth, V::mul(values[3], scale1));
    }
  } else {
    for (int64_t k = begin; k < end; ++k, out += kRows) {
      constexpr int64_t kBytes = kRows * element_bytes(kElement);
      for (int64_t i = 0; i < kBytes; i += 64) {
        __builtin_prefetch(codes + k * kBytes + kFloatPrefetchBytes + i);
      }
      typename V::F values[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        [[maybe_unused]] const int64_t index = k * kRows + i * V::kWidth;
        if constexpr (kElement == PanelElement::kInt8) {
          values[i] = V::float_from_int(V::load_s8(codes + index));
        } else if constexpr (kElement == PanelElement::kE4M3) {
          values[i] = V::float_from_e4m3(V::load_u8(codes + index));
        } else {
          values[i] = load_dense<V, kElement>(codes, 2 * k + i);
        }
      }
      if constexpr (kElement == PanelElement::kInt8 || kElement == PanelElement::kE4M3) {
        values[0] = V::mul(values[0], scale0);
        values[1] = V::mul(values[1], scale1);
      }
      V::store(out, values[0]);
      V::store(out + V::kWidth, values[1]);
    }
  }
}

template <typename V, PanelElement kElement>
void decode_slab_of(const Panels& w, int64_t panel, int64_t begin, int64_t end, float* out) {
  constexpr int64_t kRows = 2 * V::kWidth;
  const std::byte* codes = w.codes + panel * w.code_bytes;
  const std::byte* scales = w.scales + panel * w.scale_bytes;
  const auto table = V::load_table(w.element == PanelElement::kE2M1 ? kE2m1Table : kInt4Table);
  while (begin < end) {
    const int64_t g = begin / w.group;
    const int64_t group_end = (g + 1) * w.group < end ? (g + 1) * w.group : end;
    const std::byte* at = scales + g * kRows * panel_scale_bytes(w.scale);
    auto scale0 = decode_scales<V>(w.scale, at);
    auto scale1 = decode_scales<V>(w.scale, at + V::kWidth * panel_scale_bytes(w.scale));
    if (w.element == PanelElement::kE2M1) {  // the table holds values times two
      scale0 = V::mul(scale0, V::set(0.5f));
      scale1 = V::mul(scale1, V::set(0.5f));
    }
    decode_columns<V, kElement>(codes, begin, group_end, scale0, scale1, table, out);
    out += (group_end - begin) * kRows;
    begin = group_end;
  }
}

// Columns [begin, end) of a panel as fp32 [columns][2 * kWidth]: in place when they are fp32
// already, else decoded into scratch. begin and end are even for 4-bit elements.
template <typename V>
const float* decode_slab(const Panels& w, int64_t panel, int64_t begin, int64_t end,
                         float* scratch) {
  switch (w.element) {
    case PanelElement::kF32:
      return reinterpret_cast<const float*>(w.codes + panel * w.code_bytes) + begin * 2 * V::kWidth;
    case PanelElement::kBF16:
      decode_slab_of<V, PanelElement::kBF16>(w, panel, begin, end, scratch);
      break;
    case PanelElement::kF16:
      decode_slab_of<V, PanelElement::kF16>(w, panel, begin, end, scratch);
      break;
    case PanelElement::kE2M1:
    case PanelElement::kInt4:
      decode_slab_of<V, PanelElement::kE2M1>(w, panel, begin, end, scratch);
      break;
    case PanelElement::kInt8:
      decode_slab_of<V, PanelElement::kInt8>(w, panel, begin, end, scratch);
      break;
    case PanelElement::kE4M3:
      decode_slab_of<V, PanelElement::kE4M3>(w, panel, begin, end, scratch);
      break;
  }
  return scratch;
}

// acc[p][t] += sum over columns of x[t][k] * w[p][k], for kPanels panels and kRows rows.
template <typename V, PanelElement kElement, int kRows, int kPanels>
void multiply_tile(const std::byte* const* panels, const float* x, int64_t x_stride,
                   int64_t num_columns, float* acc, int64_t acc_panel_stride) {
  using F = typename V::F;
  F sums[kPanels][kRows][2];
  const std::byte* w[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
    w[p] = panels[p];
#pragma GCC unroll 12
    for (int t = 0; t < kRows; ++t) {
      const float* from = acc + p * acc_panel_stride + t * 2 * V::kWidth;
      sums[p][t][0] = V::load(from);
      sums[p][t][1] = V::load(from + V::kWidth);
    }
  }
  for (int64_t k = 0; k < num_columns; ++k) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      // fp32 is scratch in the L1 cache; the hardware follows four streams of one row well.
      if constexpr (kElement != PanelElement::kF32 && kPanels < 4) {
        __builtin_prefetch(w[p] + 2 * k * V::kWidth * element_bytes(kElement) +
                           kFloatPrefetchBytes);
      }
      const F w0 = load_dense<V, kElement>(w[p], 2 * k);
      const F w1 = load_dense<V, kElement>(w[p], 2 * k + 1);
#pragma GCC unroll 12
      for (int t = 0; t < kRows; ++t) {
        const F value = V::set(x[t * x_stride + k]);
        sums[p][t][0] = V::fma(value, w0, sums[p][t][0]);
        sums[p][t][1] = V::fma(value, w1, sums[p][t][1]);
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 12
    for (int t = 0; t < kRows; ++t) {
      float* to = acc + p * acc_panel_stride + t * 2 * V::kWidth;
      V::store(to, sums[p][t][0]);
      V::store(to + V::kWidth, sums[p][t][1]);
    }
  }
}

using MultiplyTile = void (*)(const std::byte* const* panels, const float* x, int64_t x_stride,
                              int64_t num_columns, float* acc, int64_t acc_panel_stride);

// One panel of fp32.
template <typename V>
MultiplyTile choose_tile(int64_t num_rows) {
  constexpr PanelElement kF32 = PanelElement::kF32;
  static_assert(V::kMaxTile == 6 || V::kMaxTile == 12);
  if constexpr (V::kMaxTile == 12) {
    switch (num_rows) {
      case 7:
        return multiply_tile<V, kF32, 7, 1>;
      case 8:
        return multiply_tile<V, kF32, 8, 1>;
      case 9:
        return multiply_tile<V, kF32, 9, 1>;
      case 10:
        return multiply_tile<V, kF32, 10, 1>;
      case 11:
        return multiply_tile<V, kF32, 11, 1>;
      case 12:
        return multiply_tile<V, kF32, 12, 1>;
      default:
        break;
    }
  }
  switch (num_rows) {
    case 1:
      return multiply_tile<V, kF32, 1, 1>;
    case 2:
      return multiply_tile<V, kF32, 2, 1>;
    case 3:
      return multiply_tile<V, kF32, 3, 1>;
    case 4:
      return multiply_tile<V, kF32, 4, 1>;
    case 5:
      return multiply_tile<V, kF32, 5, 1>;
    default:
      return multiply_tile<V, kF32, 6, 1>;
  }
}

// For a few rows: panels taken at once, so that there are at least eight chains of additions.
inline int64_t panels_at_once(int64_t num_rows) {
  return num_rows == 1 ? 4 : num_rows <= 3 ? 2 : 1;
}

template <typename V, PanelElement kElement>
MultiplyTile choose_few_rows(int64_t num_rows, int64_t num_panels) {
  if (num_rows == 1 && num_panels == 4) return multiply_tile<V, kElement, 1, 4>;
  if (num_rows == 2 && num_panels == 2) return multiply_tile<V, kElement, 2, 2>;
  if (num_rows == 3 && num_panels == 2) return multiply_tile<V, kElement, 3, 2>;
  if (num_rows == 1) return multiply_tile<V, kElement, 1, 1>;
  if (num_rows == 2) return multiply_tile<V, kElement, 2, 1>;
  return multiply_tile<V, kElement, 3, 1>;
}

// Up to three rows are bound by memory: dense weights are converted on their way into the product,
// panel by panel in one stream each.
template <typename V, PanelElement kElement>
void multiply_dense_chunk(const Panels& w, int64_t panel_begin, int64_t num_panels, const float* x,
                          int64_t num_rows, float* acc) {
  const int64_t acc_panel_stride = num_rows * 2 * V::kWidth;
  for (int64_t panel = 0; panel < num_panels;) {
    int64_t at_once = panels_at_once(num_rows);
    if (panel + at_once > num_panels) at_once = 1;
    const std::byte* panels[4];
    for (int64_t p = 0; p < at_once; ++p) {
      panels[p] = w.codes + (panel_begin + panel + p) * w.code_bytes;
    }
    choose_few_rows<V, kElement>(num_rows, at_once)(
        panels, x, w.k, w.k, acc + panel * acc_panel_stride, acc_panel_stride);
    panel += at_once;
  }
}

// One chunk of panels times one block of input rows, slab by slab.
template <typename V>
void multiply_slabs(const Panels& w, int64_t panel_begin, int64_t num_panels, const float* x,
                    int64_t num_rows, float* scratch, float* acc) {
  constexpr int64_t kPanelRows = 2 * V::kWidth;
  const int64_t acc_panel_stride = num_rows * kPanelRows;
  const int64_t slab_columns = num_rows <= 3 ? kShortSlab : kLongSlab;
  for (int64_t begin = 0; begin < w.k; begin += slab_columns) {
    const int64_t columns = w.k - begin < slab_columns ? w.k - begin : slab_columns;
    for (int64_t panel = 0; panel < num_panels;) {
      int64_t at_once = panels_at_once(num_rows);
      if (panel + at_once > num_panels) at_once = 1;
      const std::byte* slabs[4];
      for (int64_t p = 0; p < at_once; ++p) {
        slabs[p] = reinterpret_cast<const std::byte*>(
            decode_slab<V>(w, panel_begin + panel + p, begin, begin + columns,
                           scratch + p * kShortSlab * kPanelRows));
      }
      float* panel_acc = acc + panel * acc_panel_stride;
      panel += at_once;
      if (num_rows <= 3) {
        choose_few_rows<V, PanelElement::kF32>(num_rows, at_once)(slabs, x + begin, w.k, columns,
                                                                  panel_acc, acc_panel_stride);
        continue;
      }
      // Tiles of nearly equal size: 7 rows are 4 + 3, not 6 + 1.
      int64_t tiles = (num_rows + V::kMaxTile - 1) / V::kMaxTile;
      for (int64_t row = 0; row < num_rows; --tiles) {
        const int64_t rows = (num_rows - row + tiles - 1) / tiles;
        choose_tile<V>(rows)(slabs, x + row * w.k + begin, w.k, columns,
                             panel_acc + row * kPanelRows, acc_panel_stride);
        row += rows;
      }
    }
  }
}

// acc [panels][rows][2 * kWidth] = one chunk of panels times one block of input rows.
template <typename V>
void multiply_chunk(const Panels& w, int64_t panel_begin, int64_t num_panels, const float* x,
                    int64_t num_rows, float* scratch, float* acc) {
  for (int64_t i = 0; i < num_panels * num_rows * 2 * V::kWidth; i += V::kWidth) {
    V::store(acc + i, V::zero());
  }
  if (num_rows <= 3 && w.element == PanelElement::kBF16) {
    multiply_dense_chunk<V, PanelElement::kBF16>(w, panel_begin, num_panels, x, num_rows, acc);
  } else if (num_rows <= 3 && w.element == PanelElement::kF16) {
    multiply_dense_chunk<V, PanelElement::kF16>(w, panel_begin, num_panels, x, num_rows, acc);
  } else {
    multiply_slabs<V>(w, panel_begin, num_panels, x, num_rows, scratch, acc);
  }
}

// y of one panel and block: row scale, bias, and the output rows that exist.
template <typename V>
void store_float_panel(const Panels& w, int64_t panel, const float* acc, int64_t num_rows, float* y,
                       int64_t y_stride) {
  constexpr int64_t kPanelRows = 2 * V::kWidth;
  const int64_t first = panel * kPanelRows;
  const int64_t count = w.n - first < kPanelRows ? w.n - first : kPanelRows;
  for (int64_t t = 0; t < num_rows; ++t, acc += kPanelRows) {
    float* to = y + t * y_stride + first;
    alignas(64) float values[kPanelRows];
    float* out = count == kPanelRows ? to : values;
    for (int64_t i = 0; i < kPanelRows; i += V::kWidth) {
      V::store(out + i, V::fma(V::load(acc + i), V::load(w.row_scales + first + i),
                               V::load(w.bias + first + i)));
    }
    if (out == values) {
      for (int64_t i = 0; i < count; ++i) to[i] = values[i];
    }
  }
}

template <typename V>
void run_float(const LinearArgs& args, Exec& exec) {
  constexpr int64_t kPanelRows = 2 * V::kWidth;
  const Panels& w = static_cast<const PanelWeight&>(*args.weight).panels;
  const int64_t m = args.input->m;
  const int64_t num_threads = exec.threads.num_threads();
  int64_t grain = w.num_panels / (8 * num_threads);
  grain = grain < kMinChunkPanels ? kMinChunkPanels : grain;
  grain = grain > kMaxChunkPanels ? kMaxChunkPanels : grain;
  const int64_t block_rows = m < kFloatBlockRows ? m : kFloatBlockRows;
  const int64_t slab_floats = kLongSlab * kPanelRows;
  const int64_t thread_floats = slab_floats + grain * block_rows * kPanelRows;
  const Workspace::Scope scope(exec.workspace);
  auto* buffers = reinterpret_cast<float*>(
      exec.workspace.allocate(num_threads * thread_floats * static_cast<int64_t>(sizeof(float))));
  exec.threads.parallel_for(w.num_panels, grain, [&](int64_t begin, int64_t end, int thread_idx) {
    float* scratch = buffers + thread_idx * thread_floats;
    float* acc = scratch + slab_floats;
    for (int64_t row = 0; row < m; row += block_rows) {
      const int64_t rows = m - row < block_rows ? m - row : block_rows;
      multiply_chunk<V>(w, begin, end - begin, args.input->f32 + row * w.k, rows, scratch, acc);
      for (int64_t panel = begin; panel < end; ++panel) {
        store_float_panel<V>(w, panel, acc + (panel - begin) * rows * kPanelRows, rows,
                             args.y + row * args.y_stride, args.y_stride);
      }
    }
  });
}

}  // namespace
}  // namespace lathe
