#include <cuda_bf16.h>

#include "kernels/linear/scale_bias_cuda.h"
#include "tensor/cuda_check.h"
#include "tensor/cuda_numbers.cuh"

namespace lathe {
namespace {

constexpr int kThreads = 256;

// One row a block in y, columns in x.
template <typename T>
__global__ void scale_bias(T* y, int64_t n, int64_t stride, const float* x_scales,
                           const float* w_scales, const float* bias) {
  const int64_t row = blockIdx.y;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= n) return;
  T* place = y + row * stride + column;
  float value = to_float(*place);
  if (x_scales != nullptr) value *= x_scales[row];
  if (w_scales != nullptr) value *= w_scales[column];
  if (bias != nullptr) value += bias[column];
  store(place, value);
}

template <typename T>
void launch(const CudaLinearOutput& y, int64_t m, int64_t n, const float* x_scales,
            const float* w_scales, const float* bias, CudaStream stream) {
  constexpr int64_t kMaxGridRows = 65535;
  const auto columns = static_cast<unsigned>((n + kThreads - 1) / kThreads);
  for (int64_t row = 0; row < m; row += kMaxGridRows) {
    const auto rows = static_cast<unsigned>(m - row < kMaxGridRows ? m - row : kMaxGridRows);
    scale_bias<T><<<dim3(columns, rows), kThreads, 0, stream>>>(
        static_cast<T*>(y.data) + row * y.stride, n, y.stride,
        x_scales == nullptr ? nullptr : x_scales + row, w_scales, bias);
    cuda_check_launch("scale_bias");
  }
}

}  // namespace

void scale_bias_cuda(const CudaLinearOutput& y, int64_t m, int64_t n, const float* x_scales,
                     const float* w_scales, const float* bias, CudaStream stream) {
  if (x_scales == nullptr && w_scales == nullptr && bias == nullptr) return;
  if (m == 0 || n == 0) return;
  if (y.element == CudaElement::kF32) {
    launch<float>(y, m, n, x_scales, w_scales, bias, stream);
  } else {
    launch<__nv_bfloat16>(y, m, n, x_scales, w_scales, bias, stream);
  }
}

}  // namespace lathe
