// For functions that both the host and CUDA kernels call.
#pragma once

#ifdef __CUDACC__
#define LATHE_HOST_DEVICE __host__ __device__
#define LATHE_UNROLL _Pragma("unroll")
#else
#define LATHE_HOST_DEVICE
#define LATHE_UNROLL
#endif
