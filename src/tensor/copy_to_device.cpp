#include "tensor/copy_to_device.h"

#include "tensor/cuda_check.h"

namespace lathe {

void copy_to_device(void* to, const void* from, int64_t num_bytes) {
  if (num_bytes == 0) return;
  cuda_check(cudaMemcpy(to, from, static_cast<std::size_t>(num_bytes), cudaMemcpyHostToDevice),
             "copying ", num_bytes, " bytes to the GPU");
  // From pageable memory, cudaMemcpy returns once the bytes are staged. What is launched on a
  // stream that does not wait for the default one could overtake them.
  cuda_check(cudaStreamSynchronize(nullptr), "copying ", num_bytes, " bytes to the GPU");
}

}  // namespace lathe
