// Linear layers of 1 to 16 rows with packed weights, beside cuBLASLt in BF16: microseconds, GB/s of
// weight bytes, share of what a plain read of memory reaches on this card, ratio to BF16. Weights
// rotate through more than the L2 cache holds; launches are replayed from a CUDA graph; each figure
// is the median of several replays. Every shape is checked against sums in double first.
//   linear_small_cuda_bench [--models 8b,70b,head] [--formats mxfp4,nvfp4] [--rows 1,16]
//                           [--shapes qkv,o,gate_up,down,lm_head] [--sweep]
// --sweep: every version beside the chosen one.
#include <cublasLt.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/linear/dequantize_cuda.h"
#include "kernels/linear/linear_fp4_small_sm90.h"
#include "kernels/linear/pack_fp4.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int64_t kRotatedBytes = int64_t{400} << 20;

__device__ uint32_t hash(uint64_t x) {
  x = (x ^ x >> 31) * 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 29) * 0xBF58476D1CE4E5B9ull;
  return static_cast<uint32_t>(x >> 32);
}
// Random bytes in [low, low + range).
__global__ void fill_bytes(uint8_t* out, int64_t count, uint64_t seed, int low, int range) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    out[i] = static_cast<uint8_t>(low + hash(seed + static_cast<uint64_t>(i)) % unsigned(range));
  }
}
__global__ void fill_bf16(__nv_bfloat16* out, int64_t count, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    float sum = 0;  // of four uniform numbers, about normal
    for (int j = 0; j < 4; ++j) {
      sum += static_cast<float>(hash(seed + static_cast<uint64_t>(4 * i + j))) * 0x1p-32f - 0.5f;
    }
    out[i] = __float2bfloat16(sum * 1.7f);
  }
}
// y in double, one warp an output; and the sums of magnitudes that errors are measured by.
__global__ void reference_kernel(const __nv_bfloat16* x, const float* w, int m, int64_t n,
                                 int64_t k, double* y, double* magnitudes) {
  const int64_t j = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (j >= n) return;
  for (int t = 0; t < m; ++t) {
    double sum = 0, total = 0;
    for (int64_t i = threadIdx.x % 32; i < k; i += 32) {
      const double product = double{__bfloat162float(x[t * k + i])} * double{w[j * k + i]};
      sum += product;
      total += fabs(product);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(~0u, sum, offset);
      total += __shfl_xor_sync(~0u, total, offset);
    }
    if (threadIdx.x % 32 == 0) {
      y[t * n + j] = sum;
      magnitudes[t * n + j] = total;
    }
  }
}
__global__ void __launch_bounds__(512)
    read_kernel(const uint4* data, int64_t count, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 8
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint4 v = __ldcs(data + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678u) *out = sum;
}

// Median microseconds of one of `count` launches that `enqueue(i)` makes, replayed as a graph.
double time_graph(int count, cudaStream_t stream, const std::function<void(int)>& enqueue) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < count; ++i) enqueue(i);
  cuda_check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda_check(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<double> times;
  for (int repeat = 0; repeat < 13; ++repeat) {
    cudaEventRecord(begin, stream);
    cudaGraphLaunch(exec, stream);
    cudaEventRecord(end, stream);
    cuda_check(cudaEventSynchronize(end), "timing");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (repeat >= 2) times.push_back(ms * 1000.0 / count);
  }
  std::nth_element(times.begin(), times.begin() + 5, times.end());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return times[5];
}

// y[m, n] = x w^T by the algorithm that cuBLASLt's heuristic puts first.
class Blas {
 public:
  Blas() : workspace_(64 << 20) { cublasLtCreate(&handle_); }
  ~Blas() { cublasLtDestroy(handle_); }
  double time(int m, int64_t n, int64_t k, const std::vector<const void*>& w, const void* x,
              void* y, int count, cudaStream_t stream) {
    cublasLtMatmulDesc_t desc;
    cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose);
    cublasLtMatrixLayout_t lw, lx, ly;
    cublasLtMatrixLayoutCreate(&lw, CUDA_R_16BF, k, n, k);
    cublasLtMatrixLayoutCreate(&lx, CUDA_R_16BF, k, m, k);
    cublasLtMatrixLayoutCreate(&ly, CUDA_R_16BF, n, m, n);
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulPreferenceCreate(&preference);
    const auto bytes = static_cast<size_t>(workspace_.size());
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &bytes, sizeof bytes);
    cublasLtMatmulHeuristicResult_t results[4];
    int found = 0;
    cublasLtMatmulAlgoGetHeuristic(handle_, desc, lw, lx, ly, ly, preference, 4, results, &found);
    double best = INFINITY;
    const float one = 1, zero = 0;
    for (int a = 0; a < found; ++a) {
      best = std::min(best, time_graph(count, stream, [&](int i) {
                        cublasLtMatmul(handle_, desc, &one, w[static_cast<size_t>(i) % w.size()],
                                       lw, x, lx, &zero, y, ly, y, ly, &results[a].algo,
                                       workspace_.data(), bytes, stream);
                      }));
    }
    return best;
  }

 private:
  cublasLtHandle_t handle_ = nullptr;
  DeviceBuffer workspace_;
};

struct Shape {
  const char* model;
  const char* name;
  int64_t n, k;
};
constexpr Shape kShapes[] = {{"8b", "qkv", 6144, 4096},        {"8b", "o", 4096, 4096},
                             {"8b", "gate_up", 28672, 4096},   {"8b", "down", 4096, 14336},
                             {"70b", "qkv", 10240, 8192},      {"70b", "o", 8192, 8192},
                             {"70b", "gate_up", 57344, 8192},  {"70b", "down", 8192, 28672},
                             {"head", "lm_head", 128256, 4096}};

enum class Kind { kMxfp4, kNvfp4 };
constexpr struct {
  Kind kind;
  const char* name;
  int code_bytes, scale_bytes;  // of a tile
  int scale_low, scale_range;   // random bytes of scales
} kKinds[] = {{Kind::kMxfp4, "mxfp4", 2048, 128, 115, 10},
              {Kind::kNvfp4, "nvfp4", 2048, 256, 0, 64}};

// A random weight in tiles, repeated until it is larger than the cache.
struct Weights {
  Kind kind;
  int64_t n, k, code_bytes, scale_bytes;
  int copies;
  DeviceBuffer codes, scales;

  Weights(int index, int64_t rows, int64_t columns)
      : kind(kKinds[index].kind), n(rows), k(columns) {
    const int64_t tiles = (n + 63) / 64 * (k / 64);
    code_bytes = tiles * kKinds[index].code_bytes;
    scale_bytes = tiles * kKinds[index].scale_bytes;
    copies = static_cast<int>(std::max<int64_t>(2, kRotatedBytes / code_bytes));
    codes = DeviceBuffer(copies * code_bytes);
    scales = DeviceBuffer(copies * scale_bytes);
    fill_bytes<<<1024, 256>>>(codes.as<uint8_t>(), codes.size(), 1, 0, 256);
    fill_bytes<<<1024, 256>>>(scales.as<uint8_t>(), scales.size(), 2, kKinds[index].scale_low,
                              kKinds[index].scale_range);
  }
  Fp4Tiles fp4(int i) const {
    return {ElementType::kE2M1,
            kind == Kind::kMxfp4 ? ScaleType::kE8M0 : ScaleType::kE4M3,
            n,
            k,
            codes.data() + i % copies * code_bytes,
            scales.data() + i % copies * scale_bytes,
            nullptr,
            nullptr};
  }
  void run(int i, const CudaLinearInput& x, const CudaLinearOutput& y,
           const SmallLinearConfig& config, cudaStream_t stream) const {
    linear_fp4_small_sm90(fp4(i), x, y, config, stream);
  }
};

// The largest error, as a multiple of 2^-24 of the sum of magnitudes. NaN stays NaN.
double worst_error(const std::vector<float>& y, const std::vector<double>& expected,
                   const std::vector<double>& magnitudes) {
  double worst = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const double error = std::fabs(y[i] - expected[i]) / magnitudes[i] * 0x1p24;
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

int bench(int argc, char** argv) {
  std::string models = "8b,70b", formats = "mxfp4,nvfp4";
  std::vector<int> rows = {1, 4, 8, 16};
  std::string shapes = ",qkv,o,gate_up,down,lm_head,";
  bool sweep = false;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--sweep")) sweep = true;
    if (!std::strcmp(argv[i], "--models") && i + 1 < argc) models = argv[++i];
    if (!std::strcmp(argv[i], "--shapes") && i + 1 < argc)
      shapes = ',' + std::string(argv[++i]) + ',';
    if (!std::strcmp(argv[i], "--formats") && i + 1 < argc) formats = argv[++i];
    if (!std::strcmp(argv[i], "--rows") && i + 1 < argc) {
      rows.clear();
      for (char* p = std::strtok(argv[++i], ","); p; p = std::strtok(nullptr, ",")) {
        rows.push_back(std::atoi(p));
      }
    }
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  cudaDeviceProp properties;
  cuda_check(cudaGetDeviceProperties(&properties, 0), "device");
  const int sms = properties.multiProcessorCount;
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  double peak = 0;
  {
    DeviceBuffer data(int64_t{2} << 30), out(4);
    fill_bytes<<<1024, 256>>>(data.as<uint8_t>(), data.size(), 3, 0, 256);
    for (const int blocks : {sms, 2 * sms, 4 * sms}) {
      const double us = time_graph(4, stream, [&](int) {
        read_kernel<<<blocks, 512, 0, stream>>>(data.as<uint4>(), data.size() / 16,
                                                out.as<uint32_t>());
      });
      peak = std::max(peak, static_cast<double>(data.size()) / us * 1e-3);
    }
    const double us = time_graph(2, stream, [&](int) {
      cudaMemcpyAsync(data.data(), data.data() + data.size() / 2,
                      static_cast<size_t>(data.size() / 2), cudaMemcpyDeviceToDevice, stream);
    });
    std::printf("%s, %d multiprocessors: reads %.0f GB/s, copies %.0f GB/s (read + written)\n",
                properties.name, sms, peak, static_cast<double>(data.size()) / us * 1e-3);
  }
  Blas blas;
  bool right = true;
  for (const Shape& shape : kShapes) {
    if (models.find(shape.model) == std::string::npos) continue;
    if (shapes.find(',' + std::string(shape.name) + ',') == std::string::npos) continue;
    DeviceBuffer x(64 * shape.k * 2), y(64 * shape.n * 4);
    fill_bf16<<<256, 256>>>(x.as<__nv_bfloat16>(), 64 * shape.k, 4);
    std::vector<double> blas_us;
    {
      const int64_t bytes = shape.n * shape.k * 2;
      const int copies = static_cast<int>(std::max<int64_t>(2, kRotatedBytes / bytes));
      DeviceBuffer dense(copies * bytes);
      fill_bf16<<<4096, 256>>>(dense.as<__nv_bfloat16>(), copies * bytes / 2, 5);
      std::vector<const void*> w;
      for (int i = 0; i < copies; ++i) w.push_back(dense.data() + i * bytes);
      for (const int m : rows) {
        blas_us.push_back(
            blas.time(m, shape.n, shape.k, w, x.data(), y.data(), std::max(copies, 8), stream));
      }
    }
    for (int index = 0; index < 2; ++index) {
      const char* format = kKinds[index].name;
      if (formats.find(format) == std::string::npos) continue;
      Weights w(index, shape.n, shape.k);
      // A check of the largest number of rows.
      const int most = *std::max_element(rows.begin(), rows.end());
      std::vector<double> expected(static_cast<size_t>(most * shape.n)),
          magnitudes(expected.size());
      {
        DeviceBuffer dense(shape.n * shape.k * 4);
        DeviceBuffer sums(most * shape.n * 8), totals(most * shape.n * 8);
        dequantize_cuda(w.fp4(0), CudaElement::kF32, dense.data(), nullptr);
        reference_kernel<<<static_cast<unsigned>((shape.n + 7) / 8), 256>>>(
            x.as<__nv_bfloat16>(), dense.as<float>(), most, shape.n, shape.k, sums.as<double>(),
            totals.as<double>());
        sums.to_host(expected.data(), sums.size());
        totals.to_host(magnitudes.data(), totals.size());
      }
      for (size_t r = 0; r < rows.size(); ++r) {
        const int m = rows[r];
        const CudaLinearInput input{CudaElement::kBF16, x.data(), nullptr, m, shape.k};
        std::vector<SmallLinearConfig> configs = {choose_small_linear_config(m, shape.n, sms)};
        for (const int strips : {1, 2, 4}) {
          if (!sweep) break;
          const auto other = small_linear_config(m, shape.n, strips, sms);
          if (other != configs[0]) configs.push_back(other);
        }
        for (const SmallLinearConfig& config : configs) {
          const auto enqueue = [&](int i, CudaElement element) {
            w.run(i, input, {element, y.data(), shape.n}, config, stream);
          };
          cuda_check(cudaMemsetAsync(y.data(), 0xff, static_cast<size_t>(y.size()), stream),
                     "poison");
          enqueue(0, CudaElement::kF32);
          std::vector<float> got(static_cast<size_t>(m * shape.n));
          y.to_host(got.data(), static_cast<int64_t>(got.size() * 4), stream);
          const double error = worst_error(
              got, {expected.begin(), expected.begin() + static_cast<int64_t>(got.size())},
              {magnitudes.begin(), magnitudes.begin() + static_cast<int64_t>(got.size())});
          const bool ok = error <= 1.125 * static_cast<double>(shape.k) + 12;
          right = right && ok;
          const double us = time_graph(std::max(w.copies, 16), stream,
                                       [&](int i) { enqueue(i, CudaElement::kBF16); });
          const double gbs = static_cast<double>(w.code_bytes + w.scale_bytes) / us * 1e-3;
          std::printf(
              "%-4s %-8s m %2d %s %7.2f us %5.0f GB/s %3.0f%%  bf16 %7.2f us  x%4.2f  error "
              "%.0f%s  [%s]\n",
              shape.model, shape.name, m, format, us, gbs, 100 * gbs / peak, blas_us[r],
              blas_us[r] / us, error, ok ? "" : " WRONG", to_string(config).c_str());
          std::fflush(stdout);
        }
      }
    }
  }
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
