// What the launchers of the Hopper kernels ask before they start.
#pragma once
#include "kernels/linear/linear_cuda.h"

namespace lathe {

// Multiprocessors of the current device; throws kUnsupported unless it is a Hopper.
int hopper_multiprocessors();

// Throws kInvalidArgument on sizes, element types, pointers and strides that the kernels cannot
// have. x must be of x_element.
void check_fp4_gemm(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                    CudaElement x_element);

}  // namespace lathe
