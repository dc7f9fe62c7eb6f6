// The memory of a GPU as a ceiling, measured now.
#pragma once
#include "kernels/cuda_context.h"

namespace lathe {

// Bytes per second that a kernel reads from device memory: the best of several passes over 1 GiB.
// Throws kOutOfMemory where the GPU has no room for it.
double measure_cuda_read_bandwidth(const CudaContext& context);

}  // namespace lathe
