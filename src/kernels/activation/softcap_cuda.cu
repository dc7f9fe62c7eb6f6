#include "base/error.h"
#include "kernels/activation/softcap_cuda.h"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;

__global__ void __launch_bounds__(kThreads) softcap_values(float* x, int64_t count, float cap) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t first = int64_t{blockIdx.x} * kThreads * kPerThread + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t idx = first + i * kThreads;
    if (idx < count) x[idx] = __fmul_rn(cap, tanhf(__fdiv_rn(x[idx], cap)));
  }
}

}  // namespace

void softcap_cuda(float* x, int64_t count, float cap, CudaStream stream) {
  if (count < 0 || !(cap >= 0)) {
    fail(ErrorCode::kInvalidArgument, "a soft cap of ", cap, " for ", count, " numbers");
  }
  if (count == 0 || cap == 0) return;
  constexpr int64_t kPerBlock = kThreads * kPerThread;
  launch_dependent("softcap_values", softcap_values,
                   dim3(static_cast<unsigned>((count + kPerBlock - 1) / kPerBlock)), dim3(kThreads),
                   0, stream, 1, x, count, cap);
}

}  // namespace lathe
