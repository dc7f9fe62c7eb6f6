// Dense products by cuBLAS: y[m, n] = x[m, k] w[n, k]^T, sums in fp32.
#pragma once
#include "kernels/cuda_context.h"
#include "kernels/linear/linear_cuda.h"

namespace lathe {

// w: [n, k] row-major on the device, of x's element. x and w bf16: y bf16 or fp32. x and w fp32:
// y fp32, nothing rounded to TF32. x.row_scales are not applied (scale_bias_cuda.h). Throws
// kDevice.
void gemm_cublas(const CudaLinearInput& x, const void* w, int64_t n, const CudaLinearOutput& y,
                 CudaContext& context);

}  // namespace lathe
