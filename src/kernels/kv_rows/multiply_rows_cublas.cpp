#include <cublas_v2.h>

#include "base/error.h"
#include "kernels/kv_rows/kv_rows_cuda.h"

namespace lathe {

void multiply_rows_cuda(const MultiplyRowsCudaArgs& a, CudaContext& context) {
  if (a.m == 0 || a.n == 0 || a.count == 0) return;
  const float one = 1, beta = a.add ? 1.0f : 0.0f;
  const auto dim = [](int64_t size) { return static_cast<int>(size); };
  const bool is_bf16 = a.element == CudaElement::kBF16;
  const cudaDataType type = is_bf16 ? CUDA_R_16BF : CUDA_R_32F;
  // cuBLAS counts in columns: y^T [n, m] = w [n, k] x^T.
  const cublasStatus_t status = cublasGemmStridedBatchedEx(
      context.cublas(), CUBLAS_OP_T, CUBLAS_OP_N, dim(a.n), dim(a.m), dim(a.k), &one, a.w, type,
      dim(a.w_stride), a.w_step, a.x, type, dim(a.x_stride), a.x_step, &beta, a.y, CUDA_R_32F,
      dim(a.y_stride), a.y_step, dim(a.count),
      is_bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail(ErrorCode::kDevice, "cuBLAS failed on a product of ", a.m, " x ", a.k, " x ", a.n, ": ",
         cublasGetStatusString(status));
  }
}

}  // namespace lathe
