// Attention on codes (kv_codes.h), in integers. A block's codes become int16 pairs in scratch, in
// the layout of bf16 (kv_layout.h): once per block and tile, whatever the number of its rows. q
// and, per block, the softmax numerators become int16 too, each row divided by its own largest
// magnitude over 32767, so q K^T and p V are sums of products of pairs that are exact in int32
// (32767 * 127 * 512 dims < 2^31), and the scales follow in fp32:
//   s[row, t]     = q_factor[row] * key_scale[t] * sum_j q16[row, j] * k[t, j]
//   acc[row, j]  += p_factor[row] * sum_t p16[row, t] * v[t, j],  p16 of p[row, t] * value_scale[t]
// Nothing depends on how rows are grouped, and tokens that a row does not see have p16 = 0, which
// no code can make NaN.
//
// Exact rows (sinks) are no part of that: their scores and values are added in fp32.
//
// Error: q and p are off by at most 2^-16 of their row's largest magnitude (in the block, for p),
// 256 times less than bf16 would take from its largest numbers.
//
// C is a set of operations on bytes of one instruction set: attention_avx2.cpp, _avx512.cpp.
#pragma once
#include "kernels/attention/attention_partial.h"
#include "kernels/attention/code_tables.h"
#include "kernels/attention/kv_codes.h"

// The loops over accumulators must be unrolled early, or GCC at -O2 keeps the accumulators in
// memory (10 times slower).
#define LATHE_UNROLL _Pragma("GCC unroll 8")

namespace lathe {
namespace {

// Rows of `width` bytes of codes; each becomes a row of kPieces * width numbers, piece p being
// get(p, row, position in the row). Vectors may reach beyond a piece: they are written in ascending
// order, so what they spoil is written after them, and the scratch is a vector longer.
template <typename C, int kPieces, typename Get>
inline __attribute__((always_inline)) void unpack_rows(int64_t num_rows, int64_t width, Get get,
                                                       int16_t* out) {
  for (int64_t row = 0; row < num_rows; ++row, out += kPieces * width) {
    if (width % C::kBytes == 0) {
      for (int64_t i = 0; i < width; i += C::kBytes) {
        LATHE_UNROLL
        for (int p = 0; p < kPieces; ++p) {
          C::store_widened(out + p * width + i, get(p, row, i));
        }
      }
    } else {
      LATHE_UNROLL
      for (int p = 0; p < kPieces; ++p) {
        for (int64_t i = 0; i < width; i += C::kBytes) {
          C::store_widened(out + p * width + i, get(p, row, i));
        }
      }
    }
  }
}

// One head of one block to int16 (bf16 for fp8), and asks for what lies `ahead` of it.
template <typename C>
void unpack_codes(const AttentionTile& tile, bool is_keys, const std::byte* head, int64_t ahead) {
  const int64_t head_dim = tile.head_dim;
  const KvElement element = tile.element;
  int16_t* out = tile.unpacked;
  const auto* codes = reinterpret_cast<const uint8_t*>(head);
  if (ahead != 0) {
    const int64_t num_bytes = kv_head_bytes(element, head_dim);
    for (int64_t i = 0; i < num_bytes; i += 64) {
      __builtin_prefetch(
          reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(codes) + ahead + i), 0, 3);
    }
  }
  // A row of a plane of n slots: all of it for keys, a pair of tokens for values.
  const int64_t num_rows = is_keys ? 1 : kBlockSize / 2;
  const int64_t slot_bytes = kBlockSize / num_rows;
  switch (element) {
    case KvElement::kF32:
    case KvElement::kBF16:
      break;
    case KvElement::kFp8:
      for (int64_t i = 0; i < kBlockSize * head_dim; i += C::kBytes) {
        C::store_bf16_of_e4m3(out + i, C::load_bytes(codes + i));
      }
      break;
    case KvElement::kInt8:
      for (int64_t i = 0; i < kBlockSize * head_dim; i += C::kBytes) {
        C::store_widened(out + i, C::load_bytes(codes + i));
      }
      break;
    case KvElement::kQ4: {
      const auto table = C::load_table16(kQ4Table);
      const int64_t width = head_dim / 2 * slot_bytes;
      unpack_rows<C, 2>(
          num_rows, width,
          [&](int p, int64_t row, int64_t i) {
            const auto v = C::load_bytes(codes + row * width + i);
            return C::lookup16(table, p == 0 ? C::low_nibbles(v) : C::high_nibbles(v));
          },
          out);
      break;
    }
    case KvElement::kHiggs4: {
      const auto first = C::load_table256(tile.grid->first);
      const auto second = C::load_table256(tile.grid->second);
      const int64_t width = head_dim / 2 * slot_bytes;
      unpack_rows<C, 2>(
          num_rows, width,
          [&](int p, int64_t row, int64_t i) {
            return C::lookup256(p == 0 ? first : second, C::load_bytes(codes + row * width + i));
          },
          out);
      break;
    }
    case KvElement::kHiggs3: {
      const auto first = C::load_table64(tile.grid->first);
      const auto second = C::load_table64(tile.grid->second);
      const uint8_t* high_bits = codes + kBlockSize * head_dim / 4;
      const int64_t width = head_dim / 8 * slot_bytes;  // of an eighth of the slots
      unpack_rows<C, 8>(
          num_rows, width,
          [&](int p, int64_t row, int64_t i) {
            // Slots of quarter q of the codes: nibbles of half q % 2 of the row (low: q < 2).
            const int q = p % 4;
            const auto nibbles = C::load_bytes(codes + (2 * row + q % 2) * width + i);
            const auto bits = C::load_bytes(high_bits + row * width + i);
            const auto code = C::with_high_bits(
                q < 2 ? C::low_nibbles(nibbles) : C::high_nibbles(nibbles), bits, q);
            return C::lookup64(p < 4 ? first : second, code);
          },
          out);
      break;
    }
    case KvElement::kHiggs2: {
      const auto first = C::load_table16(tile.grid->first);
      const auto second = C::load_table16(tile.grid->second);
      const int64_t width = head_dim / 4 * slot_bytes;
      unpack_rows<C, 4>(
          num_rows, width,
          [&](int p, int64_t row, int64_t i) {
            const auto v = C::load_bytes(codes + row * width + i);
            const auto code = p % 2 == 0 ? C::low_nibbles(v) : C::high_nibbles(v);
            return C::lookup16(p < 2 ? first : second, code);
          },
          out);
      break;
    }
  }
}

// c[row, :] += factor[row] * column_scale[:] * sum over pairs of a[row, pair] . b[pair, :]
struct PairProduct {
  const int16_t* a;
  int64_t a_stride;  // numbers
  const int16_t* b;
  int64_t b_stride;  // numbers: 2 * columns of the whole matrix
  int64_t num_pairs;
  const float* factor;        // [num_rows]
  const float* column_scale;  // [num_columns] or null
  float* c;
  int64_t c_stride;
  int64_t num_rows;
  int64_t num_columns;  // a multiple of 8
};

template <typename S, int kRows, int kVectors>
void pair_tile(const PairProduct& p, int64_t row, int64_t column) {
  using I = typename S::I;
  using F = typename S::F;
  constexpr int64_t kW = S::kWidth;
  const int16_t* a = p.a + row * p.a_stride;
  const int16_t* b = p.b + column * 2;
  I sums[kRows][kVectors];
  LATHE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    LATHE_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = S::set_int(0);
  }
  for (int64_t k = 0; k < p.num_pairs; ++k, b += p.b_stride, a += 2) {
    I pairs[kVectors];
    LATHE_UNROLL
    for (int v = 0; v < kVectors; ++v) pairs[v] = S::load_int(b + v * kW * 2);
    LATHE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const I factor = S::broadcast4(a + r * p.a_stride);
      LATHE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = S::add_pair_products(sums[r][v], factor, pairs[v]);
      }
    }
  }
  LATHE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const F factor = S::set(p.factor[row + r]);
    float* c = p.c + (row + r) * p.c_stride + column;
    LATHE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      F x = S::float_from_int(sums[r][v]);
      if (p.column_scale != nullptr) x = S::mul(x, S::load(p.column_scale + column + v * kW));
      S::store(c + v * kW, S::fma(x, factor, S::load(c + v * kW)));
    }
  }
}

template <typename S, int kVectors, int kMaxRows>
void pair_strip(const PairProduct& p, int64_t column) {
  int64_t num_tiles = (p.num_rows + kMaxRows - 1) / kMaxRows;
  for (int64_t row = 0; row < p.num_rows; --num_tiles) {
    const int64_t height = (p.num_rows - row + num_tiles - 1) / num_tiles;
    if (height == 1) pair_tile<S, 1, kVectors>(p, row, column);
    if (height == 2) pair_tile<S, 2, kVectors>(p, row, column);
    if (height == 3) pair_tile<S, 3, kVectors>(p, row, column);
    if constexpr (kMaxRows >= 6) {
      if (height == 4) pair_tile<S, 4, kVectors>(p, row, column);
      if (height == 5) pair_tile<S, 5, kVectors>(p, row, column);
      if (height == 6) pair_tile<S, 6, kVectors>(p, row, column);
    }
    if constexpr (kMaxRows >= 8) {
      if (height == 7) pair_tile<S, 7, kVectors>(p, row, column);
      if (height == 8) pair_tile<S, 8, kVectors>(p, row, column);
    }
    row += height;
  }
}

// Traits::kPairRows is the height of a tile of two vectors that the register file holds; four
// vectors take up to Traits::kWideRows.
template <typename Traits>
void pair_product(const PairProduct& p) {
  using S = typename Traits::Codes;
  constexpr int64_t kW = S::kWidth;
  int64_t column = 0;
  if (Traits::kWideRows >= 6 || p.num_rows <= Traits::kWideRows) {
    for (; column + 4 * kW <= p.num_columns; column += 4 * kW) {
      pair_strip<S, 4, Traits::kWideRows>(p, column);
    }
  }
  for (; column + 2 * kW <= p.num_columns; column += 2 * kW) {
    pair_strip<S, 2, Traits::kPairRows>(p, column);
  }
  for (; column + kW <= p.num_columns; column += kW) pair_strip<S, 1, 6>(p, column);
  if (column < p.num_columns) pair_strip<typename Traits::NarrowCodes, 1, 6>(p, column);
}

inline constexpr float kSmallestRow = 1e-30f;  // below it, a row of q or p is zero

// What int16 numbers are to be multiplied by when the largest of a row has this magnitude, and the
// inverse. A row with a NaN or an infinity has the factor NaN (poison: the sum of its numbers * 0).
inline float int16_factor(float largest, float poison, float& inverse) {
  const bool is_zero = !(largest >= kSmallestRow);
  inverse = is_zero ? 0 : 32767 / largest;
  return (is_zero ? 0 : largest / 32767) + poison;
}

template <typename S>
void quantize_q(const AttentionTile& tile) {
  using F = typename S::F;
  for (int64_t row = 0; row < tile.num_tokens * tile.group; ++row) {
    const float* q = tile.q + row * tile.head_dim;
    F largest = S::zero(), poison = S::zero();
    for (int64_t j = 0; j < tile.head_dim; j += S::kWidth) {
      const F x = S::load(q + j);
      largest = S::max(S::max(x, S::sub(S::zero(), x)), largest);
      poison = S::fma(x, S::zero(), poison);
    }
    float inverse = 0;
    tile.q_factor[row] = int16_factor(S::largest(largest), S::sum(poison), inverse);
    for (int64_t j = 0; j < tile.head_dim; j += S::kWidth) {
      S::store_int16(tile.q16 + row * tile.head_dim + j,
                     S::round_to_int(S::mul(S::load(q + j), S::set(inverse))));
    }
  }
}

// scores [num_rows, kChunk] += q K^T of rows first_row... with one block, but for its first
// num_sinks tokens.
template <typename Traits>
void coded_keys(const AttentionTile& tile, const std::byte* head, int64_t ahead, int64_t num_sinks,
                int64_t first_row, int64_t num_rows, float* scores) {
  using S = typename Traits::Codes;
  unpack_codes<S>(tile, true, head, ahead);
  const int64_t num_groups = kv_scale_groups(tile.element, tile.head_dim);
  const int64_t group_dims = num_groups == 1 ? tile.head_dim : kQ4Group;
  const std::byte* scales = head + kv_scales_offset(tile.element, tile.head_dim);
  for (int64_t g = 0; g < num_groups; ++g) {
    float column_scale[kBlockSize];
    for (int64_t t = 0; t < kBlockSize; t += S::kWidth) {
      S::store(column_scale + t, S::load_bf16(scales + (g * kBlockSize + t) * 2));
    }
    for (int64_t t = 0; t < num_sinks; ++t) column_scale[t] = 0;
    const int64_t begin = g * group_dims;
    const int64_t num_dims =
        tile.head_dim - begin < group_dims ? tile.head_dim - begin : group_dims;
    pair_product<Traits>({.a = tile.q16 + first_row * tile.head_dim + begin,
                          .a_stride = tile.head_dim,
                          .b = tile.unpacked + begin * kBlockSize,
                          .b_stride = 2 * kBlockSize,
                          .num_pairs = num_dims / 2,
                          .factor = tile.q_factor + first_row,
                          .column_scale = column_scale,
                          .c = scores,
                          .c_stride = kChunk,
                          .num_rows = num_rows,
                          .num_columns = kBlockSize});
  }
}

// p [kBlockSize] of one row times the values' scales to int16; positions outside [from, to) are 0.
template <typename S>
inline float quantize_p(const float* p, const float* value_scale, int64_t from, int64_t to,
                        int16_t* p16) {
  using F = typename S::F;
  constexpr int kVectors = static_cast<int>(kBlockSize) / S::kWidth;
  F x[kVectors];
  F largest = S::zero(), poison = S::zero();
  LATHE_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int64_t t = v * S::kWidth;
    x[v] = S::mul(S::load(p + t), S::load(value_scale + t));
    if (from > t || to < t + S::kWidth) x[v] = S::select_range(x[v], S::zero(), from - t, to - t);
    largest = S::max(S::max(x[v], S::sub(S::zero(), x[v])), largest);
    poison = S::fma(x[v], S::zero(), poison);
  }
  float inverse = 0;
  const float factor = int16_factor(S::largest(largest), S::sum(poison), inverse);
  LATHE_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    S::store_int16(p16 + v * S::kWidth, S::round_to_int(S::mul(x[v], S::set(inverse))));
  }
  return factor;
}

// acc [num_rows, head_dim] += p V of one block, for tokens [first, end) of the tile, whose scores
// hold p. see(token) gives the positions of the block that a token sees.
template <typename Traits, typename See>
void coded_values(const AttentionTile& tile, const std::byte* head, int64_t ahead, int64_t first,
                  int64_t end, const float* scores, See see, float* acc) {
  using S = typename Traits::Codes;
  unpack_codes<S>(tile, false, head, ahead);
  const int64_t num_groups = kv_scale_groups(tile.element, tile.head_dim);
  const int64_t group_dims = num_groups == 1 ? tile.head_dim : kQ4Group;
  const std::byte* scales = head + kv_scales_offset(tile.element, tile.head_dim);
  for (int64_t g = 0; g < num_groups; ++g) {
    float value_scale[kBlockSize];
    for (int64_t t = 0; t < kBlockSize; t += S::kWidth) {
      S::store(value_scale + t, S::load_bf16(scales + (g * kBlockSize + t) * 2));
    }
    for (int64_t token = first; token < end; ++token) {
      const auto range = see(token);
      for (int64_t row = token * tile.group; row < (token + 1) * tile.group; ++row) {
        tile.p_factor[row] = quantize_p<S>(scores + row * kChunk, value_scale, range.from, range.to,
                                           tile.p16 + row * kBlockSize);
      }
    }
    const int64_t begin = g * group_dims;
    pair_product<Traits>(
        {.a = tile.p16 + first * tile.group * kBlockSize,
         .a_stride = kBlockSize,
         .b = tile.unpacked + begin * 2,
         .b_stride = 2 * tile.head_dim,
         .num_pairs = kBlockSize / 2,
         .factor = tile.p_factor + first * tile.group,
         .column_scale = nullptr,
         .c = acc + first * tile.group * tile.head_dim + begin,
         .c_stride = tile.head_dim,
         .num_rows = (end - first) * tile.group,
         .num_columns = tile.head_dim - begin < group_dims ? tile.head_dim - begin : group_dims});
  }
}

// scores [num_rows, kChunk] += q K^T of rows first_row... with the exact rows of the sinks.
template <typename S>
void sink_keys(const AttentionTile& tile, int64_t first_row, int64_t num_rows, float* scores) {
  using F = typename S::F;
  const int64_t head_dim = tile.head_dim;
  const auto* keys =
      static_cast<const uint16_t*>(tile.sinks.keys) + tile.kv_head * kLiveSinks * head_dim;
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* q = tile.q + (first_row + row) * head_dim;
    F sums[kLiveSinks];
    LATHE_UNROLL
    for (int t = 0; t < kLiveSinks; ++t) sums[t] = S::zero();
    for (int64_t j = 0; j < head_dim; j += S::kWidth) {
      const F x = S::load(q + j);
      LATHE_UNROLL
      for (int t = 0; t < kLiveSinks; ++t) {
        sums[t] = S::fma(x, S::load_bf16(keys + t * head_dim + j), sums[t]);
      }
    }
    LATHE_UNROLL
    for (int t = 0; t < kLiveSinks; ++t) scores[row * kChunk + t] += S::sum(sums[t]);
  }
}

// acc [head_dim] of one row += p V of the sinks at positions [from, to).
template <typename S>
void sink_values(const AttentionTile& tile, const float* p, int64_t from, int64_t to, float* acc) {
  const auto* values =
      static_cast<const uint16_t*>(tile.sinks.values) + tile.kv_head * kLiveSinks * tile.head_dim;
  for (int64_t t = from; t < to && t < kLiveSinks; ++t) {
    const auto weight = S::set(p[t]);
    const uint16_t* value = values + t * tile.head_dim;
    for (int64_t j = 0; j < tile.head_dim; j += S::kWidth) {
      S::store(acc + j, S::fma(weight, S::load_bf16(value + j), S::load(acc + j)));
    }
  }
}

}  // namespace
}  // namespace lathe
