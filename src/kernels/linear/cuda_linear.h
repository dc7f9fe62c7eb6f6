// One packed weight on the GPU with every kernel that can run it. Which one does is a function of
// the number of rows and of how x is wanted:
//            4-bit weights                              8-bit weights             dense
//   few      fp4_small: bound by memory, x bf16         w8_small                  cuBLAS
//   many     MXFP4: wgmma FP8, x E4M3 (per token)       fp8 x fp8: cuBLAS;        cuBLAS
//            NVFP4, INT4: wgmma bf16, x bf16            else decoded, cuBLAS
//   exact    decoded to fp32, cuBLAS in fp32            the same                  the same
// Few are 16 rows of 4-bit weights, 64 of 8-bit ones.
// "exact" (ComputeType::kF32) is the definition of W4A16: nothing is rounded on the way.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/cuda_context.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_cuda.h"

namespace lathe {

// What prepares x for a weight: same values, same prepared input.
struct CudaInputClass {
  ActivationFormat format = ActivationFormat::kNone;
  int64_t hadamard = 0;
  CudaElement element = CudaElement::kBF16;
  float global_scale = 0;

  bool operator==(const CudaInputClass&) const = default;
};

class CudaLinear {
 public:
  virtual ~CudaLinear() = default;
  virtual int64_t n() const = 0;
  virtual int64_t k() const = 0;
  // What one pass over the weight reads from memory.
  virtual int64_t weight_bytes() const = 0;
  virtual std::string kernels() const = 0;  // "mxfp4 small/wgmma fp8"
  virtual CudaInputClass input_class(int64_t m) const = 0;
  // x: prepared as input_class(x.m) says. Enqueues on the context's stream.
  virtual void run(const CudaLinearInput& x, const CudaLinearOutput& y) const = 0;
};

// Copies the parts, stacked along n (linear.h), to the context's GPU in the layout of its kernels.
// Throws what pack_linear() throws, and kOutOfMemory.
std::unique_ptr<CudaLinear> make_cuda_linear(std::span<const LinearPart> parts,
                                             const LinearScheme& scheme, ComputeType compute,
                                             CudaContext& context);

}  // namespace lathe
