// The element types of device memory, as the fp32 numbers that kernels compute with.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>

namespace lathe {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__nv_fp8_e4m3 x) { return static_cast<float>(x); }

__device__ inline void store(float* y, float x) { *y = x; }
__device__ inline void store(__nv_bfloat16* y, float x) { *y = __float2bfloat16_rn(x); }

}  // namespace lathe
