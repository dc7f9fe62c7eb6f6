// The floating-point kernel of linear() for AMX, whose products are of bf16.
//
// A number is two of bf16, high + low, of which 2^-17 of it is missing at most (2^-18.6 as the root
// of the mean square): what adding some thousands of products in fp32 loses, too. Weights that bf16
// holds exactly (bf16 ones, E2M1 times most scales) are one number. The products of two low halves,
// 2^-16 at most, are left out:
//
//   x w = (x_high + x_low) w                                two products for exact weights
//   x w = x_high w_high + x_low w_high + x_high w_low       three for the others
//
// all added to the same sums. For ComputeType::kF32 x is all of its three numbers, and the weights
// are exact. On Sapphire Rapids a product in fp32 by AVX-512 takes ten times as
// long as two of these.
//
//   x      [row tile][k / 32][high, low, ...][16][32]     bf16, made once for all threads
//   slab   [columns / 32][high, (low)][16][32 rows][2]    bf16 of a panel: in place, or decoded
//   acc    [panels of a chunk][row tile][16][32]          fp32, sums so far
//
// Every element of y is one chain of additions in the order of k, whatever the blocking: a row has
// the same bits alone and in a batch.
#include "kernels/linear/float_simd.h"
#include "kernels/simd/amx_tiles.h"
#include "kernels/simd/simd_int_avx512.h"

namespace lathe {
namespace {

using V = IntAvx512;

static_assert(kAmxColumns == kTileColumns);
constexpr int64_t kPanelRows = 32;
constexpr int64_t kStepElements = kTileColumns * kPanelRows;  // of a slab: 32 columns
constexpr int64_t kAccTile = kTileRows * kPanelRows;
// Two row tiles' x for a slab are 16 KiB (L1: 48) and serve all panels of a chunk, whose slabs and
// sums (8 x 8 or 16 KiB, 8 x 64 KiB at 512 rows) stay in L2 (2 MiB), as does x (256 KiB). The
// rows are many because the weights come from memory once for all of them.
constexpr int64_t kSlabColumns = 128;
constexpr int64_t kAmxBlockRows = 512;

int64_t num_tiles(int64_t num_rows) { return (num_rows + kTileRows - 1) / kTileRows; }

// One tile of the rows of x, padded with zero rows.
template <int kTerms>
void split_rows(const float* x, int64_t num_rows, int64_t k, int64_t tile, uint16_t* out) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    const int64_t row = tile * kTileRows + r;
    uint16_t* to = out + tile * kTileRows * k * kTerms + r * kTileColumns;
    for (int64_t col = 0; col < k; col += kTileColumns, to += kTerms * kTileElements) {
      if (row < num_rows) {
        const float* from = x + row * k + col;
        split_bf16<kTerms>(V::load(from), V::load(from + 16), to, kTileElements);
      } else {
        for (int term = 0; term < kTerms; ++term) {
          _mm512_storeu_si512(to + term * kTileElements, _mm512_setzero_si512());
        }
      }
    }
  }
}

// Columns [begin, end) of a panel of E2M1, multiples of 32, whose products with their scales are
// exact in bf16, so that their upper halves are all of them.
template <PanelScale kScale>
void decode_exact(const Panels& w, int64_t panel, int64_t begin, int64_t end, uint16_t* out) {
  const __m512 table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                      -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
  const std::byte* codes = w.codes + panel * w.code_bytes + begin / 2 * kPanelRows;
  const std::byte* scales =
      w.scales + panel * w.scale_bytes + begin / w.group * kPanelRows * panel_scale_bytes(kScale);
  for (int64_t col = begin; col < end; col += w.group) {
    __m512 scale[2];
    for (int h = 0; h < 2; ++h, scales += 16 * panel_scale_bytes(kScale)) {
      scale[h] = decode_scales<V, kScale>(scales);
    }
    for (int64_t i = 0; i < w.group / 2; ++i, codes += kPanelRows, out += 2 * kPanelRows) {
      __builtin_prefetch(codes + kFloatPrefetchBytes);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m512i bytes = V::load_u8(codes + 16 * h);
        const __m512i upper = _mm512_srli_epi32(bytes, 4);
        _mm512_store_si512(
            out + 32 * h, pair_upper(_mm512_mul_ps(_mm512_permutexvar_ps(bytes, table), scale[h]),
                                     _mm512_mul_ps(_mm512_permutexvar_ps(upper, table), scale[h])));
      }
    }
  }
}

// fp32 [columns][32 rows] to slab form in two terms.
void split_slab(const float* from, int64_t columns, uint16_t* out) {
  for (int64_t col = 0; col < columns; col += 2, from += 2 * kPanelRows) {
    uint16_t* to = out + col / kTileColumns * 2 * kStepElements + col % kTileColumns * kPanelRows;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const auto even = split_terms(V::load(from + 16 * h));
      const auto odd = split_terms(V::load(from + kPanelRows + 16 * h));
      _mm512_store_si512(to + 32 * h, pair_upper(even.high, odd.high));
      _mm512_store_si512(to + kStepElements + 32 * h, pair_upper(even.low, odd.low));
    }
  }
}

// Columns [begin, end) of a panel as a slab; `floats` is scratch for weights in two terms. Weights
// that are read once stay where they are; for more, a copy is what fetches them best.
const uint16_t* slab_of(const Panels& w, int64_t panel, int64_t begin, int64_t end, bool once,
                        float* floats, uint16_t* out) {
  if (w.pairs) {
    const auto* from =
        reinterpret_cast<const uint16_t*>(w.codes + panel * w.code_bytes) + begin * kPanelRows;
    if (once) return from;
    for (int64_t i = 0; i < (end - begin) * kPanelRows; i += 32) {
      _mm512_store_si512(out + i, _mm512_load_si512(from + i));
    }
  } else if (!w.exact_bf16) {
    split_slab(decode_slab<V>(w, panel, begin, end, floats), end - begin, out);
  } else if (w.scale == PanelScale::kE8M0) {
    decode_exact<PanelScale::kE8M0>(w, panel, begin, end, out);
  } else {
    decode_exact<PanelScale::kE4M3>(w, panel, begin, end, out);
  }
  return out;
}

// acc += x * slab for one tile of rows (kTwo: two, tile_stride apart) and one panel. x: at the
// slab's first column. kTerms of x meet kWeightTerms of the weights.
template <bool kTwo, int kTerms, int kWeightTerms>
void multiply_tiles(const uint16_t* x, int64_t tile_stride, const uint16_t* slab, int64_t columns,
                    float* acc) {
  constexpr int kBytes = kPanelRows * 4;  // of a row of acc, and of a pair of columns
  finish_stores();
  _tile_loadd(0, acc, kBytes);
  _tile_loadd(1, acc + 16, kBytes);
  if constexpr (kTwo) {
    _tile_loadd(2, acc + kAccTile, kBytes);
    _tile_loadd(3, acc + kAccTile + 16, kBytes);
  }
  const auto multiply = [](const uint16_t* upper, const uint16_t* lower) {
    _tile_loadd(4, upper, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwo) {
      _tile_loadd(5, lower, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  for (int64_t col = 0; col < columns; col += kTileColumns, x += kTerms * kTileElements) {
    if constexpr (!kTwo && kWeightTerms == 1) {  // few rows: the weights come from memory
      for (int64_t i = 0; i < kStepElements; i += 32) {
        __builtin_prefetch(slab + i + kFloatPrefetchBytes / 2);
      }
    }
    _tile_loadd(6, slab, kBytes);
    _tile_loadd(7, slab + 32, kBytes);
#pragma GCC unroll 3
    for (int term = 0; term < kTerms; ++term) {
      multiply(x + term * kTileElements, x + tile_stride + term * kTileElements);
    }
    slab += kStepElements;
    if constexpr (kWeightTerms == 2) {
      _tile_loadd(6, slab, kBytes);
      _tile_loadd(7, slab + 32, kBytes);
      multiply(x, x + tile_stride);
      slab += kStepElements;
    }
  }
  _tile_stored(0, acc, kBytes);
  _tile_stored(1, acc + 16, kBytes);
  if constexpr (kTwo) {
    _tile_stored(2, acc + kAccTile, kBytes);
    _tile_stored(3, acc + kAccTile + 16, kBytes);
  }
}

// What a thread works with.
struct Scratch {
  float* floats;    // [kSlabColumns][32]
  uint16_t* slabs;  // [panels of a chunk][2][kSlabColumns][32]
  float* acc;

  static int64_t num_floats(int64_t num_panels, int64_t num_rows) {
    return kSlabColumns * kPanelRows * (1 + num_panels) +
           num_panels * num_tiles(num_rows) * kAccTile;
  }
  Scratch(float* memory, int64_t num_panels)
      : floats(memory),
        slabs(reinterpret_cast<uint16_t*>(memory + kSlabColumns * kPanelRows)),
        acc(memory + kSlabColumns * kPanelRows * (1 + num_panels)) {}
};

// scratch.acc [panels][rows, padded to tiles][32] = one chunk of panels times one block of rows.
template <int kTerms, int kWeightTerms>
void multiply_chunk(const Panels& w, int64_t panel_begin, int64_t num_panels, const uint16_t* x,
                    int64_t num_rows, const Scratch& scratch, TileBlock& tiles) {
  const int64_t tile_count = num_tiles(num_rows);
  const int64_t tile_stride = kTileRows * w.k * kTerms;
  const int64_t panel_floats = tile_count * kAccTile;
  for (int64_t i = 0; i < num_panels * panel_floats; i += 16) {
    V::store(scratch.acc + i, V::zero());
  }
  const bool once = tile_count == 1;
  const int64_t slab_columns = w.pairs && once ? w.k : kSlabColumns;
  for (int64_t begin = 0; begin < w.k; begin += slab_columns) {
    const int64_t columns = w.k - begin < slab_columns ? w.k - begin : slab_columns;
    const uint16_t* slabs[kMaxChunkPanels];
    for (int64_t p = 0; p < num_panels; ++p) {
      slabs[p] = slab_of(w, panel_begin + p, begin, begin + columns, once, scratch.floats,
                         scratch.slabs + p * 2 * kSlabColumns * kPanelRows);
    }
    const uint16_t* from = x + begin * kTileRows * kTerms;
    for (int64_t tile = 0; tile < tile_count; tile += 2) {
      const bool two = tile + 2 <= tile_count;
      // Fewer rows take fewer cycles, which counts when a single tile is all there is.
      if (two) tiles.set_rows(kTileRows, kTileRows);
      if (tile_count == 1) tiles.set_rows(num_rows, 0);
      for (int64_t p = 0; p < num_panels; ++p) {
        (two ? multiply_tiles<true, kTerms, kWeightTerms>
             : multiply_tiles<false, kTerms, kWeightTerms>)(from + tile * tile_stride, tile_stride,
                                                            slabs[p], columns,
                                                            scratch.acc + p * panel_floats +
                                                                tile * kAccTile);
      }
    }
  }
}

template <int kTerms, int kWeightTerms>
void run(const LinearArgs& args, Exec& exec) {
  const Panels& w = static_cast<const PanelWeight&>(*args.weight).panels;
  const int64_t m = args.input->m;
  const int64_t num_threads = exec.threads.num_threads();
  int64_t grain = w.num_panels / (8 * num_threads);
  grain = grain < 1 ? 1 : grain;
  grain = grain > kMaxChunkPanels ? kMaxChunkPanels : grain;
  const int64_t block_rows = m < kAmxBlockRows ? m : kAmxBlockRows;
  const int64_t thread_floats = Scratch::num_floats(grain, block_rows);
  const Workspace::Scope scope(exec.workspace);
  auto* x = exec.workspace.allocate_as<uint16_t>(num_tiles(block_rows) * kTileRows * w.k * kTerms);
  auto* memory = exec.workspace.allocate_as<float>(num_threads * thread_floats);
  for (int64_t row = 0; row < m; row += block_rows) {
    const int64_t rows = m - row < block_rows ? m - row : block_rows;
    exec.threads.parallel_for(num_tiles(rows), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t tile = begin; tile < end; ++tile) {
        split_rows<kTerms>(args.input->f32 + row * w.k, rows, w.k, tile, x);
      }
    });
    exec.threads.parallel_for(w.num_panels, grain, [&](int64_t begin, int64_t end, int thread_idx) {
      const Scratch scratch(memory + thread_idx * thread_floats, grain);
      TileBlock tiles;
      multiply_chunk<kTerms, kWeightTerms>(w, begin, end - begin, x, rows, scratch, tiles);
      for (int64_t panel = begin; panel < end; ++panel) {
        store_float_panel<V>(w, panel, scratch.acc + (panel - begin) * num_tiles(rows) * kAccTile,
                             rows, args.y + row * args.y_stride, args.y_stride);
      }
    });
  }
}

}  // namespace

void linear_float_amx(const LinearArgs& args, Exec& exec) {
  const Panels& w = static_cast<const PanelWeight&>(*args.weight).panels;
  if (!w.exact_bf16) return run<2, 2>(args, exec);
  if (w.input_terms == 2) return run<2, 1>(args, exec);
  run<3, 1>(args, exec);
}

}  // namespace lathe
