// encode_kv_rows() and decode_kv_rows() in vectors, HIGGS rows (V is KvAvx2 or KvAvx512). A row at
// a time, through buffers that stay in the L1 cache:
//
//   encode   residual u -> per head: norm, scale, butterflies, factor -> y of the whole row
//            -> search: kWidth tuples in a vector, all points one after the other -> bytes
//   decode   bytes -> points -> butterflies, factor -> + prediction
//
// Every sum is that of quant/row_codes.h in the same order, so the bits are the reference's.
// Uniform rows are left to the reference: they are there for comparison.
#pragma once
#include <immintrin.h>

#include "kernels/hadamard/hadamard_simd.h"
#include "kernels/kv_rows/kv_rows.h"

namespace lathe {
namespace {

// Room behind a row for the last vector of tuples.
inline constexpr int64_t kRowPadding = 64;

constexpr int64_t scale_bytes_of(RowScale scale) {
  return scale == RowScale::kLog8 ? 1 : scale == RowScale::kF16 ? 2 : 4;
}

// --- codes in bytes ------------------------------------------------------------------------------

// Eight codes of kBits are kBits bytes.
template <int kBits>
constexpr uint64_t kCodeMask = 0x0101010101010101u * ((1u << kBits) - 1);

template <int kBits>
void unpack_bytes(const std::byte* in, int64_t num_codes, uint8_t* codes) {
  for (int64_t i = 0; i < num_codes; i += 8, in += kBits) {
    uint64_t bits = 0;
    __builtin_memcpy(&bits, in, kBits);
    bits = _pdep_u64(bits, kCodeMask<kBits>);
    __builtin_memcpy(codes + i, &bits, 8);
  }
}

template <int kBits>
void pack_bytes(const uint8_t* codes, int64_t num_codes, std::byte* out) {
  for (int64_t i = 0; i < num_codes; i += 8, out += kBits) {
    uint64_t bits;
    __builtin_memcpy(&bits, codes + i, 8);
    bits = _pext_u64(bits, kCodeMask<kBits>);
    __builtin_memcpy(out, &bits, kBits);
  }
}

// num_codes codes, padded to eight in `codes`. A head of 8 numbers in 4 dimensions has 2 codes: a
// row need not have a multiple of eight, then the plain loops do it.
inline void unpack_row(const std::byte* in, int64_t num_codes, int bits, uint8_t* codes) {
  if (num_codes % 8 != 0) return unpack_codes(in, num_codes, bits, codes);
  switch (bits) {
    case 2:
      return unpack_bytes<2>(in, num_codes, codes);
    case 3:
      return unpack_bytes<3>(in, num_codes, codes);
    case 4:
      return unpack_bytes<4>(in, num_codes, codes);
    case 6:
      return unpack_bytes<6>(in, num_codes, codes);
    default:
      return unpack_bytes<8>(in, num_codes, codes);
  }
}

inline void pack_row(const uint8_t* codes, int64_t num_codes, int bits, std::byte* out) {
  if (num_codes % 8 != 0) return pack_codes(codes, num_codes, bits, out);
  switch (bits) {
    case 2:
      return pack_bytes<2>(codes, num_codes, out);
    case 3:
      return pack_bytes<3>(codes, num_codes, out);
    case 4:
      return pack_bytes<4>(codes, num_codes, out);
    case 6:
      return pack_bytes<6>(codes, num_codes, out);
    default:
      return pack_bytes<8>(codes, num_codes, out);
  }
}

// --- butterflies ---------------------------------------------------------------------------------

// x = H x * factor, in place.
template <typename V>
void transform(float* x, int64_t piece, float factor) {
  switch (piece) {
    case 16:
      return transform_block<V, 16>(x, x, V::set(factor));
    case 32:
      return transform_block<V, 32>(x, x, V::set(factor));
    case 64:
      return transform_block<V, 64>(x, x, V::set(factor));
    case 128:
      return transform_block<V, 128>(x, x, V::set(factor));
    case 256:
      return transform_block<V, 256>(x, x, V::set(factor));
    default:  // 8, 512
      hadamard_butterflies(x, piece);
      for (int64_t j = 0; j < piece; ++j) x[j] *= factor;
  }
}

// How the heads of a format are cut, with the constant part of each piece's factor.
struct HeadPieces {
  int64_t count = 0;
  int64_t size[8];
  float encode[8];
  float decode[8];
};

inline HeadPieces head_pieces(const RowFormat& format, int64_t head_dim) {
  HeadPieces pieces;
  for (int64_t rest = head_dim; rest > 0;) {
    const int64_t size = format.hadamard ? hadamard_piece(rest) : head_dim;
    const int64_t g = format.hadamard ? size : 1;
    pieces.size[pieces.count] = size;
    pieces.encode[pieces.count] = encode_factor(head_dim, g, 1.0f);
    pieces.decode[pieces.count] = decode_factor(head_dim, g, 1.0f);
    ++pieces.count;
    rest -= size;
  }
  return pieces;
}

template <typename V>
void scale_row(float* x, int64_t n, float factor) {
  int64_t j = 0;
  for (; j + V::kWidth <= n; j += V::kWidth) {
    V::store(x + j, V::mul(V::load(x + j), V::set(factor)));
  }
  for (; j < n; ++j) x[j] *= factor;
}

template <typename V>
void transform_head(const HeadPieces& pieces, const float* factors, bool hadamard, float scale,
                    bool divide, float* x) {
  for (int64_t p = 0; p < pieces.count; ++p) {
    const float factor = divide ? factors[p] / scale : scale * factors[p];
    if (hadamard) {
      transform<V>(x, pieces.size[p], factor);
    } else {
      scale_row<V>(x, pieces.size[p], factor);
    }
    x += pieces.size[p];
  }
}

// --- encoding ------------------------------------------------------------------------------------

// Codes of kVectors * kWidth tuples.
template <typename V, int kDim, int kVectors>
void search_tuples(const HiggsGrid& grid, const float* y, uint8_t* codes) {
  typename V::F coordinates[kVectors][kDim];
  typename V::F best[kVectors];
  typename V::I index[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    V::template load_tuples<kDim>(y + v * V::kWidth * kDim, coordinates[v]);
    best[v] = V::set(-__builtin_inff());
    index[v] = V::set_int(0);
  }
  const int64_t n = grid.num_points;
  for (int64_t i = 0; i < n; ++i) {
    const auto number = V::set_int(static_cast<int32_t>(i));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      auto score = V::set(grid.minus_norms[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kDim; ++j) {
        score = V::fma(coordinates[v][j], V::set(grid.twice_points[j * n + i]), score);
      }
      index[v] = V::select_greater(score, best[v], number, index[v]);
      best[v] = V::max(score, best[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) V::store_code_bytes(codes + v * V::kWidth, index[v]);
}

template <typename V, int kDim>
void search_row(const HiggsGrid& grid, const float* y, int64_t num_codes, uint8_t* codes) {
  int64_t i = 0;
  for (; i + 3 * V::kWidth < num_codes; i += 4 * V::kWidth) {
    search_tuples<V, kDim, 4>(grid, y + i * kDim, codes + i);
  }
  for (; i + V::kWidth < num_codes; i += 2 * V::kWidth) {
    search_tuples<V, kDim, 2>(grid, y + i * kDim, codes + i);
  }
  for (; i < num_codes; i += V::kWidth) {
    search_tuples<V, kDim, 1>(grid, y + i * kDim, codes + i);
  }
}

// The sum of squares of n numbers, n a multiple of 8, in the 16 lanes of the reference.
template <typename V>
float squares(const float* x, int64_t n) {
  if constexpr (V::kWidth == 16) {
    auto sum = V::zero();
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) sum = V::fma(V::load(x + j), V::load(x + j), sum);
    if (j < n) {
      const auto rest = V::load_first(x + j, n - j);
      sum = V::fma(rest, rest, sum);
    }
    return V::sum(sum);
  } else {
    auto low = V::zero();
    auto high = V::zero();
    for (int64_t j = 0; j < n; j += 16) {
      low = V::fma(V::load(x + j), V::load(x + j), low);
      if (j + 8 < n) high = V::fma(V::load(x + j + 8), V::load(x + j + 8), high);
    }
    return V::sum(V::add(low, high));
  }
}

template <typename V>
void residual_row(const KvRowsArgs& a, const float* exact, const float* row, float* u) {
  const int64_t width = a.shape.width();
  int64_t j = 0;
  for (; j + V::kWidth <= width; j += V::kWidth) {
    auto v = V::sub(V::load(exact + j), V::load(row + j));
    if (a.inverse_sigma != nullptr) v = V::mul(v, V::load(a.inverse_sigma + j));
    V::store(u + j, v);
  }
  for (; j < width; ++j) {
    u[j] = exact[j] - row[j];
    if (a.inverse_sigma != nullptr) u[j] *= a.inverse_sigma[j];
  }
}

template <typename V>
void encode_higgs_row(const KvRowsArgs& a, const HiggsGrid& grid, const HeadPieces& pieces,
                      const float* exact, const float* row, std::byte* code) {
  const int64_t width = a.shape.width();
  const int64_t head_dim = a.shape.head_dim;
  const int64_t scale_bytes = scale_bytes_of(a.format.scale);
  const int64_t num_codes = width / grid.dim;
  float u[kMaxRowWidth + kRowPadding * 4];
  uint8_t codes[kMaxRowWidth + kRowPadding];
  residual_row<V>(a, exact, row, u);
  // The tuples that fill up the last vectors.
  for (int64_t j = width; j < width + kRowPadding * grid.dim; ++j) u[j] = 0;
  bool some_are_empty = false;
  for (int64_t head = 0; head < a.shape.num_heads; ++head) {
    float* x = u + head * head_dim;
    const uint32_t bits = round_row_scale(a.format.scale, __builtin_sqrtf(squares<V>(x, head_dim)));
    __builtin_memcpy(code + head * scale_bytes, &bits, static_cast<std::size_t>(scale_bytes));
    const float scale = row_scale_value(a.format.scale, bits);
    if (scale > 0) {
      transform_head<V>(pieces, pieces.encode, a.format.hadamard, scale, true, x);
    } else {
      some_are_empty = true;
    }
  }
  if (grid.dim == 1) {
    search_row<V, 1>(grid, u, num_codes, codes);
  } else if (grid.dim == 2) {
    search_row<V, 2>(grid, u, num_codes, codes);
  } else {
    search_row<V, 4>(grid, u, num_codes, codes);
  }
  if (some_are_empty) {  // zeros and NaN have codes of zero
    const int64_t head_codes = head_dim / grid.dim;
    for (int64_t head = 0; head < a.shape.num_heads; ++head) {
      uint32_t bits = 0;
      __builtin_memcpy(&bits, code + head * scale_bytes, static_cast<std::size_t>(scale_bytes));
      if (row_scale_value(a.format.scale, bits) > 0) continue;
      for (int64_t i = 0; i < head_codes; ++i) codes[head * head_codes + i] = 0;
    }
  }
  pack_row(codes, num_codes, grid.code_bits, code + a.shape.num_heads * scale_bytes);
}

// --- decoding ------------------------------------------------------------------------------------

template <typename V>
void add_row(const float* x, const float* sigma, int64_t n, float* row) {
  int64_t j = 0;
  for (; j + V::kWidth <= n; j += V::kWidth) {
    auto v = V::load(x + j);
    if (sigma != nullptr) v = V::mul(v, V::load(sigma + j));
    V::store(row + j, V::add(V::load(row + j), v));
  }
  for (; j < n; ++j) row[j] += sigma == nullptr ? x[j] : x[j] * sigma[j];
}

template <typename V>
void decode_higgs_row(const KvRowsArgs& a, const HiggsGrid& grid, const HeadPieces& pieces,
                      const std::byte* code, float* row) {
  const int64_t width = a.shape.width();
  const int64_t head_dim = a.shape.head_dim;
  const int64_t scale_bytes = scale_bytes_of(a.format.scale);
  const int64_t num_codes = width / grid.dim;
  float u[kMaxRowWidth + kRowPadding * 4];
  uint8_t codes[kMaxRowWidth + kRowPadding];
  unpack_row(code + a.shape.num_heads * scale_bytes, num_codes, grid.code_bits, codes);
  for (int64_t i = num_codes; i < num_codes + V::kWidth; ++i) codes[i] = 0;
  V::look_up(grid, codes, num_codes, u);
  for (int64_t head = 0; head < a.shape.num_heads; ++head) {
    uint32_t bits = 0;
    __builtin_memcpy(&bits, code + head * scale_bytes, static_cast<std::size_t>(scale_bytes));
    transform_head<V>(pieces, pieces.decode, a.format.hadamard,
                      row_scale_value(a.format.scale, bits), false, u + head * head_dim);
  }
  add_row<V>(u, a.sigma, width, row);
}

template <typename V>
void decode_kv_rows_simd(const KvRowsArgs& a, Exec& exec) {
  if (a.format.method != RowMethod::kHiggs) return decode_kv_rows_ref(a, exec);
  const HiggsGrid& grid = higgs_grid(a.format.bits, a.format.grid_dim);
  const HeadPieces pieces = head_pieces(a.format, a.shape.head_dim);
  const int64_t width = a.shape.width();
  for (int64_t t = 0; t < a.num_rows; ++t) {
    decode_higgs_row<V>(a, grid, pieces, a.codes + t * a.code_stride, a.rows + t * width);
  }
}

template <typename V>
void encode_kv_rows_simd(const KvRowsArgs& a, Exec& exec) {
  if (a.format.method != RowMethod::kHiggs) return encode_kv_rows_ref(a, exec);
  const HiggsGrid& grid = higgs_grid(a.format.bits, a.format.grid_dim);
  const HeadPieces pieces = head_pieces(a.format, a.shape.head_dim);
  const int64_t width = a.shape.width();
  for (int64_t t = 0; t < a.num_rows; ++t) {
    std::byte* code = a.codes + t * a.code_stride;
    float* row = a.rows + t * width;
    encode_higgs_row<V>(a, grid, pieces, a.exact + t * width, row, code);
    decode_higgs_row<V>(a, grid, pieces, code, row);
  }
}

}  // namespace
}  // namespace lathe
