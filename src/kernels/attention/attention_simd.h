// Partial attention on vectors: scores = q K^T, softmax numerators, acc = P V. Both products are
//   c[row, :] += sum_k a[row, k] * b[k, :]
// with b a block of keys (k: dims, columns: tokens) or values (k: tokens, columns: dims), whose
// rows the layout makes contiguous: a tile of kRows x kVectors accumulators stays in registers.
#pragma once
#include "kernels/attention/attention_codes_simd.h"
#include "kernels/attention/attention_partial.h"
#include "kernels/simd/exp_simd.h"

namespace lathe {
namespace {

// c[r][v] += a[r] * b[v], with load(v) giving b[v]. Whatever is fewer, rows or columns, is held in
// registers beside the accumulators.
template <typename S, int kRows, int kVectors, typename Load>
inline __attribute__((always_inline)) void multiply_add(const float* a, int64_t a_stride, Load load,
                                                        typename S::F (&c)[kRows][kVectors]) {
  using F = typename S::F;
  if constexpr (kRows < kVectors) {
    F factors[kRows];
    LATHE_UNROLL
    for (int r = 0; r < kRows; ++r) factors[r] = S::set(a[r * a_stride]);
    LATHE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const F b = load(v);
      LATHE_UNROLL
      for (int r = 0; r < kRows; ++r) c[r][v] = S::fma(factors[r], b, c[r][v]);
    }
  } else {
    F b[kVectors];
    LATHE_UNROLL
    for (int v = 0; v < kVectors; ++v) b[v] = load(v);
    LATHE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const F factor = S::set(a[r * a_stride]);
      LATHE_UNROLL
      for (int v = 0; v < kVectors; ++v) c[r][v] = S::fma(factor, b[v], c[r][v]);
    }
  }
}

// Asks for num_bytes from address on.
inline __attribute__((always_inline)) void prefetch(const char* address, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch(address + i, 0, 3);
}

// a: [kRows, a_stride], its column k meets row k of b. b: row k has kVectors * kWidth columns at
// k * b_stride elements (f32), or is the half of the pairs at k / 2 * b_stride pairs (bf16).
// `ahead` is added to the addresses in b to prefetch what will be read next; 0: nothing.
template <typename S, KvElement kElement, int kRows, int kVectors>
void product_tile(const float* a, int64_t a_stride, const void* b, int64_t b_stride, int64_t begin,
                  int64_t end, int64_t ahead, float* c, int64_t c_stride) {
  using F = typename S::F;
  constexpr int64_t kW = S::kWidth;
  F sums[kRows][kVectors];
  LATHE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    LATHE_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = S::load(c + r * c_stride + v * kW);
  }
  if constexpr (kElement == KvElement::kF32) {
    const float* row = static_cast<const float*>(b) + begin * b_stride;
    for (int64_t k = begin; k < end; ++k, row += b_stride) {
      if (ahead != 0) prefetch(reinterpret_cast<const char*>(row) + ahead, kVectors * kW * 4);
      multiply_add<S>(
          a + k, a_stride, [&](int v) { return S::load(row + v * kW); }, sums);
    }
  } else {
    const uint16_t* pairs = static_cast<const uint16_t*>(b) + begin / 2 * b_stride * 2;
    const auto first = [&](int v) { return S::first_of_pairs(S::load_pairs(pairs + v * kW * 2)); };
    const auto second = [&](int v) {
      return S::second_of_pairs(S::load_pairs(pairs + v * kW * 2));
    };
    int64_t k = begin;
    if (k % 2 != 0 && k < end) {
      multiply_add<S>(a + k, a_stride, second, sums);
      ++k;
      pairs += b_stride * 2;
    }
    for (; k + 2 <= end; k += 2, pairs += b_stride * 2) {
      if (ahead != 0) prefetch(reinterpret_cast<const char*>(pairs) + ahead, kVectors * kW * 4);
      multiply_add<S>(a + k, a_stride, first, sums);
      // Hides from the compiler that the same pairs are read again: it would keep them in registers
      // that the accumulators need.
      asm("" : "+r"(pairs));
      multiply_add<S>(a + k + 1, a_stride, second, sums);
    }
    if (k < end) multiply_add<S>(a + k, a_stride, first, sums);
  }
  LATHE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    LATHE_UNROLL
    for (int v = 0; v < kVectors; ++v) S::store(c + r * c_stride + v * kW, sums[r][v]);
  }
}

struct Product {
  const float* a;
  int64_t a_stride;
  const void* b;
  int64_t b_stride;
  int64_t begin, end;  // of k
  int64_t ahead;       // see product_tile
  float* c;
  int64_t c_stride;
  int64_t num_rows;
  int64_t num_columns;  // a multiple of 8
};

// Where there is no such unit.
struct NoMatrix {
  static bool multiply(const Product&) { return false; }
};

template <typename S, KvElement kElement, int kRows, int kVectors>
inline void product_rows(const Product& p, int64_t row, int64_t column) {
  // A column is one float, or one pair of bf16: 4 bytes either way.
  product_tile<S, kElement, kRows, kVectors>(
      p.a + row * p.a_stride, p.a_stride, static_cast<const char*>(p.b) + column * 4, p.b_stride,
      p.begin, p.end, row == 0 ? p.ahead : 0, p.c + row * p.c_stride + column, p.c_stride);
}

// All rows of one strip of columns, in tiles of about the same height, at most kMaxRows: a low one
// could not hide the latency of the multiply-add.
template <typename S, KvElement kElement, int kVectors, int kMaxRows>
void product_strip(const Product& p, int64_t column) {
  int64_t num_tiles = (p.num_rows + kMaxRows - 1) / kMaxRows;
  for (int64_t row = 0; row < p.num_rows; --num_tiles) {
    const int64_t height = (p.num_rows - row + num_tiles - 1) / num_tiles;
    if (height == 1) product_rows<S, kElement, 1, kVectors>(p, row, column);
    if (height == 2) product_rows<S, kElement, 2, kVectors>(p, row, column);
    if (height == 3) product_rows<S, kElement, 3, kVectors>(p, row, column);
    if constexpr (kMaxRows == 6) {
      if (height == 4) product_rows<S, kElement, 4, kVectors>(p, row, column);
      if (height == 5) product_rows<S, kElement, 5, kVectors>(p, row, column);
      if (height == 6) product_rows<S, kElement, 6, kVectors>(p, row, column);
    }
    row += height;
  }
}

// Traits has the vector type Simd; Narrow, eight wide, for the last columns; kVectors, the width of
// a tile of six rows that the register file holds; and Matrix, which takes products of some shapes
// in bf16, whatever their number of rows. Up to three rows take four vectors.
template <typename Traits, KvElement kElement>
void product(const Product& p, [[maybe_unused]] typename Traits::Matrix& matrix) {
  using S = typename Traits::Simd;
  constexpr int64_t kW = S::kWidth;
  int64_t column = 0;
  if constexpr (kElement == KvElement::kBF16) {
    if (matrix.multiply(p)) return;
  }
  if (p.num_rows <= 3) {
    for (; column + 4 * kW <= p.num_columns; column += 4 * kW) {
      product_strip<S, kElement, 4, 3>(p, column);
    }
  }
  for (; column + Traits::kVectors * kW <= p.num_columns; column += Traits::kVectors * kW) {
    product_strip<S, kElement, Traits::kVectors, 6>(p, column);
  }
  if constexpr (Traits::kVectors > 2) {  // a block's 32 keys are two vectors of AVX-512
    for (; column + 2 * kW <= p.num_columns; column += 2 * kW) {
      product_strip<S, kElement, 2, 6>(p, column);
    }
  }
  for (; column + kW <= p.num_columns; column += kW) {
    product_strip<S, kElement, 1, 6>(p, column);
  }
  if (column < p.num_columns) product_strip<typename Traits::Narrow, kElement, 1, 6>(p, column);
}

// The positions that a token sees, within the chunk [begin, begin + kChunk), counted from begin.
struct Visible {
  int64_t from, to;  // from >= to: nothing
};

inline Visible visible(const AttentionTile& tile, int64_t token, int64_t chunk_begin) {
  const int64_t position = tile.first_position + token;
  int64_t from = 0;
  if (tile.sliding_window > 0) from = position - tile.sliding_window + 1 - chunk_begin;
  const int64_t to = position + 1 - chunk_begin;
  return {from < 0 ? 0 : from, to < kChunk ? to : kChunk};
}

// Tokens of block `block` of a chunk that have exact rows.
inline int64_t sinks_in(const AttentionTile& tile, int64_t chunk, int64_t block) {
  return tile.sinks.keys != nullptr && chunk == 0 && block == 0 ? kLiveSinks : 0;
}

// In bytes; the hardware cannot guess where the next block lies.
inline int64_t distance(const void* from, const void* to) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from));
}

// Scores of one row become exp(score - m); returns m and their sum l.
template <typename S>
inline void softmax_row(float* scores, Visible see, float softcap, float& m, float& l) {
  using F = typename S::F;
  constexpr int64_t kW = S::kWidth;
  const F minus_infinity = S::set(-__builtin_inff());
  const int64_t begin = see.from / kW * kW;
  F largest = minus_infinity;
  for (int64_t j = begin; j < see.to; j += kW) {
    F s = S::load(scores + j);
    if (softcap > 0) {
      s = S::mul(S::set(softcap), tanh_of<S>(S::mul(s, S::set(1 / softcap))));
    }
    if (j < see.from || j + kW > see.to) {
      s = S::select_range(s, minus_infinity, see.from - j, see.to - j);
    }
    S::store(scores + j, s);
    largest = S::max(s, largest);  // passes over NaN, which shows up in the sum
  }
  m = S::largest(largest);
  // With no score above -infinity every weight is 0.
  const F base = S::set(m == -__builtin_inff() ? 0.0f : m);
  F sum = S::zero();
  for (int64_t j = begin; j < see.to; j += kW) {
    const F p = exp_of<S>(S::sub(S::load(scores + j), base));
    S::store(scores + j, p);
    sum = S::add(sum, p);
  }
  l = S::sum(sum);
}

// C and S of one row (attention.h), turned to the middle of a block.
template <typename S>
void turn_to_middle(const float* from, const float* middle, int64_t half, float* to) {
  const auto turn = [&](int64_t j, const auto& load, const auto& store) {
    const auto c = load(from + j), s = load(from + half + j);
    const auto cos = load(middle + j), sin = load(middle + half + j);
    store(to + j, S::fma(c, cos, S::mul(s, sin)));
    store(to + half + j, S::fmsub(s, cos, S::mul(c, sin)));
  };
  int64_t j = 0;
  for (; j + S::kWidth <= half; j += S::kWidth) turn(j, S::load, S::store);
  if (j == half) return;
  const int64_t rest = half - j;
  turn(
      j, [&](const float* p) { return S::load_first(p, rest); },
      [&](float* p, typename S::F x) { S::store_first(p, x, rest); });
}

// scores [kRows, kChunk] of a block += those of its keys' offset. turned: [kRows, rotary_dim].
template <typename S, int kRows>
void add_turned(const float* turned, const KeyOffset& key, float* scores) {
  using F = typename S::F;
  constexpr int64_t kHalfBlock = kBlockSize / 2;
  const int64_t half = key.rotary_dim / 2;
  for (int64_t at = 0; at < kHalfBlock; at += S::kWidth) {
    F even[kRows], odd[kRows];
    LATHE_UNROLL
    for (int r = 0; r < kRows; ++r) even[r] = odd[r] = S::zero();
    const float* cos = key.from_middle + at;
    const float* sin = cos + half * kHalfBlock;
    for (int64_t j = 0; j < half; ++j, cos += kHalfBlock, sin += kHalfBlock) {
      const F c = S::load(cos), s = S::load(sin);
      LATHE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float* row = turned + r * key.rotary_dim + j;
        even[r] = S::fma(S::set(row[0]), c, even[r]);
        odd[r] = S::fma(S::set(row[half]), s, odd[r]);
      }
    }
    LATHE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float* behind = scores + r * kChunk + kHalfBlock + at;
      float* before = scores + r * kChunk + kHalfBlock - at - S::kWidth;
      S::store(behind, S::add(S::load(behind), S::add(even[r], odd[r])));
      S::store(before, S::add(S::load(before), S::reverse(S::sub(even[r], odd[r]))));
    }
  }
}

// The first kMaxRows of so many rows.
template <typename S, int kMaxRows>
void add_turned_rows(int64_t num_rows, const float* turned, const KeyOffset& key, float* scores) {
  if (num_rows >= kMaxRows) {
    add_turned<S, kMaxRows>(turned, key, scores);
  } else if constexpr (kMaxRows > 1) {
    add_turned_rows<S, kMaxRows - 1>(num_rows, turned, key, scores);
  }
}

// scores of rows [first, first + num_rows) and block `block` of the sequence += those of the keys'
// offset.
template <typename S>
void add_key_offset(const AttentionTile& tile, int64_t block, int64_t first, int64_t num_rows,
                    float* scores) {
  const KeyOffset& key = *tile.key_offset;
  const int64_t rotary_dim = key.rotary_dim;
  float* turned = tile.offset_turned + first * rotary_dim;
  for (int64_t row = 0; row < num_rows; ++row) {
    turn_to_middle<S>(tile.offset_q + (first + row) * rotary_dim, key.middles + block * rotary_dim,
                      rotary_dim / 2, turned + row * rotary_dim);
  }
  constexpr int kMaxRows = S::kWidth == 16 ? 8 : 4;  // two accumulators each
  for (int64_t row = 0; row < num_rows; row += kMaxRows) {
    add_turned_rows<S, kMaxRows>(num_rows - row, turned + row * rotary_dim, key,
                                 scores + row * kChunk);
  }
}

// How a block is read: numbers where they lie; E4M3 by way of bf16 in scratch; codes as integers.
enum class BlockKind { kF32, kBF16, kE4M3, kCodes };

template <typename Traits, BlockKind kKind>
void partial_of(const AttentionTile& tile, int64_t chunk, const AttentionState& result) {
  using S = typename Traits::Simd;
  using Codes = typename Traits::Codes;
  constexpr KvElement kNumbers = kKind == BlockKind::kF32 ? KvElement::kF32 : KvElement::kBF16;
  const int64_t chunk_begin = chunk * kChunk;
  const int64_t group = tile.group;
  const int64_t head_dim = tile.head_dim;
  const int64_t head_bytes = tile.kv_head * kv_head_bytes(tile.element, head_dim);
  const int64_t first_block = visible(tile, 0, chunk_begin).from / kBlockSize;
  const int64_t end_block =
      (visible(tile, tile.num_tokens - 1, chunk_begin).to + kBlockSize - 1) / kBlockSize;
  if constexpr (kKind == BlockKind::kCodes) quantize_q<typename Traits::NarrowCodes>(tile);
  typename Traits::Matrix matrix;

  // Tokens [first, end) see something of block b; both grow with b.
  int64_t first = 0;
  int64_t end = 0;
  for (int64_t b = first_block; b < end_block; ++b) {
    const int64_t block_begin = b * kBlockSize;
    while (first < tile.num_tokens && visible(tile, first, chunk_begin).to <= block_begin) ++first;
    if (end < first) end = first;
    while (end < tile.num_tokens &&
           visible(tile, end, chunk_begin).from < block_begin + kBlockSize) {
      ++end;
    }
    if (first == end) continue;
    const KvBlockView& view = tile.blocks[chunk_begin / kBlockSize + b];
    int64_t ahead = b + 1 < end_block ? distance(view.keys, (&view + 1)->keys)
                                      : distance(view.keys, (&view - b + first_block)->values);
    float* scores = tile.scores + first * group * kChunk + block_begin;
    const bool has_offset = tile.key_offset != nullptr;
    for (int64_t row = 0; row < (end - first) * group; ++row) {
      const auto before = S::set(has_offset ? tile.offset_constant[first * group + row] : 0.0f);
      for (int64_t j = 0; j < kBlockSize; j += S::kWidth) {
        S::store(scores + row * kChunk + j, before);
      }
    }
    if (has_offset) {
      add_key_offset<S>(tile, chunk_begin / kBlockSize + b, first * group, (end - first) * group,
                        scores);
    }
    const std::byte* keys = static_cast<const std::byte*>(view.keys) + head_bytes;
    if constexpr (kKind == BlockKind::kCodes) {
      const int64_t num_sinks = sinks_in(tile, chunk, b);
      coded_keys<Traits>(tile, keys, ahead, num_sinks, first * group, (end - first) * group,
                         scores);
      if (num_sinks > 0) {
        sink_keys<typename Traits::NarrowCodes>(tile, first * group, (end - first) * group, scores);
      }
    } else {
      if constexpr (kKind == BlockKind::kE4M3) {
        unpack_codes<Codes>(tile, true, keys, ahead);
        ahead = 0;
      }
      product<Traits, kNumbers>(
          {.a = tile.q + first * group * head_dim,
           .a_stride = head_dim,
           .b = kKind == BlockKind::kE4M3 ? static_cast<const void*>(tile.unpacked) : keys,
           .b_stride = kBlockSize,
           .begin = 0,
           .end = head_dim,
           .ahead = ahead,
           .c = scores,
           .c_stride = kChunk,
           .num_rows = (end - first) * group,
           .num_columns = kBlockSize},
          matrix);
    }
  }

  for (int64_t token = 0; token < tile.num_tokens; ++token) {
    const Visible see = visible(tile, token, chunk_begin);
    for (int64_t row = token * group; row < (token + 1) * group; ++row) {
      if (see.from >= see.to) {
        result.l[row] = -1;
        continue;
      }
      softmax_row<S>(tile.scores + row * kChunk, see, tile.softcap, result.m[row], result.l[row]);
      for (int64_t j = 0; j < head_dim; ++j) result.acc[row * head_dim + j] = 0;
    }
  }

  first = 0;
  for (int64_t b = first_block; b < end_block; ++b) {
    const int64_t block_begin = b * kBlockSize;
    const KvBlockView& view = tile.blocks[chunk_begin / kBlockSize + b];
    int64_t ahead = b + 1 < end_block ? distance(view.values, (&view + 1)->values) : 0;
    while (first < tile.num_tokens && visible(tile, first, chunk_begin).to <= block_begin) ++first;
    const std::byte* values = static_cast<const std::byte*>(view.values) + head_bytes;
    int64_t token = first;
    if constexpr (kKind == BlockKind::kCodes) {
      while (token < tile.num_tokens &&
             visible(tile, token, chunk_begin).from < block_begin + kBlockSize) {
        ++token;
      }
      if (token == first) continue;
      const int64_t num_sinks = sinks_in(tile, chunk, b);
      for (int64_t row = first * group; num_sinks > 0 && row < token * group; ++row) {
        const Visible see = visible(tile, row / group, chunk_begin);
        sink_values<typename Traits::NarrowCodes>(tile, tile.scores + row * kChunk, see.from,
                                                  see.to, result.acc + row * head_dim);
      }
      coded_values<Traits>(
          tile, values, ahead, first, token, tile.scores + block_begin,
          [&](int64_t t) {
            const Visible see = visible(tile, t, chunk_begin);
            const int64_t from = see.from - block_begin;
            return Visible{from < num_sinks ? num_sinks : from, see.to - block_begin};
          },
          result.acc);
      continue;
    }
    if constexpr (kKind == BlockKind::kE4M3) {
      unpack_codes<Codes>(tile, false, values, ahead);
      ahead = 0;
    }
    while (token < tile.num_tokens) {
      const Visible see = visible(tile, token, chunk_begin);
      if (see.from >= block_begin + kBlockSize) break;
      // Tokens that see the same part of the block (mostly all of it) go together. A row must not
      // meet a value that it does not see, not even with weight 0: it may be NaN.
      const int64_t k_begin = see.from > block_begin ? see.from - block_begin : 0;
      const int64_t k_end = see.to < block_begin + kBlockSize ? see.to - block_begin : kBlockSize;
      int64_t run = token + 1;
      while (run < tile.num_tokens && k_begin == 0 && k_end == kBlockSize &&
             visible(tile, run, chunk_begin).from <= block_begin) {
        ++run;
      }
      product<Traits, kNumbers>(
          {.a = tile.scores + token * group * kChunk + block_begin,
           .a_stride = kChunk,
           .b = kKind == BlockKind::kE4M3 ? static_cast<const void*>(tile.unpacked) : values,
           .b_stride = head_dim,
           .begin = k_begin,
           .end = k_end,
           .ahead = token == first ? ahead : 0,
           .c = result.acc + token * group * head_dim,
           .c_stride = head_dim,
           .num_rows = (run - token) * group,
           .num_columns = head_dim},
          matrix);
      token = run;
    }
  }
}

template <typename Traits>
void partial_simd(const AttentionTile& tile, int64_t chunk, const AttentionState& result) {
  switch (tile.element) {
    case KvElement::kF32:
      return partial_of<Traits, BlockKind::kF32>(tile, chunk, result);
    case KvElement::kBF16:
      return partial_of<Traits, BlockKind::kBF16>(tile, chunk, result);
    case KvElement::kFp8:
      return partial_of<Traits, BlockKind::kE4M3>(tile, chunk, result);
    default:
      return partial_of<Traits, BlockKind::kCodes>(tile, chunk, result);
  }
}

// head_dim is a multiple of 8, so eight lanes need no tail; merging is rare.
template <typename Narrow>
void merge_simd(const AttentionState& total, const AttentionState& part, int64_t num_rows,
                int64_t head_dim) {
  using F = typename Narrow::F;
  constexpr float kMinusInfinity = -__builtin_inff();
  for (int64_t row = 0; row < num_rows; ++row) {
    float* acc = total.acc + row * head_dim;
    const float* other = part.acc + row * head_dim;
    if (part.l[row] < 0) continue;
    if (total.l[row] < 0) {
      total.m[row] = part.m[row];
      total.l[row] = part.l[row];
      for (int64_t j = 0; j < head_dim; ++j) acc[j] = other[j];
      continue;
    }
    const float m1 = total.m[row];
    const float m2 = part.m[row];
    const float m = m1 > m2 ? m1 : m2;
    const F base = Narrow::set(m == kMinusInfinity ? 0.0f : m);
    const F f1 = exp_of<Narrow>(Narrow::sub(Narrow::set(m1), base));
    const F f2 = exp_of<Narrow>(Narrow::sub(Narrow::set(m2), base));
    const F l =
        Narrow::fma(f1, Narrow::set(total.l[row]), Narrow::mul(f2, Narrow::set(part.l[row])));
    Narrow::store_first(total.l + row, l, 1);
    total.m[row] = m;
    for (int64_t j = 0; j < head_dim; j += Narrow::kWidth) {
      Narrow::store(acc + j, Narrow::fma(f1, Narrow::load(acc + j),
                                         Narrow::mul(f2, Narrow::load(other + j))));
    }
  }
}

}  // namespace
}  // namespace lathe
