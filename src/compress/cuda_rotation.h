// The block Hadamard rotation (quant/hadamard.h) on device memory: the same additions in the same
// order, so the same bits.
#pragma once
#include <cstdint>

#include "tensor/cuda_stream.h"

namespace lathe {

// hadamard_rows(): x [rows, cols] in place. Throws kInvalidArgument as check_hadamard() does.
void cuda_hadamard_rows(float* x, int64_t rows, int64_t cols, int64_t block, CudaStream stream);

// rotate_hessian(): both sides of h [k, k], in place.
void cuda_rotate_hessian(float* h, int64_t k, int64_t block, CudaStream stream);

// *amax = max(*amax, largest magnitude of x R); x is not changed. Block 0: of x. *amax >= 0.
void cuda_rotated_amax(const float* x, int64_t rows, int64_t cols, int64_t block, float* amax,
                       CudaStream stream);

}  // namespace lathe
