#include "kernels/linear/fp4_gemm_check.h"

#include <limits>

#include "kernels/linear/fp4_tiles.h"
#include "tensor/cuda_check.h"

namespace lathe {

int hopper_multiprocessors() {
  int device = 0, major = 0, count = 0;
  cuda_check(cudaGetDevice(&device), "asking for the current GPU");
  cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
             "asking for the GPU's compute capability");
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
             "asking for the GPU's multiprocessors");
  if (major != 9) {
    fail(ErrorCode::kUnsupported, "this kernel is for Hopper (compute capability 9.0); GPU ",
         device, " has ", major, ".x");
  }
  return count;
}

void check_fp4_gemm(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                    CudaElement x_element) {
  constexpr int64_t kMaxSize = std::numeric_limits<int>::max() / 512;
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  if (w.n < 1 || w.k < kTileColumns || w.k % kTileColumns != 0 || w.n > kMaxSize ||
      w.k > kMaxSize) {
    fail(ErrorCode::kInvalidArgument, "a weight of ", w.n, " x ", w.k,
         "; the columns must be a multiple of ", kTileColumns);
  }
  if (x.m < 0 || x.m > kMaxSize || x.k != w.k || x.element != x_element) {
    fail(ErrorCode::kInvalidArgument, "an input of ", x.m, " x ", x.k, " for a weight of ", w.n,
         " x ", w.k, ", or of another element type than the kernel's");
  }
  if (y.element == CudaElement::kE4M3 || y.stride < w.n) {
    fail(ErrorCode::kInvalidArgument, "an output of ", w.n, " columns with row stride ", y.stride,
         "; it must be bf16 or f32");
  }
  if (x.m == 0) return;
  if (w.codes == nullptr || w.scales == nullptr || x.data == nullptr || y.data == nullptr ||
      !aligned(w.codes) || !aligned(w.scales) || !aligned(x.data)) {
    fail(ErrorCode::kInvalidArgument, "linear layer: weights and input must be 16-byte aligned");
  }
}

}  // namespace lathe
