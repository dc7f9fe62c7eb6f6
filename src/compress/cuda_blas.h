// The few cuBLAS and cuSOLVER routines that calibration on a GPU needs, on row-major float matrices
// in memory of the current device: blas.h for the device. Plain fp32 throughout, never TF32. All
// but cuda_cholesky_lower() only enqueue work on the stream. Throw kDevice, kOutOfMemory.
#pragma once
#include <cstdint>

#include "tensor/cuda_stream.h"

namespace lathe {

// c[m, n] = a[m, k] b[k, n] + beta c, with row strides lda, ldb, ldc.
void cuda_gemm_a_b(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                   int64_t ldb, float beta, float* c, int64_t ldc, CudaStream stream);

// The upper triangle (j >= i) of c[k, k] += x[m, k]^T x[m, k].
void cuda_add_gram_upper(int64_t m, int64_t k, const float* x, float* c, CudaStream stream);

// Cholesky in place, from the lower triangle (j <= i) of a[k, k]: a = L L^T, L lower. The strictly
// upper triangle is not meaningful afterwards. False when a is not positive definite. Waits.
bool cuda_cholesky_lower(int64_t k, float* a, CudaStream stream);

}  // namespace lathe
