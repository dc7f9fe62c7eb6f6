#include "compress/blas.h"

#include <cblas.h>

#include <limits>

#include "base/check.h"

// LAPACK has no C header in the OpenBLAS package; column-major, everything by pointer.
extern "C" void spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* info);

namespace lathe {
namespace {

int blas_int(int64_t value) {
  LATHE_CHECK(value >= 0 && value <= std::numeric_limits<int>::max());
  return static_cast<int>(value);
}

}  // namespace

BlasThreads::BlasThreads(int num_threads) : previous_(openblas_get_num_threads()) {
  openblas_set_num_threads(num_threads);
}
BlasThreads::~BlasThreads() { openblas_set_num_threads(previous_); }

void gemm_at_b(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               int64_t ldb, float beta, float* c, int64_t ldc) {
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, blas_int(m), blas_int(n), blas_int(k), 1.0f,
              a, blas_int(lda), b, blas_int(ldb), beta, c, blas_int(ldc));
}

void gemm_a_b(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
              int64_t ldb, float beta, float* c, int64_t ldc) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas_int(m), blas_int(n), blas_int(k),
              1.0f, a, blas_int(lda), b, blas_int(ldb), beta, c, blas_int(ldc));
}

void add_gram_upper(int64_t m, int64_t k, float alpha, const float* x, float* c) {
  cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, blas_int(k), blas_int(m), alpha, x,
              blas_int(k), 1.0f, c, blas_int(k));
}

bool cholesky_lower(int64_t k, float* a) {
  // The lower triangle of a row-major matrix is the upper one of the same memory read column-major:
  // LAPACK computes U with a = U^T U there, and U^T is our L.
  const int n = blas_int(k);
  int info = 0;
  spotrf_("U", &n, a, &n, &info);
  return info == 0;
}

}  // namespace lathe
