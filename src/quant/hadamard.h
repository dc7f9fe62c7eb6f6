// The block-diagonal Hadamard rotation R = diag(H_k, ..., H_k) of the reduction dimension:
//   H_1 = [1],  H_2k = [[H_k, H_k], [H_k, -H_k]],  divided by sqrt(k):
//   H[i][j] = (-1)^popcount(i & j) / sqrt(k).
// Symmetric and orthonormal, so R is its own inverse and x R (W R)^T = x W^T.
// Source: spec/mr-gptq.md 3.1.
#pragma once
#include <cstdint>

namespace lathe {

// Throws kInvalidArgument unless block is 0 (no rotation) or one of 16, 32, 64, 128 and divides
// cols.
void check_hadamard(int64_t block, int64_t cols);

// In place, each run of `block` consecutive values of each row of x [rows, cols]. block 0: nothing.
// fp32 additions in the order of the butterfly (distance 1, 2, 4, ...), then one multiplication by
// 1/sqrt(block), which is exact for 16 and 64.
void hadamard_rows(float* x, int64_t rows, int64_t cols, int64_t block);

// One entry of the normalised matrix.
float hadamard_entry(int64_t block, int64_t i, int64_t j);

}  // namespace lathe
