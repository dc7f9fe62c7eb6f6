// Soft cap of logits on the GPU (Gemma 2): x = cap * tanh(x / cap), in place.
#pragma once
#include <cstdint>

#include "tensor/cuda_stream.h"

namespace lathe {

// x: [count] fp32 on the device. cap 0: nothing is done. Only enqueues.
void softcap_cuda(float* x, int64_t count, float cap, CudaStream stream);

}  // namespace lathe
