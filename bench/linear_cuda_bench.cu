// Speed of the linear layers with 4-bit weights for many rows on Hopper, beside cuBLASLt:
//   linear_cuda_bench [--check] [--accuracy] [--all] [--m 256,...] [--shape NxK,...] [--only TEXT]
// Prints per shape and number of rows the median time and TFLOP/s of cuBLASLt BF16 and FP8 and of
// the kernels here, and their speed relative to BF16. Every case is checked against double sums on
// random elements before it is timed. A case walks through copies of its weight (more than 200 MB,
// so that L2 is cold for it) inside one CUDA graph. --all times every version, not the chosen one;
// --only TEXT those whose line holds TEXT, once and unchecked, without cuBLAS (for a profiler).
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/linear/fp4_tiles.h"
#include "kernels/linear/linear_mxfp4_sm90.h"
#include "kernels/linear/linear_nvfp4_sm90.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

__host__ __device__ uint32_t hash32(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(x >> 32);
}
__device__ float normal(uint64_t i, uint64_t seed) {
  const float u = (hash32(i * 2 + seed * 0x9E3779B97F4A7C15ull) + 0.5f) * 0x1p-32f;
  const float v = (hash32(i * 2 + 1 + seed * 0x9E3779B97F4A7C15ull) + 0.5f) * 0x1p-32f;
  return sqrtf(-2 * logf(u)) * cospif(2 * v);
}

__global__ void fill_words(uint32_t* words, int64_t count, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    words[i] = hash32(uint64_t(i) + (seed << 40));
  }
}
// E8M0: 2^-9 .. 2^-2, around 2^-6; E4M3: the numbers 16 .. 31 (codes 0x58 .. 0x5f).
__global__ void fill_scales(uint8_t* scales, int64_t count, bool e8m0, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint32_t bits = hash32(uint64_t(i) + (seed << 40));
    scales[i] = static_cast<uint8_t>(e8m0 ? 118 + __popc(bits & 0x7Fu) : 0x58 + (bits & 7u));
  }
}
template <typename T>
__global__ void fill_normal(T* x, int64_t count, float stddev, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    x[i] = T(normal(uint64_t(i), seed) * stddev);
  }
}
__global__ void fill_float(float* x, int64_t count, float low, float high, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    x[i] = low + (high - low) * (hash32(uint64_t(i) + (seed << 40)) * 0x1p-32f);
  }
}

struct Reference {
  double value, magnitude;
};
// The weight at (row, c), from its tile.
__device__ double decode_weight(const Fp4Tiles& w, Fp4Order order, int64_t row, int64_t c) {
  const int groups = w.scale == ScaleType::kE8M0 ? 2 : 4;
  const int64_t tile = row / 64 * (w.k / 64) + c / 64;
  const TilePlace at = tile_place(order, int(row % 64), int(c % 64));
  const uint32_t word = reinterpret_cast<const uint32_t*>(
      w.codes)[tile * (kTileCodeBytes / 4) + at.thread * 4 + at.word];
  const int sign_nibble = at.index < 4 ? 2 * at.index + 1 : 2 * (at.index - 4);
  const double values[8] = {0, .5, 1, 1.5, 2, 3, 4, 6};
  double v = values[word >> (4 * at.index) & 7];
  if (word >> (4 * sign_nibble + 3) & 1) v = -v;
  const auto s = static_cast<uint8_t>(
      w.scales[tile * 64 * groups +
               tile_scale_offset(int(row % 64), int(c % 64) / (64 / groups), groups, 1)]);
  if (w.scale == ScaleType::kE8M0) {
    v = ldexp(v, int(s) - 127);
  } else {
    __nv_fp8_e4m3 e;
    e.__x = s;
    v *= double(float(e));
  }
  return v;
}
// One warp per sample (token, row).
__global__ void reference_kernel(Fp4Tiles w, Fp4Order order, const void* x, bool x_e4m3,
                                 const float* x_scales, const int2* samples, int count,
                                 Reference* out) {
  const int sample = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (sample >= count) return;
  const int64_t token = samples[sample].x, row = samples[sample].y;
  double sum = 0, magnitude = 0;
  for (int64_t c = threadIdx.x % 32; c < w.k; c += 32) {
    const double v = decode_weight(w, order, row, c);
    const double xv =
        x_e4m3 ? double(float(static_cast<const __nv_fp8_e4m3*>(x)[token * w.k + c]))
               : double(__bfloat162float(static_cast<const __nv_bfloat16*>(x)[token * w.k + c]));
    sum += v * xv;
    magnitude += fabs(v * xv);
  }
  for (int i = 16; i > 0; i /= 2) {
    sum += __shfl_xor_sync(~0u, sum, i);
    magnitude += __shfl_xor_sync(~0u, magnitude, i);
  }
  if (threadIdx.x % 32 == 0) {
    const double factor =
        double(x_scales ? x_scales[token] : 1.0f) * double(w.row_scales ? w.row_scales[row] : 1.0f);
    const double bias = w.bias ? double(w.bias[row]) : 0;
    out[sample] = {sum * factor + bias, magnitude * fabs(factor) + fabs(bias)};
  }
}
// The tensor core's FP8 sum as it is understood: per step of `block` columns the exact products and
// the accumulator are cut (towards zero) to `bits` fraction bits below the largest exponent, added
// exactly, and the sum is cut to `bits` fraction bits. One thread per sample; W as the kernel
// scales it.
__global__ void emulate_kernel(Fp4Tiles w, const uint8_t* exponents, const __nv_fp8_e4m3* x,
                               const int2* samples, int count, int block, int bits, float* out) {
  const int sample = blockIdx.x * blockDim.x + threadIdx.x;
  if (sample >= count) return;
  const int64_t token = samples[sample].x, row = samples[sample].y;
  const int base = int(exponents[row]) - 140;
  double sum = 0;
  for (int64_t c = 0; c < w.k; c += block) {
    double terms[32];
    int top = -1000;
    if (sum != 0) top = ilogb(sum);
    for (int i = 0; i < block; ++i) {
      const double a = ldexp(decode_weight(w, Fp4Order::kByteFragments, row, c + i), -base);
      const double b = float(x[token * w.k + c + i]);
      terms[i] = a * b;
      if (terms[i] != 0) top = max(top, ilogb(a) + max(ilogb(b), -6));
    }
    if (top == -1000) continue;
    double next = trunc(ldexp(sum, bits - top));
    for (int i = 0; i < block; ++i) next += trunc(ldexp(terms[i], bits - top));
    sum = ldexp(next, top - bits);
    if (sum != 0) sum = ldexp(trunc(ldexp(sum, bits - ilogb(sum))), ilogb(sum) - bits);
  }
  out[sample] = float(ldexp(sum, base));
}
__global__ void gather_kernel(const void* y, bool f32, int64_t stride, const int2* samples,
                              int count, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t at = samples[i].x * stride + samples[i].y;
  out[i] = f32 ? static_cast<const float*>(y)[at]
               : __bfloat162float(static_cast<const __nv_bfloat16*>(y)[at]);
}
// Counts elements inside [m, n] that are still NaN and elements in the padding that are not.
__global__ void count_wrong_poison(const uint32_t* y, int element_bytes, int64_t m, int64_t n,
                                   int64_t stride, int* unwritten, int* overwritten) {
  const int64_t count = m * stride;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const bool poison = element_bytes == 4 ? y[i] == 0xFFFFFFFFu
                                           : reinterpret_cast<const uint16_t*>(y)[i] == 0xFFFFu;
    if (i % stride < n && poison) atomicAdd(unwritten, 1);
    if (i % stride >= n && !poison) atomicAdd(overwritten, 1);
  }
}

#define CUBLAS_CHECK(call)                                                    \
  do {                                                                        \
    const cublasStatus_t status = (call);                                     \
    if (status != CUBLAS_STATUS_SUCCESS)                                      \
      fail(ErrorCode::kDevice, #call, " failed: ", static_cast<int>(status)); \
  } while (0)

template <typename T>
T* allocate(int64_t count) {
  void* pointer = nullptr;
  cuda_check(cudaMalloc(&pointer, size_t(count) * sizeof(T)), "allocating ", count);
  return static_cast<T*>(pointer);
}

enum class Kind { kMxfp4, kNvfp4, kMxfp4Bf16 };

struct Weights {
  std::vector<Fp4Tiles> copies;
  std::vector<uint8_t*> exponents;
};

struct Case {
  int64_t n, k;
  Kind kind;
  Fp4Order order() const {
    return kind == Kind::kMxfp4 ? Fp4Order::kByteFragments : Fp4Order::kHalfFragments;
  }
};

std::vector<void*> garbage;
void free_all() {
  for (void* p : garbage) cudaFree(p);
  garbage.clear();
}

Weights make_weights(const Case& c, int copies, const float* row_scales, const float* bias) {
  Weights weights;
  const int64_t panels = (c.n + 63) / 64;
  const int64_t code_bytes = panels * (c.k / 64) * kTileCodeBytes;
  const bool nv = c.kind == Kind::kNvfp4;
  const int64_t scale_bytes = panels * (c.k / 64) * 64 * (nv ? 4 : 2);
  for (int i = 0; i < copies; ++i) {
    auto* codes = allocate<uint32_t>(code_bytes / 4);
    auto* scales = allocate<uint8_t>(scale_bytes);
    auto* exponents = allocate<uint8_t>(panels * 64);
    garbage.insert(garbage.end(), {codes, scales, exponents});
    fill_words<<<512, 256>>>(codes, code_bytes / 4, 100 + i);
    fill_scales<<<512, 256>>>(scales, scale_bytes, !nv, 200 + i);
    Fp4Tiles w;
    w.element = ElementType::kE2M1;
    w.scale = nv ? ScaleType::kE4M3 : ScaleType::kE8M0;
    w.n = c.n;
    w.k = c.k;
    w.codes = reinterpret_cast<std::byte*>(codes);
    w.scales = reinterpret_cast<std::byte*>(scales);
    w.row_scales = row_scales;
    w.bias = bias;
    mxfp4_row_exponents(w, exponents, nullptr);
    weights.copies.push_back(w);
    weights.exponents.push_back(exponents);
  }
  cuda_check(cudaDeviceSynchronize(), "making weights");
  return weights;
}

struct Input {
  CudaLinearInput view;
};
Input make_input(int64_t m, int64_t k, bool e4m3, bool scales) {
  Input input;
  input.view.m = m;
  input.view.k = k;
  input.view.element = e4m3 ? CudaElement::kE4M3 : CudaElement::kBF16;
  void* x = nullptr;
  if (e4m3) {
    auto* p = allocate<__nv_fp8_e4m3>(m * k);
    fill_normal<<<1024, 256>>>(p, m * k, 100.0f, 7);
    x = p;
  } else {
    auto* p = allocate<__nv_bfloat16>(m * k);
    fill_normal<<<1024, 256>>>(p, m * k, 1.0f, 7);
    x = p;
  }
  garbage.push_back(x);
  input.view.data = x;
  if (scales) {
    auto* s = allocate<float>(m);
    garbage.push_back(s);
    fill_float<<<64, 256>>>(s, m, 0.5f, 2.0f, 9);
    input.view.row_scales = s;
  }
  return input;
}

struct Comparison {
  double worst = 0;  // |y - exact| / sum |w x|
  double rms = 0;    // of y - exact, relative to the rms of exact
  double slope = 0;  // of y over exact, less 1
  int unwritten = 0, overwritten = 0;
};
using Run = std::function<void(const CudaLinearOutput&)>;

Comparison compare(const Fp4Tiles& w, Fp4Order order, const CudaLinearInput& x, int64_t stride,
                   bool f32, const Run& run, int num_samples = 8192) {
  const int bytes = f32 ? 4 : 2;
  auto* y = allocate<std::byte>(x.m * stride * bytes);
  cuda_check(cudaMemset(y, 0xFF, size_t(x.m * stride * bytes)), "poisoning");
  CudaLinearOutput out;
  out.element = f32 ? CudaElement::kF32 : CudaElement::kBF16;
  out.data = y;
  out.stride = stride;
  run(out);
  cuda_check(cudaDeviceSynchronize(), "running");
  std::vector<int2> samples(static_cast<size_t>(num_samples));
  for (int i = 0; i < num_samples; ++i) {
    samples[i] = {int(hash32(uint64_t(i)) % x.m), int(hash32(uint64_t(i) + (1ull << 50)) % w.n)};
  }
  samples[0] = {int(x.m - 1), int(w.n - 1)};
  samples[1] = {0, 0};
  auto* device_samples = allocate<int2>(num_samples);
  auto* references = allocate<Reference>(num_samples);
  auto* counts = allocate<int>(2);
  cuda_check(cudaMemset(counts, 0, 8), "clearing");
  cuda_check(cudaMemcpy(device_samples, samples.data(), samples.size() * sizeof(int2),
                        cudaMemcpyHostToDevice),
             "samples");
  reference_kernel<<<num_samples / 8, 256>>>(w, order, x.data, x.element == CudaElement::kE4M3,
                                             x.row_scales, device_samples, num_samples, references);
  count_wrong_poison<<<1024, 256>>>(reinterpret_cast<uint32_t*>(y), bytes, x.m, w.n, stride, counts,
                                    counts + 1);
  std::vector<Reference> expected(samples.size());
  cuda_check(cudaMemcpy(expected.data(), references, expected.size() * sizeof(Reference),
                        cudaMemcpyDeviceToHost),
             "reference");
  auto* gathered = allocate<float>(num_samples);
  gather_kernel<<<(num_samples + 255) / 256, 256>>>(y, f32, stride, device_samples, num_samples,
                                                    gathered);
  std::vector<float> values(samples.size());
  cuda_check(cudaMemcpy(values.data(), gathered, values.size() * 4, cudaMemcpyDeviceToHost),
             "result");
  Comparison c;
  double error2 = 0, exact2 = 0, cross = 0;
  for (int i = 0; i < num_samples; ++i) {
    const float value = values[size_t(i)];
    const double error = double(value) - expected[i].value;
    const double ratio = std::fabs(error) / expected[i].magnitude;
    if (!(ratio <= c.worst)) c.worst = ratio;
    error2 += error * error;
    exact2 += expected[i].value * expected[i].value;
    cross += double(value) * expected[i].value;
  }
  c.rms = std::sqrt(error2 / exact2);
  c.slope = cross / exact2 - 1;
  int host_counts[2];
  cuda_check(cudaMemcpy(host_counts, counts, 8, cudaMemcpyDeviceToHost), "counts");
  c.unwritten = host_counts[0];
  c.overwritten = host_counts[1];
  cudaFree(y);
  cudaFree(device_samples);
  cudaFree(references);
  cudaFree(gathered);
  cudaFree(counts);
  return c;
}

// Median microseconds of one call; call(i) enqueues the i-th of `calls` on the stream.
double median_us(int calls, cudaStream_t stream, const std::function<void(int)>& call) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
  for (int i = 0; i < calls; ++i) call(i);
  cuda_check(cudaStreamEndCapture(stream, &graph), "ending the capture");
  cuda_check(cudaGraphInstantiate(&exec, graph, 0), "instantiating");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < 8; ++i) {
    cudaEventRecord(begin, stream);
    cuda_check(cudaGraphLaunch(exec, stream), "launching the graph");
    cudaEventRecord(end, stream);
    cuda_check(cudaEventSynchronize(end), "running the graph");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i > 0) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return double(times[times.size() / 2]) * 1e3 / calls;
}

// y^T [n, m] (column-major) = W^T x^T by cuBLASLt; the first algorithm that its heuristic names.
struct Cublas {
  cublasLtHandle_t handle;
  void* workspace;
  static constexpr size_t kWorkspace = size_t{64} << 20;
  Cublas() {
    CUBLAS_CHECK(cublasLtCreate(&handle));
    workspace = allocate<std::byte>(int64_t(kWorkspace));
  }
  double time(bool fp8, int64_t m, int64_t n, int64_t k, cudaStream_t stream) {
    const int64_t bytes = fp8 ? 1 : 2;
    const int copies = int(std::clamp<int64_t>((int64_t{220} << 20) / (n * k * bytes) + 1, 1, 64));
    const int calls = std::max(copies, 8);
    std::vector<void*> w;
    for (int i = 0; i < copies; ++i) {
      w.push_back(allocate<std::byte>(n * k * bytes));
      if (fp8) {
        fill_normal<<<1024, 256>>>(static_cast<__nv_fp8_e4m3*>(w.back()), n * k, 30.0f, 300 + i);
      } else {
        fill_normal<<<1024, 256>>>(static_cast<__nv_bfloat16*>(w.back()), n * k, 0.03f, 300 + i);
      }
    }
    void* x = allocate<std::byte>(m * k * bytes);
    if (fp8) {
      fill_normal<<<1024, 256>>>(static_cast<__nv_fp8_e4m3*>(x), m * k, 100.0f, 7);
    } else {
      fill_normal<<<1024, 256>>>(static_cast<__nv_bfloat16*>(x), m * k, 1.0f, 7);
    }
    void* y = allocate<__nv_bfloat16>(m * n);
    cuda_check(cudaDeviceSynchronize(), "filling");
    const cudaDataType type = fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    cublasLtMatmulDesc_t op;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transpose = CUBLAS_OP_T, plain = CUBLAS_OP_N;
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                                sizeof transpose));
    CUBLAS_CHECK(
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSB, &plain, sizeof plain));
    if (fp8) {
      const int8_t fast = 1;
      CUBLAS_CHECK(
          cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast));
    }
    cublasLtMatrixLayout_t la, lb, ld;
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&la, type, k, n, k));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&lb, type, k, m, k));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&ld, CUDA_R_16BF, n, m, n));
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspace, sizeof kWorkspace));
    cublasLtMatmulHeuristicResult_t found[1];
    int count = 0;
    CUBLAS_CHECK(
        cublasLtMatmulAlgoGetHeuristic(handle, op, la, lb, ld, ld, preference, 1, found, &count));
    if (count == 0) fail(ErrorCode::kDevice, "cuBLASLt has no algorithm");
    const float alpha = 1, beta = 0;
    const double us = median_us(calls, stream, [&](int i) {
      CUBLAS_CHECK(cublasLtMatmul(handle, op, &alpha, w[size_t(i % copies)], la, x, lb, &beta, y,
                                  ld, y, ld, &found[0].algo, workspace, kWorkspace, stream));
    });
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(la);
    cublasLtMatrixLayoutDestroy(lb);
    cublasLtMatrixLayoutDestroy(ld);
    cublasLtMatmulDescDestroy(op);
    for (void* p : w) cudaFree(p);
    cudaFree(x);
    cudaFree(y);
    return us;
  }
};

bool report(const char* name, const std::string& config, int64_t m, int64_t n, int64_t k,
            const Comparison& c, double limit) {
  const bool good = c.worst <= limit && c.unwritten == 0 && c.overwritten == 0;
  if (!good || k < 0) {
    std::printf("FAIL ");
  }
  if (!good) {
    std::printf(
        "%s m=%ld n=%ld k=%ld %s: worst %.3g (limit %.3g) rms %.3g unwritten %d overwritten %d\n",
        name, long(m), long(n), long(k), config.c_str(), c.worst, limit, c.rms, c.unwritten,
        c.overwritten);
  }
  return good;
}

// Of |y - exact| / sum |w x|: bf16's rounding and, for FP8, the accumulator's about 2^-13 a step of
// 32 columns, measured to be far less than its worst case.
constexpr double kBf16Limit = 0x1p-8, kFp8Limit = 0x1.8p-7;

int check_all() {
  int failures = 0, cases = 0;
  struct Size {
    int64_t m, n, k, pad;
    bool f32;
  };
  const Size sizes[] = {
      {256, 256, 128, 0, false},   {256, 512, 512, 8, false},  {1, 64, 64, 0, false},
      {65, 100, 192, 3, false},    {300, 328, 1088, 8, false}, {129, 1000, 320, 0, true},
      {777, 4096, 4096, 0, false}, {64, 8, 64, 0, false},      {2048, 6144, 4096, 0, false}};
  for (const Size& s : sizes) {
    auto* row_scales = allocate<float>(s.n);
    auto* bias = allocate<float>(s.n);
    fill_float<<<64, 256>>>(row_scales, s.n, 0.5f, 2.0f, 11);
    fill_float<<<64, 256>>>(bias, s.n, -1.0f, 1.0f, 12);
    for (const Kind kind : {Kind::kMxfp4, Kind::kNvfp4, Kind::kMxfp4Bf16}) {
      const Case c{s.n, s.k, kind};
      const Weights weights = make_weights(c, 1, row_scales, bias);
      const Input x = make_input(s.m, s.k, kind == Kind::kMxfp4, true);
      const int64_t stride = s.n + s.pad;
      if (kind == Kind::kMxfp4) {
        for (const Mxfp4Config& config : mxfp4_configs(s.k)) {
          const auto r = compare(weights.copies[0], c.order(), x.view, stride, s.f32,
                                 [&](const CudaLinearOutput& y) {
                                   linear_mxfp4_sm90(weights.copies[0], weights.exponents[0],
                                                     x.view, y, config, nullptr);
                                 });
          ++cases;
          failures += !report("mxfp4", to_string(config), s.m, s.n, s.k, r, kFp8Limit);
        }
      } else {
        for (const Bf16GemmConfig& config : nvfp4_configs(s.k)) {
          const auto r = compare(weights.copies[0], c.order(), x.view, stride, s.f32,
                                 [&](const CudaLinearOutput& y) {
                                   linear_nvfp4_sm90(weights.copies[0], x.view, y, config, nullptr);
                                 });
          ++cases;
          failures += !report(kind == Kind::kNvfp4 ? "nvfp4" : "mxfp4-bf16", to_string(config), s.m,
                              s.n, s.k, r, kBf16Limit);
        }
      }
      free_all();
    }
    cudaFree(row_scales);
    cudaFree(bias);
  }
  std::printf("check: %d cases, %d failures\n", cases, failures);
  return failures;
}

void accuracy() {
  std::printf("\naccuracy against exact sums, y in f32 (rms and slope relative to exact)\n");
  for (const int64_t k : {int64_t{4096}, int64_t{14336}, int64_t{28672}}) {
    const Case c{4096, k, Kind::kMxfp4};
    const Weights weights = make_weights(c, 1, nullptr, nullptr);
    const Input x = make_input(512, k, true, false);
    for (const Mxfp4Config& config : mxfp4_configs(k)) {
      const auto r = compare(
          weights.copies[0], c.order(), x.view, c.n, true,
          [&](const CudaLinearOutput& y) {
            linear_mxfp4_sm90(weights.copies[0], weights.exponents[0], x.view, y, config, nullptr);
          },
          32768);
      std::printf("k %6ld  %-44s rms %.3e slope %+.3e worst/sum|wx| %.3e\n", long(k),
                  to_string(config).c_str(), r.rms, r.slope, r.worst);
    }
    free_all();
  }
}

// How many sums the model of the accumulator reproduces bit for bit.
void emulation() {
  const int64_t m = 64, k = 4096;
  const int count = 4096;
  const Case c{256, k, Kind::kMxfp4};
  const Weights weights = make_weights(c, 1, nullptr, nullptr);
  const Input x = make_input(m, k, true, false);
  auto* y = allocate<float>(m * c.n);
  auto* samples = allocate<int2>(count);
  auto* actual = allocate<float>(count);
  auto* model = allocate<float>(count);
  garbage.insert(garbage.end(), {y, samples, actual, model});
  std::vector<int2> host_samples;
  for (int i = 0; i < count; ++i) host_samples.push_back({i % int(m), i / int(m) * 3});
  cuda_check(cudaMemcpy(samples, host_samples.data(), count * sizeof(int2), cudaMemcpyHostToDevice),
             "samples");
  const CudaLinearOutput out{CudaElement::kF32, y, c.n};
  linear_mxfp4_sm90(weights.copies[0], weights.exponents[0], x.view, out, {}, nullptr);
  gather_kernel<<<count / 256, 256>>>(y, true, c.n, samples, count, actual);
  std::vector<float> a(count), b(count);
  cuda_check(cudaMemcpy(a.data(), actual, count * 4, cudaMemcpyDeviceToHost), "result");
  for (const int block : {32, 16}) {
    for (const int bits : {12, 13, 14}) {
      emulate_kernel<<<count / 64, 64>>>(weights.copies[0], weights.exponents[0],
                                         static_cast<const __nv_fp8_e4m3*>(x.view.data), samples,
                                         count, block, bits, model);
      cuda_check(cudaMemcpy(b.data(), model, count * 4, cudaMemcpyDeviceToHost), "model");
      int equal = 0;
      for (int i = 0; i < count; ++i) equal += a[size_t(i)] == b[size_t(i)];
      std::printf(
          "model of the FP8 accumulator: %d columns a step, %d fraction bits: %d of %d sums "
          "equal (first: %.8g and %.8g)\n",
          block, bits, equal, count, a[0], b[0]);
    }
  }
  free_all();
}

struct Shape {
  int64_t n, k;
};

void time_all(const std::vector<Shape>& shapes, const std::vector<int64_t>& ms, bool all,
              const std::string& only) {
  cudaStream_t stream;
  cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  Cublas cublas;
  int num_sms = 0;
  cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, 0);
  for (const Shape& shape : shapes) {
    for (const int64_t m : ms) {
      const double flops = 2.0 * double(m) * double(shape.n) * double(shape.k);
      const double bf16 = only.empty() ? cublas.time(false, m, shape.n, shape.k, stream) : 1;
      const double fp8 = only.empty() ? cublas.time(true, m, shape.n, shape.k, stream) : 1;
      std::printf("%ldx%ld m %ld: cublas bf16 %.1f us %.0f TF | fp8 %.1f us %.0f TF %.2fx\n",
                  long(shape.n), long(shape.k), long(m), bf16, flops / bf16 * 1e-6, fp8,
                  flops / fp8 * 1e-6, bf16 / fp8);
      for (const Kind kind : {Kind::kMxfp4, Kind::kNvfp4}) {
        const Case c{shape.n, shape.k, kind};
        const int copies =
            int(std::clamp<int64_t>((int64_t{220} << 20) / (shape.n * shape.k / 2) + 1, 1, 64));
        const Weights weights = make_weights(c, copies, nullptr, nullptr);
        const Input x = make_input(m, shape.k, kind == Kind::kMxfp4, true);
        auto* y_data = allocate<__nv_bfloat16>(m * shape.n);
        garbage.push_back(y_data);
        const CudaLinearOutput y{CudaElement::kBF16, y_data, shape.n};
        const auto one =
            [&](const std::string& name, double limit, bool chosen,
                const std::function<void(int, const CudaLinearOutput&, cudaStream_t)>& call) {
              const std::string label = (kind == Kind::kMxfp4 ? "mxfp4 " : "nvfp4 ") + name;
              if (label.find(only) == std::string::npos) return;
              const Comparison r =
                  only.empty()
                      ? compare(
                            weights.copies[0], c.order(), x.view, shape.n, false,
                            [&](const CudaLinearOutput& out) { call(0, out, nullptr); }, 4096)
                      : Comparison{};
              if (!report("timed", name, m, shape.n, shape.k, r, limit)) return;
              const double us = median_us(std::max(copies, 8), stream,
                                          [&](int i) { call(i % copies, y, stream); });
              std::printf("   %-58s %8.1f us %5.0f TF  %.2fx bf16 %s\n", label.c_str(), us,
                          flops / us * 1e-6, bf16 / us, chosen ? "*" : "");
            };
        if (kind == Kind::kMxfp4) {
          const Mxfp4Config best = choose_mxfp4_config(m, shape.n, shape.k, num_sms);
          for (const Mxfp4Config& config : mxfp4_configs(shape.k)) {
            if (!all && !(config == best)) continue;
            one(to_string(config), kFp8Limit, config == best,
                [&](int i, const CudaLinearOutput& out, cudaStream_t s) {
                  linear_mxfp4_sm90(weights.copies[size_t(i)], weights.exponents[size_t(i)], x.view,
                                    out, config, s);
                });
          }
        } else {
          const Bf16GemmConfig best = choose_nvfp4_config(m, shape.n, shape.k, num_sms);
          for (const Bf16GemmConfig& config : nvfp4_configs(shape.k)) {
            if (!all && !(config == best)) continue;
            one(to_string(config), kBf16Limit, config == best,
                [&](int i, const CudaLinearOutput& out, cudaStream_t s) {
                  linear_nvfp4_sm90(weights.copies[size_t(i)], x.view, out, config, s);
                });
          }
        }
        std::fflush(stdout);
        free_all();
      }
    }
  }
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

int run(int argc, char** argv) {
  // Llama 3.1 8B and 70B: q/k/v, o, gate/up, down.
  std::vector<Shape> shapes = {{6144, 4096},  {4096, 4096}, {28672, 4096}, {4096, 14336},
                               {10240, 8192}, {8192, 8192}, {57344, 8192}, {8192, 28672}};
  std::vector<int64_t> ms = {128, 256, 512, 1024, 2048, 4096};
  std::string only;
  bool check = false, precise = false, all = false, timed = true;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--check") {
      check = true;
    } else if (flag == "--accuracy") {
      precise = true;
    } else if (flag == "--all") {
      all = true;
    } else if (flag == "--only" && i + 1 < argc) {
      only = argv[++i];
      all = true;
    } else if (flag == "--no-time") {
      timed = false;
    } else if (flag == "--m" && i + 1 < argc) {
      ms.clear();
      for (const std::string& part : split(argv[++i])) ms.push_back(std::stol(part));
    } else if (flag == "--shape" && i + 1 < argc) {
      shapes.clear();
      for (const std::string& part : split(argv[++i])) {
        const size_t cross = part.find('x');
        shapes.push_back({std::stol(part.substr(0, cross)), std::stol(part.substr(cross + 1))});
      }
    } else {
      std::fprintf(stderr, "linear_cuda_bench: what is %s?\n", flag.c_str());
      return 2;
    }
  }
  cudaDeviceProp properties;
  cuda_check(cudaGetDeviceProperties(&properties, 0), "asking for the GPU");
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  int failures = 0;
  if (check) failures = check_all();
  if (precise) accuracy(), emulation();
  if (timed) time_all(shapes, ms, all, only);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  try {
    return lathe::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "linear_cuda_bench: %s\n", error.what());
    return 1;
  }
}
