#include <algorithm>

#include "kernels/peaks/peaks_cuda.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int64_t kBytes = int64_t{1} << 30;
constexpr int kThreads = 512;
constexpr int kRounds = 12;

// Four independent loads of 16 bytes in flight for each thread. The sum is stored where it cannot
// be so, for the compiler must not drop the loads.
__global__ void read_all(const uint4* data, int64_t count, uint32_t* never) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  uint32_t sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += 4 * step) {
    uint4 loaded[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      loaded[j] = i + j * step < count ? data[i + j * step] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += loaded[j].x ^ loaded[j].y ^ loaded[j].z ^ loaded[j].w;
  }
  if (sum == 0x9E3779B9u) *never = sum;
}

}  // namespace

double measure_cuda_read_bandwidth(const CudaContext& context) {
  DeviceBuffer memory(kBytes + 256);
  const CudaStream stream = context.stream();
  cuda_check(cudaMemsetAsync(memory.data(), 1, kBytes, stream), "clearing memory");
  cudaEvent_t begin = nullptr, end = nullptr;
  cuda_check(cudaEventCreate(&begin), "making an event");
  cuda_check(cudaEventCreate(&end), "making an event");
  float best = 0;
  for (int round = 0; round < kRounds; ++round) {
    cudaEventRecord(begin, stream);
    read_all<<<static_cast<unsigned>(4 * context.num_sms()), kThreads, 0, stream>>>(
        memory.as<uint4>(), kBytes / 16, reinterpret_cast<uint32_t*>(memory.data() + kBytes));
    cuda_check_launch("read_all");
    cudaEventRecord(end, stream);
    context.synchronize();
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
    if (milliseconds > 0) best = std::max(best, static_cast<float>(kBytes) / milliseconds);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return 1e3 * static_cast<double>(best);
}

}  // namespace lathe
