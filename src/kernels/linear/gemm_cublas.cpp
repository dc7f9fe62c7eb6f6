#include "kernels/linear/gemm_cublas.h"

#include <cublas_v2.h>

#include "base/error.h"

namespace lathe {
namespace {

cudaDataType data_type(CudaElement element) {
  switch (element) {
    case CudaElement::kF32:
      return CUDA_R_32F;
    case CudaElement::kBF16:
      return CUDA_R_16BF;
    case CudaElement::kE4M3:
      break;
  }
  fail(ErrorCode::kInvalidArgument, "a dense product of E4M3");
}

}  // namespace

void gemm_cublas(const CudaLinearInput& x, const void* w, int64_t n, const CudaLinearOutput& y,
                 CudaContext& context) {
  if (x.m == 0 || n == 0) return;
  const float one = 1, zero = 0;
  const cudaDataType type = data_type(x.element);
  // cuBLAS counts in columns: y^T [n, m] = w [n, k] x^T.
  const cublasStatus_t status = cublasGemmEx(
      context.cublas(), CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(n), static_cast<int>(x.m),
      static_cast<int>(x.k), &one, w, type, static_cast<int>(x.k), x.data, type,
      static_cast<int>(x.k), &zero, y.data, data_type(y.element), static_cast<int>(y.stride),
      CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail(ErrorCode::kDevice, "cuBLAS failed on a product of ", x.m, " x ", x.k, " x ", n, ": ",
         cublasGetStatusString(status));
  }
}

}  // namespace lathe
