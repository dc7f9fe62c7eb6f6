// For functions that both the host and CUDA kernels call.
#pragma once

#ifdef __CUDACC__
#define LATHE_HOST_DEVICE __host__ __device__
#else
#define LATHE_HOST_DEVICE
#endif
