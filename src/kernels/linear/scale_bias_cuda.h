// What cuBLAS leaves to be done behind a product: y[m, n] = y * x_scales[m] * w_scales[n] +
// bias[n].
#pragma once
#include "kernels/linear/linear_cuda.h"

namespace lathe {

// In place, rounded once to y's element. Null factors are ones, a null bias zeros; nothing is
// launched when all are null.
void scale_bias_cuda(const CudaLinearOutput& y, int64_t m, int64_t n, const float* x_scales,
                     const float* w_scales, const float* bias, CudaStream stream);

}  // namespace lathe
