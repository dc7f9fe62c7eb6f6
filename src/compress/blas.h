// The few BLAS and LAPACK routines that calibration needs beside product.h and cholesky.h, on
// row-major float (and, where the cache's predictors are solved for, double) matrices. OpenBLAS
// does the work on its own threads, so these are never called from inside a parallel_for.
#pragma once
#include <cstdint>
#include <string_view>

namespace lathe {

// OpenBLAS chooses its kernels by the processor's model number when it is loaded, and takes a model
// younger than itself for one of 2004: then the name of a core whose kernels run here, for the
// environment variable OPENBLAS_CORETYPE of a new start. Null: it has chosen well, or was told.
const char* better_blas_core();

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

// That decision: `chosen` is OpenBLAS's name of its core, the rest what the processor has.
const char* better_blas_core(std::string_view chosen, bool avx512, bool avx2);

// c[m, n] = a[k, m]^T b[k, n] + beta c, with row strides lda, ldb, ldc.
void gemm_at_b(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               int64_t ldb, float beta, float* c, int64_t ldc);

// c[m, n] = a[m, k] b[k, n] + beta c.
void gemm_a_b(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
              int64_t ldb, float beta, float* c, int64_t ldc);

// The same in fp64.
void gemm_a_b(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
              int64_t ldb, double beta, double* c, int64_t ldc);
// c[m, n] = a[m, k] b[n, k]^T + beta c.
void gemm_a_bt(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
               int64_t ldb, double beta, double* c, int64_t ldc);
// Cholesky in place, from the lower triangle (j <= i) of a[k, k]: a = L L^T, L lower. The strictly
// upper triangle is not touched. False when a is not positive definite (a is then half
// overwritten).
bool cholesky_lower(int64_t k, double* a);
// Solves L L^T x = b in place for each row x of b[num_rows, k], with L of cholesky_lower().
void solve_cholesky_rows(int64_t k, const double* l, int64_t num_rows, double* b);
// Eigenvalues in ascending order and, as the rows of a[k, k], their orthonormal eigenvectors. a:
// full and symmetric at entry. Throws kInternal when the iteration does not end (a NaN).
void symmetric_eigenvectors(int64_t k, double* a, double* eigenvalues);

}  // namespace lathe
