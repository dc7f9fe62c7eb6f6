// What attention_cuda() chooses from, and how a kernel is launched. Internal to kernels/attention
// and its tests and benchmarks; only for files that are built with LATHE_CUDA.
#pragma once
#include <cuda_runtime.h>

#include "kernels/attention/attention_cuda.h"
#include "tensor/cuda_check.h"

namespace lathe {

// Any head size and every combination of elements, fp32 arithmetic, no workspace: the reference of
// the fast versions on the device, and what runs where they do not apply.
void attention_plain_cuda(const AttentionCudaArgs& args, const CudaBatch& batch,
                          const KvCudaLayer& layer, CudaStream stream);

// Launches with programmatic dependence: the grid may start while the one before it in the stream
// drains, so the kernel executes griddepcontrol.wait before it touches memory.
template <typename... Params, typename... Values>
void launch_dependent(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared_bytes,
                      CudaStream stream, const char* name, const Values&... values) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(values)...), "launching ",
             name);
}

#ifdef __CUDACC__

// The kernels before this one in the stream are done, and what they wrote is visible.
__device__ inline void wait_for_previous_grid() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// The next grid may start as this one's blocks drain.
__device__ inline void release_next_grid() { asm volatile("griddepcontrol.launch_dependents;"); }

#endif

}  // namespace lathe
