// What the integer kernels of linear() share: panels of weights times blocks of input rows, spread
// over the threads.
#pragma once
#include <cstdint>

#include "kernels/linear/panels.h"

namespace lathe {
namespace {

// A block of input rows; see LinearInput.
struct InputBlock {
  const int8_t* codes;         // [groups][rows][columns]
  const float* scales;         // [groups][rows]
  const int32_t* corrections;  // [groups][rows]
  int64_t rows;
};

// acc [rows of x, rows of the panel] = one panel times one block of input rows.
using MultiplyPanel = void (*)(const Panels& w, int64_t panel, InputBlock x, float* acc);

// Bytes ahead of the codes in use that a kernel asks for. The hardware's prefetchers give up at
// every page and start anew for every panel; without this a core waited for memory more than half
// of its time at 16 rows (Zen 5, weights from memory, 17920 x 1536, one thread: 16 rows 2.4 ms,
// with 1, 2, 4, 8, 16 KiB 1.55, 1.38, 1.31, 1.29, 1.35 ms; one row 0.42 ms, 0.44, 0.42, 0.39, 0.35,
// 0.41).
inline constexpr int64_t kPrefetchBytes = 8192;

template <int kCodeBytes>  // of a group of a panel
[[gnu::always_inline]] inline void prefetch_codes(const std::byte* codes) {
#pragma GCC unroll 16
  for (int i = 0; i < kCodeBytes; i += 64) __builtin_prefetch(codes + kPrefetchBytes + i);
}

// y of one panel and block: row scale, bias, and the lanes that exist.
template <typename V, int kPanelRows>
void store_panel(const float* acc, int64_t num_rows, const float* row_scales, const float* bias,
                 int64_t num_lanes, float* y, int64_t y_stride) {
  for (int64_t t = 0; t < num_rows; ++t, y += y_stride, acc += kPanelRows) {
    float lanes[kPanelRows];
    float* out = num_lanes == kPanelRows ? y : lanes;
#pragma GCC unroll 2
    for (int i = 0; i < kPanelRows; i += V::kWidth) {
      V::store(out + i, V::fma(V::load(acc + i), V::load(row_scales + i), V::load(bias + i)));
    }
    if (out == lanes) {
      for (int64_t i = 0; i < num_lanes; ++i) y[i] = lanes[i];
    }
  }
}

// Panels that a thread takes at a time: small enough that two threads finish together, large
// enough (for many input rows) that a block of input rows is used several times while it is in L2.
inline constexpr int64_t kChunksPerThread = 16;
// A chunk of a small weight should still be a stream that is worth prefetching, with two chunks for
// a thread at least.
inline constexpr int64_t kChunkBytes = int64_t{96} << 10;

inline int64_t choose_grain(const Panels& w, int64_t num_threads) {
  int64_t grain = w.num_panels / (kChunksPerThread * num_threads);
  const int64_t stream = kChunkBytes / w.code_bytes;
  const int64_t half = w.num_panels / (2 * num_threads);
  if (grain < stream) grain = stream < half ? stream : half;
  return grain < 1 ? 1 : grain;
}

// choose(scale, num_rows) is the MultiplyPanel for a block of num_rows.
template <typename V, int kPanelRows, typename Choose>
void run_panels(const LinearArgs& args, Exec& exec, Choose choose) {
  const Panels& w = static_cast<const PanelWeight&>(*args.weight).panels;
  const LinearInput& input = *args.input;
  const int64_t m = input.m;
  const int64_t block_rows = input.block_rows;
  const int64_t num_groups = w.k / w.group;
  const int64_t grain = choose_grain(w, exec.threads.num_threads());
  exec.threads.parallel_for(w.num_panels, grain, [&](int64_t begin, int64_t end, int) {
    alignas(64) float acc[kMaxBlockRows * kPanelRows];
    for (int64_t row = 0; row < m; row += block_rows) {
      const InputBlock x{input.codes + row * w.k, input.scales + row * num_groups,
                         input.corrections + row * num_groups,
                         m - row < block_rows ? m - row : block_rows};
      const MultiplyPanel multiply = choose(w.scale, x.rows);
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * kPanelRows;
        // Wanted behind the product; read only then, they take a tenth of the time of one row.
        for (int i = 0; i < kPanelRows; i += 16) {
          __builtin_prefetch(w.row_scales + first + i);
          __builtin_prefetch(w.bias + first + i);
        }
        multiply(w, panel, x, acc);
        const int64_t lanes = w.n - first < kPanelRows ? w.n - first : kPanelRows;
        store_panel<V, kPanelRows>(acc, x.rows, w.row_scales + first, w.bias + first, lanes,
                                   args.y + row * args.y_stride + first, args.y_stride);
      }
    }
  });
}

}  // namespace
}  // namespace lathe
