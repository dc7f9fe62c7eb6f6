#include "compress/blas.h"

#include <cblas.h>

#include <cstdlib>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/error.h"

// LAPACK has no C header in the OpenBLAS package; column-major, everything by pointer.
extern "C" void dpotrf_(const char* uplo, const int* n, double* a, const int* lda, int* info);
extern "C" void dpotrs_(const char* uplo, const int* n, const int* nrhs, const double* a,
                        const int* lda, double* b, const int* ldb, int* info);
extern "C" void dsyevd_(const char* jobz, const char* uplo, const int* n, double* a, const int* lda,
                        double* w, double* work, const int* lwork, int* iwork, const int* liwork,
                        int* info);

namespace lathe {
namespace {

int blas_int(int64_t value) {
  LATHE_CHECK(value >= 0 && value <= std::numeric_limits<int>::max());
  return static_cast<int>(value);
}

}  // namespace

const char* better_blas_core(std::string_view chosen, bool avx512, bool avx2) {
  for (const std::string_view old : {"Prescott", "Core2", "Penryn", "Dunnington", "Nehalem",
                                     "Athlon", "Opteron", "Barcelona", "Bobcat", "generic"}) {
    if (!chosen.starts_with(old)) continue;
    return avx512 ? "SkylakeX" : avx2 ? "Haswell" : nullptr;
  }
  return nullptr;
}

const char* better_blas_core() {
#if defined(__x86_64__)
  if (std::getenv("OPENBLAS_CORETYPE") != nullptr) return nullptr;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  return better_blas_core(openblas_get_corename(), avx512, avx2);
#else
  return nullptr;
#endif
}

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

void gemm_a_b(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
              int64_t ldb, double beta, double* c, int64_t ldc) {
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas_int(m), blas_int(n), blas_int(k), 1.0,
              a, blas_int(lda), b, blas_int(ldb), beta, c, blas_int(ldc));
}

void gemm_a_bt(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
               int64_t ldb, double beta, double* c, int64_t ldc) {
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blas_int(m), blas_int(n), blas_int(k), 1.0,
              a, blas_int(lda), b, blas_int(ldb), beta, c, blas_int(ldc));
}

bool cholesky_lower(int64_t k, double* a) {
  // The lower triangle of a row-major matrix is the upper one of the same memory read column-major:
  // LAPACK computes U with a = U^T U there, and U^T is our L.
  const int n = blas_int(k);
  int info = 0;
  dpotrf_("U", &n, a, &n, &info);
  return info == 0;
}

void solve_cholesky_rows(int64_t k, const double* l, int64_t num_rows, double* b) {
  // A row-major [num_rows, k] is, column-major, k x num_rows: each row one right-hand side.
  const int n = blas_int(k);
  const int num_sides = blas_int(num_rows);
  int info = 0;
  dpotrs_("U", &n, &num_sides, l, &n, b, &n, &info);
  LATHE_CHECK(info == 0);  // only a wrong argument can fail here
}

void symmetric_eigenvectors(int64_t k, double* a, double* eigenvalues) {
  const int n = blas_int(k);
  int info = 0;
  double work_size = 0;
  int iwork_size = 0;
  const int ask = -1;
  dsyevd_("V", "U", &n, a, &n, eigenvalues, &work_size, &ask, &iwork_size, &ask, &info);
  const int num_work = static_cast<int>(work_size);
  std::vector<double> work(static_cast<std::size_t>(num_work));
  std::vector<int> iwork(static_cast<std::size_t>(iwork_size));
  dsyevd_("V", "U", &n, a, &n, eigenvalues, work.data(), &num_work, iwork.data(), &iwork_size,
          &info);
  if (info != 0) fail(ErrorCode::kInternal, "eigenvalues of a matrix of ", k, " rows: no result");
}

}  // namespace lathe
