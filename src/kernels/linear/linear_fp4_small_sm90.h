// 4-bit weights times 1 to 16 rows of bf16 on Hopper: bound by reading the weights once.
//   MXFP4, NVFP4   products are exact; sums fp32
//   INT4           element * scale is rounded to bf16 once
#pragma once
#include "kernels/linear/linear_cuda.h"
#include "kernels/linear/small_linear.h"

namespace lathe {

// y[m, n] = (x W^T) * x.row_scales * w.row_scales + w.bias, rounded once to y's element; x is bf16,
// x.m 1..kSmallLinearMaxRows (0 is a no-op). w: as pack_fp4() makes it (MXFP4 scale bytes at most
// 127). Only enqueues; starts reading W before what stands in front of it in the stream has ended.
// Throws kInvalidArgument, kUnsupported (not a Hopper), kDevice.
void linear_fp4_small_sm90(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                           const SmallLinearConfig& config, CudaStream stream);

}  // namespace lathe
