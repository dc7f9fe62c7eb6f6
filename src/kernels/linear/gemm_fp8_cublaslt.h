// FP8 times FP8 for many rows by cuBLASLt: y[m, n] = (x w^T) * x.row_scales[m] * w_scales[n] +
// bias[n], sums in fp32, both factors applied before y is rounded.
#pragma once
#include <map>
#include <memory>
#include <tuple>

#include "kernels/cuda_context.h"
#include "kernels/linear/linear_cuda.h"

namespace lathe {

// E4M3 weights on the device.
struct Fp8Matrix {
  int64_t n = 0;
  int64_t k = 0;
  const std::byte* codes = nullptr;  // [n, k], 16-byte aligned
  const float* scales = nullptr;     // [n], 16-byte aligned
  const float* bias = nullptr;       // [n]; null: zeros
};

// Keeps what cuBLASLt's heuristic chose for each size. Not for several threads at once.
class Fp8Gemm {
 public:
  explicit Fp8Gemm(CudaContext& context);
  ~Fp8Gemm();
  Fp8Gemm(const Fp8Gemm&) = delete;
  Fp8Gemm& operator=(const Fp8Gemm&) = delete;

  // What cuBLASLt takes: k, n and y's row stride multiples of 16.
  static bool supports(int64_t n, int64_t k, int64_t y_stride);

  // x: E4M3 with row_scales; y: bf16 or fp32. A bias costs a pass over y, and bf16 y a second
  // rounding by it. Only enqueues. Throws kInvalidArgument, kUnsupported when cuBLASLt has no
  // kernel, kDevice.
  void run(const CudaLinearInput& x, const Fp8Matrix& w, const CudaLinearOutput& y);

 private:
  struct Plan;
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, CudaElement>;  // m, n, k, stride, y
  Plan& plan(const Key& key, const CudaLinearInput& x, const Fp8Matrix& w);

  CudaContext& context_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace lathe
