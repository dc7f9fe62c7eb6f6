// The few BLAS and LAPACK routines that calibration needs, on row-major float matrices. OpenBLAS
// does the work on its own threads, so these are never called from inside a parallel_for.
#pragma once
#include <cstdint>

namespace lathe {

// Gives OpenBLAS this many threads while the object lives.
class BlasThreads {
 public:
  explicit BlasThreads(int num_threads);
  ~BlasThreads();
  BlasThreads(const BlasThreads&) = delete;
  BlasThreads& operator=(const BlasThreads&) = delete;

 private:
  int previous_;
};

// c[m, n] = a[k, m]^T b[k, n] + beta c, with row strides lda, ldb, ldc.
void gemm_at_b(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               int64_t ldb, float beta, float* c, int64_t ldc);

// c[m, n] = a[m, k] b[k, n] + beta c.
void gemm_a_b(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
              int64_t ldb, float beta, float* c, int64_t ldc);

// The upper triangle (j >= i) of c[k, k] += alpha x[m, k]^T x[m, k].
void add_gram_upper(int64_t m, int64_t k, float alpha, const float* x, float* c);

// Cholesky in place, from the lower triangle (j <= i) of a[k, k]: a = L L^T, L lower. The strictly
// upper triangle is not touched. False when a is not positive definite (a is then half
// overwritten).
bool cholesky_lower(int64_t k, float* a);

}  // namespace lathe
