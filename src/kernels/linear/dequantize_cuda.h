// Quantized weights as dense matrices on the GPU: the fallback of every format without a kernel of
// its own is this and cuBLAS.
#pragma once
#include "kernels/linear/pack_fp4.h"

namespace lathe {

// out[rows, cols], row-major, bf16 (kBF16) or fp32 (kF32): the numbers of dequantize_rows(), exact
// in fp32 and rounded once more to bf16. Every format. Only enqueues. Throws kInvalidArgument,
// kDevice.
void dequantize_cuda(const DeviceMatrixView& matrix, CudaElement element, void* out,
                     CudaStream stream);

// out[n, k] from packed tiles: element * scale * row factor, in double, rounded once; the bias is
// no part of it. The row factor is a float already, so a global scale that is no power of two may
// leave the last bit different from dequantize_rows().
void dequantize_cuda(const Fp4Tiles& tiles, CudaElement element, void* out, CudaStream stream);

}  // namespace lathe
