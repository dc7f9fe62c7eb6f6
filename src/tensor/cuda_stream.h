// The CUDA stream type without CUDA's headers, so that interfaces of device code can be named in
// every build. cudaStream_t is the same type.
#pragma once

struct CUstream_st;

namespace lathe {
using CudaStream = CUstream_st*;
}
