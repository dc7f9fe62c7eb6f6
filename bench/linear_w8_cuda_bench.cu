// Linear layers of 1 to 64 rows with 8-bit weights, beside cuBLAS in BF16: microseconds, GB/s of
// weight bytes (codes and scales), share of what a plain read reaches on this card, ratio to BF16.
// Weights rotate through more than the L2 cache holds; launches are replayed from a CUDA graph;
// figures are medians. Every case is checked against double sums on random outputs first, with y
// poisoned.
//   linear_w8_cuda_bench [--shapes lm_head,qkv] [--formats fp8] [--rows 1,16] [--sweep]
//   linear_w8_cuda_bench --gemm     FP8 times FP8 by cuBLASLt at 256 to 4096 rows, beside BF16
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/linear/gemm_cublas.h"
#include "kernels/linear/gemm_fp8_cublaslt.h"
#include "kernels/linear/linear_w8_small_sm90.h"
#include "tensor/cuda_check.h"
#include "tensor/device_buffer.h"

namespace lathe {
namespace {

constexpr int64_t kRotatedBytes = int64_t{256} << 20;
constexpr int kSamples = 4096;

__host__ __device__ uint32_t mix(uint64_t i) {
  i = (i ^ i >> 33) * 0xff51afd7ed558ccdull;
  i = (i ^ i >> 29) * 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(i >> 32);
}
enum class Fill { kCode, kNoNanCode, kE8m0, kBf16Scale, kF32Scale, kNormal };
__global__ void fill(Fill what, void* out, int64_t count, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint32_t bits = mix(static_cast<uint64_t>(i) + (seed << 40));
    const float unit = static_cast<float>(bits) * 0x1p-32f;
    switch (what) {
      case Fill::kCode:
        static_cast<uint8_t*>(out)[i] = static_cast<uint8_t>(bits);
        break;
      case Fill::kNoNanCode:
        static_cast<uint8_t*>(out)[i] = static_cast<uint8_t>((bits & 127) == 127 ? bits ^ 1 : bits);
        break;
      case Fill::kE8m0:
        static_cast<uint8_t*>(out)[i] = static_cast<uint8_t>(115 + bits % 10);
        break;
      case Fill::kBf16Scale:
        static_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16(0.001f + 0.01f * unit);
        break;
      case Fill::kF32Scale:
        static_cast<float*>(out)[i] = 0.001f + 0.01f * unit;
        break;
      case Fill::kNormal:  // of four uniform numbers, about normal
        float sum = 0;
        for (int j = 0; j < 4; ++j) {
          sum +=
              static_cast<float>(mix(static_cast<uint64_t>(4 * i + j) + (seed << 40))) * 0x1p-32f -
              0.5f;
        }
        static_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16(sum * 1.7f);
        break;
    }
  }
}
void run_fill(Fill what, DeviceBuffer& out, int element_bytes, uint64_t seed) {
  fill<<<2048, 256>>>(what, out.data(), out.size() / element_bytes, seed);
}

// One warp a sample: y in double, and the sum of magnitudes that errors are measured by.
__global__ void reference(W8Matrix w, const __nv_bfloat16* x, int m, double* y,
                          double* magnitudes) {
  const int sample = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
  if (sample >= kSamples) return;
  const int64_t row = mix(sample) % w.n;
  const int token = sample % m;
  double sum = 0, total = 0;
  for (int64_t c = threadIdx.x % 32; c < w.k; c += 32) {
    const auto code = static_cast<uint8_t>(w.codes[row * w.k + c]);
    __nv_fp8_e4m3 e4m3;
    e4m3.__x = code;
    double value = w.element == ElementType::kInt8 ? double(static_cast<int8_t>(code))
                                                   : double(static_cast<float>(e4m3));
    const int64_t group = row * (w.k / 32) + c / 32;
    if (w.scale == ScaleType::kF32) {
      value *= reinterpret_cast<const float*>(w.scales)[row];
    } else if (w.scale == ScaleType::kBF16) {
      value *= __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(w.scales)[group]);
    } else {
      value = ldexp(value, int(w.scales[group]) - 127);
    }
    value *= double{__bfloat162float(x[token * w.k + c])};
    sum += value;
    total += fabs(value);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(~0u, sum, offset);
    total += __shfl_xor_sync(~0u, total, offset);
  }
  if (threadIdx.x % 32 == 0) {
    y[sample] = sum;
    magnitudes[sample] = total;
  }
}
__global__ void __launch_bounds__(512) read(const uint4* data, int64_t count, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 8
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint4 v = __ldcs(data + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678u) *out = sum;
}

// Median microseconds of one of `count` launches by enqueue(i), replayed as a graph.
double time_graph(int count, cudaStream_t stream, const std::function<void(int)>& enqueue) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
  for (int i = 0; i < count; ++i) enqueue(i);
  cuda_check(cudaStreamEndCapture(stream, &graph), "capturing");
  cuda_check(cudaGraphInstantiate(&exec, graph, 0), "making a graph");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<double> times;
  for (int repeat = 0; repeat < 11; ++repeat) {
    cudaEventRecord(begin, stream);
    cudaGraphLaunch(exec, stream);
    cudaEventRecord(end, stream);
    cuda_check(cudaEventSynchronize(end), "timing");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (repeat >= 2) times.push_back(ms * 1000.0 / count);
  }
  std::nth_element(times.begin(), times.begin() + 4, times.end());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return times[4];
}

struct Shape {
  const char* name;
  int64_t n, k;
};
constexpr Shape kShapes[] = {{"lm_head", 128256, 4096}, {"qkv", 6144, 4096},
                             {"o", 4096, 4096},         {"gate_up", 28672, 4096},
                             {"down", 4096, 14336},     {"70b_gate", 57344, 8192},
                             {"70b_down", 8192, 28672}};
constexpr struct {
  const char* name;
  ElementType element;
  ScaleType scale;
} kFormats[] = {{"int8g32", ElementType::kInt8, ScaleType::kBF16},
                {"fp8", ElementType::kE4M3, ScaleType::kF32},
                {"mxfp8", ElementType::kE4M3, ScaleType::kE8M0}};

int bench_gemm() {
  CudaContext context(0);
  Fp8Gemm gemm(context);
  std::printf("%s\n", context.name().c_str());
  for (const Shape& shape : kShapes) {
    const int64_t n = shape.n, k = shape.k;
    if (n > 60000) continue;
    const int copies = static_cast<int>(std::max<int64_t>(2, kRotatedBytes / (n * k)));
    constexpr int64_t kMost = 4096;
    DeviceBuffer w(copies * n * k), w_bf16(copies * n * k * 2), x(kMost * k), x_bf16(kMost * k * 2);
    DeviceBuffer w_scales(n * 4), x_scales(kMost * 4), y(kMost * n * 2);
    run_fill(Fill::kNoNanCode, w, 1, 1);
    run_fill(Fill::kNoNanCode, x, 1, 2);
    run_fill(Fill::kNormal, w_bf16, 2, 3);
    run_fill(Fill::kNormal, x_bf16, 2, 4);
    run_fill(Fill::kF32Scale, w_scales, 4, 5);
    run_fill(Fill::kF32Scale, x_scales, 4, 6);
    cuda_check(cudaDeviceSynchronize(), "filling");
    for (const int64_t m : {256, 1024, 4096}) {
      const CudaLinearOutput output{CudaElement::kBF16, y.data(), n};
      const CudaLinearInput fp8{CudaElement::kE4M3, x.data(), x_scales.as<float>(), m, k};
      const CudaLinearInput bf16{CudaElement::kBF16, x_bf16.data(), nullptr, m, k};
      const auto run_fp8 = [&](int i) {
        gemm.run(fp8, {n, k, w.data() + i % copies * n * k, w_scales.as<float>(), nullptr}, output);
      };
      const auto run_bf16 = [&](int i) {
        gemm_cublas(bf16, w_bf16.data() + i % copies * n * k * 2, n, output, context);
      };
      run_fp8(0);  // outside of the graph, which could not hold its memory growing
      run_bf16(0);
      context.synchronize();
      const double us = time_graph(4, context.stream(), run_fp8);
      const double bf16_us = time_graph(4, context.stream(), run_bf16);
      const double flops = 2.0 * double(m) * double(n) * double(k) * 1e-6;
      std::printf("%-8s m %4d fp8 %8.2f us %5.0f TFLOP/s  bf16 %8.2f us %5.0f TFLOP/s  x%4.2f\n",
                  shape.name, int(m), us, flops / us, bf16_us, flops / bf16_us, bf16_us / us);
      std::fflush(stdout);
    }
  }
  return 0;
}

int bench(int argc, char** argv) {
  std::string shapes, formats;
  std::vector<int> rows = {1, 4, 8, 16, 32, 64};
  bool sweep = false;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--sweep")) sweep = true;
    if (!std::strcmp(argv[i], "--gemm")) return bench_gemm();
    if (!std::strcmp(argv[i], "--shapes") && i + 1 < argc) shapes = argv[++i];
    if (!std::strcmp(argv[i], "--formats") && i + 1 < argc) formats = argv[++i];
    if (!std::strcmp(argv[i], "--rows") && i + 1 < argc) {
      rows.clear();
      for (char* p = std::strtok(argv[++i], ","); p; p = std::strtok(nullptr, ",")) {
        rows.push_back(std::atoi(p));
      }
    }
  }
  cudaDeviceProp properties;
  cuda_check(cudaGetDeviceProperties(&properties, 0), "asking for the GPU");
  const int sms = properties.multiProcessorCount;
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  double peak = 0;
  {
    DeviceBuffer data(int64_t{2} << 30), out(4);
    run_fill(Fill::kCode, data, 1, 3);
    for (const int blocks : {sms, 2 * sms, 4 * sms}) {
      const double us = time_graph(4, stream, [&](int) {
        read<<<static_cast<unsigned>(blocks), 512, 0, stream>>>(data.as<uint4>(), data.size() / 16,
                                                                out.as<uint32_t>());
      });
      peak = std::max(peak, static_cast<double>(data.size()) / us * 1e-3);
    }
    std::printf("%s, %d multiprocessors, reads %.0f GB/s\n", properties.name, sms, peak);
  }
  cublasHandle_t cublas;
  cublasCreate(&cublas);
  DeviceBuffer cublas_workspace(32 << 20);
  cublasSetStream(cublas, stream);
  cublasSetWorkspace(cublas, cublas_workspace.data(), 32 << 20);
  bool right = true;
  const std::string wanted = "," + shapes + ",";
  for (const Shape& shape : kShapes) {
    if (!shapes.empty() && wanted.find(str(",", shape.name, ",")) == std::string::npos) continue;
    const int64_t n = shape.n, k = shape.k;
    DeviceBuffer x(64 * k * 2), y(64 * n * 4), sums(kSamples * 8), totals(kSamples * 8);
    run_fill(Fill::kNormal, x, 2, 4);
    std::vector<double> bf16_us;
    {
      const int copies = static_cast<int>(std::max<int64_t>(2, kRotatedBytes / (n * k * 2)));
      DeviceBuffer dense(copies * n * k * 2);
      run_fill(Fill::kNormal, dense, 2, 5);
      const float one = 1, zero = 0;
      for (const int m : rows) {
        bf16_us.push_back(time_graph(std::max(copies, 6), stream, [&](int i) {
          cublasGemmEx(cublas, CUBLAS_OP_T, CUBLAS_OP_N, int(n), m, int(k), &one,
                       dense.data() + i % copies * n * k * 2, CUDA_R_16BF, int(k), x.data(),
                       CUDA_R_16BF, int(k), &zero, y.data(), CUDA_R_16BF, int(n),
                       CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        }));
      }
    }
    const int copies = static_cast<int>(std::max<int64_t>(2, kRotatedBytes / (n * k)));
    for (const auto& format : kFormats) {
      if (!formats.empty() &&
          ("," + formats + ",").find(str(",", format.name, ",")) == std::string::npos)
        continue;
      const bool per_row = format.scale == ScaleType::kF32;
      const int64_t scale_bytes =
          per_row ? n * 4 : n * (k / 32) * (format.scale == ScaleType::kBF16 ? 2 : 1);
      DeviceBuffer codes(copies * n * k), scales(copies * scale_bytes);
      run_fill(format.element == ElementType::kInt8 ? Fill::kCode : Fill::kNoNanCode, codes, 1, 6);
      run_fill(per_row                            ? Fill::kF32Scale
               : format.scale == ScaleType::kBF16 ? Fill::kBf16Scale
                                                  : Fill::kE8m0,
               scales,
               per_row                            ? 4
               : format.scale == ScaleType::kBF16 ? 2
                                                  : 1,
               7);
      const auto matrix = [&](int i) {
        W8Matrix w;
        w.element = format.element;
        w.scale = format.scale;
        w.group_size = per_row ? 0 : 32;
        w.n = n;
        w.k = k;
        w.codes = codes.data() + i % copies * n * k;
        w.scales = scales.data() + i % copies * scale_bytes;
        return w;
      };
      for (size_t r = 0; r < rows.size(); ++r) {
        const int m = rows[r];
        const CudaLinearInput input{CudaElement::kBF16, x.data(), nullptr, m, k};
        const W8SmallConfig chosen = choose_w8_small_config(m, n, k, sms);
        std::vector<W8SmallConfig> configs = {chosen};
        for (const int cluster : {1, 2, 4, 8}) {
          for (const int split : {1, 2, 4, 8}) {
            const W8SmallConfig config = w8_small_config(m, n, split, cluster, sms);
            if (!sweep || config.stages == 0) continue;
            if (config != chosen) configs.push_back(config);
            if (config.rows <= 16 && cluster == 1) {  // two blocks a multiprocessor
              configs.push_back(config);
              configs.back().blocks = 2 * sms;
            }
          }
        }
        reference<<<kSamples / 8, 256, 0, stream>>>(matrix(0), x.as<__nv_bfloat16>(), m,
                                                    sums.as<double>(), totals.as<double>());
        std::vector<double> expected(kSamples), magnitudes(kSamples);
        sums.to_host(expected.data(), sums.size(), stream);
        totals.to_host(magnitudes.data(), totals.size(), stream);
        for (const W8SmallConfig& config : configs) {
          cuda_check(cudaMemsetAsync(y.data(), 0xff, static_cast<size_t>(y.size()), stream),
                     "poison");
          linear_w8_small_sm90(matrix(0), input, {CudaElement::kF32, y.data(), n}, config, stream);
          std::vector<float> got(static_cast<size_t>(m * n));
          y.to_host(got.data(), static_cast<int64_t>(got.size() * 4), stream);
          double worst = 0;  // in 2^-24 of the sum of magnitudes
          for (int s = 0; s < kSamples; ++s) {
            const int64_t row = mix(static_cast<uint64_t>(s)) % n;
            const double error =
                std::fabs(got[static_cast<size_t>(s % m * n + row)] - expected[size_t(s)]) /
                magnitudes[size_t(s)] * 0x1p24;
            if (!(error <= worst)) worst = error;
          }
          const auto unwritten =
              std::count_if(got.begin(), got.end(), [](float v) { return v != v; });
          const bool ok = worst <= 1.0625 * double(k) + 64 && unwritten == 0;
          right = right && ok;
          const double us = time_graph(std::max(copies, 6), stream, [&](int i) {
            linear_w8_small_sm90(matrix(i), input, {CudaElement::kBF16, y.data(), n}, config,
                                 stream);
          });
          const double rate = double(n * k + scale_bytes) / us * 1e-3;
          std::printf(
              "%-8s m %2d %-7s %7.2f us %5.0f GB/s %3.0f%%  bf16 %7.2f us x%4.2f  error %.0f%s "
              "[%s]%s\n",
              shape.name, m, format.name, us, rate, 100 * rate / peak, bf16_us[r], bf16_us[r] / us,
              worst, ok ? "" : " WRONG", to_string(config).c_str(),
              &config == &configs[0] ? " *" : "");
          std::fflush(stdout);
        }
      }
    }
  }
  std::puts(right ? "all right" : "WRONG");
  return right ? 0 : 1;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  try {
    return lathe::bench(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
