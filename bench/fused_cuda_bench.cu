// What the kernels around the matrix products cost on the GPU: time, bytes that have to be moved
// over that time, and the share of the bandwidth of a copy of 1 GiB in the same run (the better of
// cudaMemcpy and a kernel). Inputs rotate through more memory than the L2 cache holds; times are
// medians of CUDA graphs of many launches.
//
//   fused_cuda_bench [rows...]
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/embedding/embedding_cuda.h"
#include "kernels/quantize_activations/quantize_cuda.h"
#include "kernels/sampling/sampling_cuda.h"
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

__global__ void copy_words(const float4* from, float4* to) {
  constexpr int kPerThread = 4;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x * kPerThread + threadIdx.x;
  float4 words[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) words[i] = from[first + i * blockDim.x];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) to[first + i * blockDim.x] = words[i];
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
    const DeviceBuffer from = random_buffer<float>(kBytes / 4, 9);
    DeviceBuffer to(kBytes);
    const double memcpy_us = microseconds(stream, 4, [&](int) {
      cuda_check(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream),
                 "copying");
    });
    const double kernel_us = microseconds(stream, 4, [&](int) {
      copy_words<<<static_cast<unsigned>(kBytes / 16 / 4 / 256), 256, 0, stream>>>(
          from.as<float4>(), to.as<float4>());
    });
    copy_rate = 2.0 * kBytes / std::min(memcpy_us, kernel_us) * 1e6;
    std::printf("copy, GB/s read + written: cudaMemcpy %.0f, kernel %.0f\n",
                2.0 * kBytes / memcpy_us / 1e3, 2.0 * kBytes / kernel_us / 1e3);
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

void bench_sampling(const Bench& bench, int64_t num_rows, int64_t vocab_size) {
  struct Case {
    const char* name;
    SamplingRow row;
  };
  const Case cases[] = {
      {"greedy", {}},
      {"greedy+top5", {.num_logprobs = 5}},
      {"all", {.inverse_temperature = 1}},
      {"min_p", {.min_p = 0.05, .inverse_temperature = 1}},
      {"top_p", {.top_p = 0.95, .inverse_temperature = 1}},
      {"top_p hot", {.top_p = 0.95, .inverse_temperature = 0.2f}},  // most of the vocabulary
      {"top_k", {.inverse_temperature = 1, .top_k = 50}},
      {"top_k+top_p", {.top_p = 0.95, .inverse_temperature = 1, .top_k = 50}},
  };
  const int64_t count = num_rows * vocab_size;
  const auto copies = static_cast<int>(std::clamp<int64_t>(kRotateBytes / (4 * count), 2, 16));
  std::vector<float> host(static_cast<std::size_t>(count));
  std::vector<DeviceBuffer> logits;
  for (int i = 0; i < copies; ++i) {
    // Zipf's law with a power of 1.6 in a scattered order: top-p 0.95 keeps about 90 tokens.
    for (int64_t idx = 0; idx < count; ++idx) {
      const int64_t rank = (idx * 7919 + i * 31) % vocab_size;
      host[static_cast<std::size_t>(idx)] = -1.6f * std::log(static_cast<float>(rank + 1));
    }
    logits.push_back(DeviceBuffer::from_host(host.data(), 4 * count));
  }
  DeviceBuffer tokens(4 * num_rows), logprobs(4 * num_rows);
  DeviceBuffer top_tokens(4 * num_rows * 5), top_logprobs(4 * num_rows * 5);
  for (const Case& c : cases) {
    std::vector<SamplingRow> rows(static_cast<std::size_t>(num_rows), c.row);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i].uniform = (static_cast<double>(i) + 0.5) / static_cast<double>(num_rows);
    }
    const DeviceBuffer device_rows = DeviceBuffer::from_host(
        rows.data(), static_cast<int64_t>(rows.size() * sizeof(SamplingRow)));
    bench.report("sample", c.name, num_rows, vocab_size, static_cast<double>(4 * count),
                 microseconds(bench.stream, 2 * copies, [&](int i) {
                   sample_cuda({.logits = logits[static_cast<std::size_t>(i % copies)].as<float>(),
                                .num_rows = num_rows,
                                .vocab_size = vocab_size,
                                .rows = device_rows.as<SamplingRow>(),
                                .tokens = tokens.as<int32_t>(),
                                .logprobs = logprobs.as<float>(),
                                .max_logprobs = 5,
                                .top_tokens = top_tokens.as<int32_t>(),
                                .top_logprobs = top_logprobs.as<float>()},
                               bench.stream);
                 }));
  }
}

void bench_embedding(const Bench& bench, int64_t num_tokens, int64_t hidden_size) {
  constexpr int64_t kVocab = 128256;
  const DeviceBuffer table = random_buffer<__nv_bfloat16>(kVocab * hidden_size, 4);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < num_tokens; ++i) ids.push_back(static_cast<int32_t>(i * 7919 % kVocab));
  const DeviceBuffer device_ids = DeviceBuffer::from_host(ids.data(), 4 * num_tokens);
  DeviceBuffer hidden(4 * num_tokens * hidden_size);
  bench.report("embedding", "bf16", num_tokens, hidden_size,
               static_cast<double>(6 * num_tokens * hidden_size),
               microseconds(bench.stream, 8, [&](int) {
                 embedding_lookup_cuda({.table = table.data(),
                                        .vocab_size = kVocab,
                                        .hidden_size = hidden_size,
                                        .token_ids = device_ids.as<int32_t>(),
                                        .num_tokens = num_tokens,
                                        .hidden = hidden.as<float>()},
                                       bench.stream);
               }));
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
    bench_embedding(bench, 4096, 4096);
    for (const int64_t num_rows : {1, 64}) bench_sampling(bench, num_rows, 128256);
  } catch (const Error& error) {
    std::fprintf(stderr, "fused_cuda_bench: %s\n", error.what());
    return 1;
  }
}
