// What the kernels around the matrix products cost on the GPU: time, bytes that have to be moved
// over that time, and the share of the bandwidth of a device copy in the same run. Inputs rotate
// through more memory than the L2 cache holds; times are medians of CUDA graphs of many launches.
//
//   fused_cuda_bench [m...]
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/quantize_activations/quantize_cuda.h"
#include "tensor/cuda_check.h"
#include "tensor/device_buffer.h"

namespace lathe {
namespace {

constexpr int64_t kRotateBytes = int64_t{400} << 20;
constexpr int kRepeats = 11;

template <typename T>
__global__ void fill(T* x, int64_t count, uint32_t seed) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  uint32_t bits = static_cast<uint32_t>(i) * 2654435761u + seed;
  bits ^= bits >> 16, bits *= 0x85ebca6bu, bits ^= bits >> 13, bits *= 0xc2b2ae35u;
  bits ^= bits >> 16;
  x[i] = static_cast<T>(static_cast<float>(bits & 0xffff) / 16384.0f - 2.0f);
}

template <typename T>
DeviceBuffer random_buffer(int64_t count, uint32_t seed) {
  DeviceBuffer buffer(count * static_cast<int64_t>(sizeof(T)));
  fill<<<static_cast<unsigned>((count + 255) / 256), 256>>>(buffer.as<T>(), count, seed);
  cuda_check_launch("fill");
  return buffer;
}

// Microseconds of run(i), from graphs that run it with i = 0..launches-1.
double microseconds(cudaStream_t stream, int launches, const std::function<void(int)>& run) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capturing");
  for (int i = 0; i < launches; ++i) run(i);
  cuda_check(cudaStreamEndCapture(stream, &graph), "capturing");
  cuda_check(cudaGraphInstantiate(&executable, graph, 0), "instantiating a graph");
  cudaEvent_t begin, end;
  cuda_check(cudaEventCreate(&begin), "an event");
  cuda_check(cudaEventCreate(&end), "an event");
  std::vector<double> times;
  for (int repeat = 0; repeat <= kRepeats; ++repeat) {
    cuda_check(cudaEventRecord(begin, stream), "an event");
    cuda_check(cudaGraphLaunch(executable, stream), "a graph");
    cuda_check(cudaEventRecord(end, stream), "an event");
    cuda_check(cudaStreamSynchronize(stream), "waiting");
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, begin, end), "an event");
    if (repeat > 0) times.push_back(milliseconds * 1e3 / launches);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2];
}

struct Bench {
  cudaStream_t stream = nullptr;
  double copy_rate = 0;  // bytes read and written per second

  void measure_copy() {
    constexpr int64_t kBytes = int64_t{1} << 30;
    const DeviceBuffer from(kBytes);
    DeviceBuffer to(kBytes);
    const double us = microseconds(stream, 4, [&](int) {
      cuda_check(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream),
                 "copying");
    });
    copy_rate = 2.0 * kBytes / us * 1e6;
    std::printf("copy: %.0f GB/s (read + written)\n", copy_rate / 1e9);
  }

  void report(const char* operation, const std::string& target, int64_t m, int64_t k, double bytes,
              double us) const {
    std::printf("%-14s %-14s %6lld %6lld %9.2f us %7.0f GB/s %5.1f %%\n", operation, target.c_str(),
                static_cast<long long>(m), static_cast<long long>(k), us, bytes / us / 1e3,
                100 * bytes / us * 1e6 / copy_rate);
  }
};

struct Target {
  ActivationFormat format;
  CudaElement element;
  int64_t hadamard;
};
constexpr Target kTargets[] = {
    {ActivationFormat::kNone, CudaElement::kBF16, 0},
    {ActivationFormat::kFp8, CudaElement::kE4M3, 128},
    {ActivationFormat::kMxfp4, CudaElement::kBF16, 32},
    {ActivationFormat::kMxfp4, CudaElement::kE4M3, 32},
    {ActivationFormat::kNvfp4, CudaElement::kBF16, 16},
    {ActivationFormat::kInt8, CudaElement::kBF16, 32},
};

int64_t element_bytes(CudaElement element) {
  return element == CudaElement::kF32 ? 4 : element == CudaElement::kBF16 ? 2 : 1;
}

std::string name_of(const Target& target) {
  const char* elements[] = {"f32", "bf16", "e4m3"};
  return std::string(activation_format_name(target.format)) + "/" +
         elements[static_cast<int>(target.element)] + "/" + std::to_string(target.hadamard);
}

void bench_quantizers(const Bench& bench, int64_t m, int64_t k) {
  // What one launch reads and writes at most; enough copies of it to leave the cache.
  const int64_t bytes = m * k * 8;
  const auto copies = static_cast<int>(std::clamp<int64_t>(kRotateBytes / bytes, 2, 64));
  const int launches = std::max(copies, m >= 1024 ? 8 : 40);
  const int64_t count = m * k;
  DeviceBuffer hidden = random_buffer<float>(copies * count, 1);
  DeviceBuffer wide = random_buffer<__nv_bfloat16>(copies * 2 * count, 2);
  const DeviceBuffer gain = random_buffer<float>(k, 3);
  DeviceBuffer out(copies * count * 4);
  DeviceBuffer scales(m * 4);
  for (const Target& t : kTargets) {
    QuantizedTarget target = {.format = t.format,
                              .hadamard = t.hadamard,
                              .element = t.element,
                              .row_scales = scales.as<float>()};
    const int64_t out_bytes = element_bytes(t.element);
    const auto at = [&](int i) {
      target.data = out.data() + i % copies * count * out_bytes;
      return i % copies * count;
    };
    bench.report("quantize", name_of(t), m, k, static_cast<double>(count * (2 + out_bytes)),
                 microseconds(bench.stream, launches, [&](int i) {
                   const int64_t offset = at(i);
                   quantize_cuda(
                       {.x = wide.as<__nv_bfloat16>() + offset, .m = m, .k = k, .target = target},
                       bench.stream);
                 }));
    bench.report("gated", name_of(t), m, k, static_cast<double>(count * (4 + out_bytes)),
                 microseconds(bench.stream, launches, [&](int i) {
                   const int64_t offset = at(i);
                   gated_quantize_cuda({.gate_up = wide.as<__nv_bfloat16>() + 2 * offset,
                                        .m = m,
                                        .size = k,
                                        .target = target},
                                       bench.stream);
                 }));
    bench.report("add_norm", name_of(t), m, k, static_cast<double>(count * (10 + out_bytes)),
                 microseconds(bench.stream, launches, [&](int i) {
                   const int64_t offset = at(i);
                   add_norm_quantize_cuda({.hidden = hidden.as<float>() + offset,
                                           .m = m,
                                           .k = k,
                                           .branch = wide.as<__nv_bfloat16>() + offset,
                                           .gain = gain.as<float>(),
                                           .eps = 1e-5f,
                                           .target = target},
                                          bench.stream);
                 }));
  }
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  using namespace lathe;
  try {
    cudaDeviceProp device;
    cuda_check(cudaGetDeviceProperties(&device, 0), "looking for a GPU");
    std::printf("%s\n", device.name);
    Bench bench;
    cuda_check(cudaStreamCreate(&bench.stream), "a stream");
    bench.measure_copy();
    std::vector<int64_t> rows;
    for (int i = 1; i < argc; ++i) rows.push_back(std::atoll(argv[i]));
    if (rows.empty()) rows = {1, 16, 64, 1024, 4096};
    for (const int64_t m : rows) {
      for (const int64_t k : {4096, 14336}) bench_quantizers(bench, m, k);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "fused_cuda_bench: %s\n", error.what());
    return 1;
  }
}
