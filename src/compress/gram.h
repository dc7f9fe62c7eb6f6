// X^T X, which calibration accumulates over all of its tokens.
#pragma once
#include <cstdint>

#include "tensor/exec.h"

namespace lathe {

// c[k, k] += x[m, k]^T x[m, k] in the upper triangle (j >= i); what is below the diagonal is
// undefined afterwards. Sums as in product.h: they do not depend on the number of threads.
//
// share: this process has part `part` of `parts` of the matrix, blocks that do not depend on the
// number of threads; the rest of c is left as it is.
//
// in_two_terms: as in product.h. Then, where it takes effect, the bits depend on how rows are cut
// into calls, unless all but the last have a multiple of kGramRows.
struct GramShare {
  int64_t part = 0;
  int64_t parts = 1;
};
inline constexpr int64_t kGramRows = 32;
void add_gram(int64_t m, int64_t k, const float* x, float* c, Exec& exec,
              const GramShare& share = {}, bool in_two_terms = true);

// sum_ij h_ij (d^T d)_ij, which is tr(D H D^T), for d [n, k] and a symmetric h [k, k], of which the
// upper triangle is read. Products of 512 rows of d are summed in fp32, all else in double.
double gram_dot(int64_t n, int64_t k, const float* d, const float* h, Exec& exec);

}  // namespace lathe
