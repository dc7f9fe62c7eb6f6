// Launches with programmatic dependence: the next kernel of a stream may be started while this one
// still runs, and waits where it first needs its results. Every kernel that is launched so calls
// wait_for_previous_kernel() before it touches memory that another kernel wrote or still reads;
// what never changes (weights) may be read before it.
// Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch".
#pragma once
#include <cuda_runtime.h>

#include "tensor/cuda_check.h"

namespace lathe {

// Everything that the kernels in front of this one wrote is visible behind it. Nothing to wait for
// after an ordinary launch.
__device__ inline void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start its blocks once every block of this one came here or ended.
__device__ inline void allow_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// cluster: blocks in a cluster along x, 1 for none.
template <typename... Parameters, typename... Arguments>
void launch_dependent(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                      int64_t shared_bytes, cudaStream_t stream, unsigned cluster,
                      Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...),
             "launching ", name);
}

}  // namespace lathe
