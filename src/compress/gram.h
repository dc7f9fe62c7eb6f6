// X^T X, which calibration accumulates over all of its tokens.
#pragma once
#include <cstdint>

#include "tensor/exec.h"

namespace lathe {

// c[k, k] += x[m, k]^T x[m, k] in the upper triangle (j >= i); what is below the diagonal is
// undefined afterwards. Own code on AVX-512: OpenBLAS knows the processors of its own time only and
// takes 256-bit kernels on newer ones. Every element is one chain of fused multiply-adds in the
// order of the rows, so the result does not depend on the number of threads there.
//
// share: this process has part `part` of `parts` of the matrix, blocks that do not depend on the
// number of threads; the rest of c is left as it is. Without AVX-512 part 0 is all of it.
struct GramShare {
  int64_t part = 0;
  int64_t parts = 1;
};
void add_gram(int64_t m, int64_t k, const float* x, float* c, Exec& exec,
              const GramShare& share = {});
// Whether a matrix is really divided (AVX-512); ranks must agree on it.
bool gram_divides();

// The AVX-512 version. Rows of C [row_begin, row_end), columns [column_begin, column_end), of the
// rows x[m, k]; scratch has gram_scratch_floats().
inline constexpr int64_t kGramBlock = 192;   // rows and columns of C that a thread takes at a time
inline constexpr int64_t kGramTokens = 128;  // rows of x packed at a time
constexpr int64_t gram_scratch_floats() { return 2 * kGramBlock * kGramTokens; }
void add_gram_block_avx512(int64_t m, int64_t k, const float* x, int64_t row_begin, int64_t row_end,
                           int64_t column_begin, int64_t column_end, float* c, float* scratch);

}  // namespace lathe
