// One block of X^T X. kGramTokens rows of x at a time are packed as the product reads them,
//   a  [rows of C / 12][tokens][12]        b  [columns of C / 32][tokens][32]
// and 12 x 32 tiles of C stay in registers while the tokens walk past (24 sums, 2 vectors of b).
#include <immintrin.h>

#include "compress/gram.h"

namespace lathe {
namespace {

constexpr int64_t kTileRows = 12;
constexpr int64_t kTileColumns = 32;
static_assert(kGramBlock % kTileRows == 0 && kGramBlock % kTileColumns == 0);

// Columns [begin, end) of x as panels of kWidth columns, the last one filled up with zeros.
template <int64_t kWidth>
void pack(const float* x, int64_t k, int64_t num_tokens, int64_t begin, int64_t end, float* out) {
  for (int64_t first = begin; first < end; first += kWidth) {
    const int64_t count = end - first < kWidth ? end - first : kWidth;
    for (int64_t t = 0; t < num_tokens; ++t, out += kWidth) {
      const float* from = x + t * k + first;
      for (int64_t j = 0; j < kWidth; j += 16) {
        const int64_t lanes = count - j < 0 ? 0 : count - j < 16 ? count - j : 16;
        const int64_t room = kWidth - j < 16 ? kWidth - j : 16;
        const auto wanted = static_cast<__mmask16>((1u << lanes) - 1);
        const auto stored = static_cast<__mmask16>((1u << room) - 1);
        _mm512_mask_storeu_ps(out + j, stored, _mm512_maskz_loadu_ps(wanted, from + j));
      }
    }
  }
}

// c [12, 32] += a^T b; rows and columns that exist.
void multiply(const float* a, const float* b, int64_t num_tokens, float* c, int64_t c_stride,
              int64_t num_rows, int64_t num_columns) {
  const auto low = static_cast<__mmask16>(num_columns >= 16 ? 0xffff : (1u << num_columns) - 1);
  const auto high = static_cast<__mmask16>(num_columns <= 16 ? 0 : (1u << (num_columns - 16)) - 1);
  __m512 sums[kTileRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    const bool exists = r < num_rows;
    const float* from = c + (exists ? r : 0) * c_stride;
    sums[r][0] = _mm512_maskz_loadu_ps(low, from);
    sums[r][1] = _mm512_maskz_loadu_ps(high, from + 16);
  }
  for (int64_t t = 0; t < num_tokens; ++t, a += kTileRows, b += kTileColumns) {
    const __m512 b0 = _mm512_loadu_ps(b);
    const __m512 b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      const __m512 value = _mm512_set1_ps(a[r]);
      sums[r][0] = _mm512_fmadd_ps(value, b0, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(value, b1, sums[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    if (r >= num_rows) continue;
    _mm512_mask_storeu_ps(c + r * c_stride, low, sums[r][0]);
    _mm512_mask_storeu_ps(c + r * c_stride + 16, high, sums[r][1]);
  }
}

}  // namespace

void add_gram_block_avx512(int64_t m, int64_t k, const float* x, int64_t row_begin, int64_t row_end,
                           int64_t column_begin, int64_t column_end, float* c, float* scratch) {
  float* a = scratch;
  float* b = scratch + kGramBlock * kGramTokens;
  for (int64_t token = 0; token < m; token += kGramTokens) {
    const int64_t num_tokens = m - token < kGramTokens ? m - token : kGramTokens;
    pack<kTileRows>(x + token * k, k, num_tokens, row_begin, row_end, a);
    pack<kTileColumns>(x + token * k, k, num_tokens, column_begin, column_end, b);
    for (int64_t j = column_begin; j < column_end; j += kTileColumns) {
      const int64_t num_columns = column_end - j < kTileColumns ? column_end - j : kTileColumns;
      for (int64_t i = row_begin; i < row_end && i < j + num_columns; i += kTileRows) {
        const int64_t num_rows = row_end - i < kTileRows ? row_end - i : kTileRows;
        multiply(a + (i - row_begin) * num_tokens, b + (j - column_begin) * num_tokens, num_tokens,
                 c + i * k + j, k, num_rows, num_columns);
      }
    }
  }
}

}  // namespace lathe
