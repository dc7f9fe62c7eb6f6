// Cholesky factors of Hessians, on the sums of product.h.
#pragma once
#include <cstdint>

#include "tensor/exec.h"

namespace lathe {

// a [k, k], row-major, symmetric, of which the upper triangle is read: replaced by U with
// A = U^T U. What is below the diagonal is undefined afterwards. false: A is not positive definite
// in fp32 (or has a NaN); its upper triangle is then lost.
bool cholesky_upper(int64_t k, float* a, Exec& exec);

}  // namespace lathe
