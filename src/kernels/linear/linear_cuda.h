// Linear layers on the GPU: y[m, n] = x[m, k] * w[n, k]^T + bias[n].
//
// x comes rotated and quantized (kernels/quantize_activations/quantize_cuda.h does that once for
// all layers that share it); the weight is packed once at load. Rows of x are independent, and for
// one choice of kernel a row's bits do not depend on the others.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "quant/weight_format.h"
#include "tensor/cuda_stream.h"
#include "tensor/device_buffer.h"

namespace lathe {

// What a kernel is given as x. Quantized activations whose values bf16 or E4M3 hold exactly, up to
// one factor per row, travel as such: MXFP4 and NVFP4 activations as bf16, FP8 per token as E4M3.
enum class CudaElement { kF32, kBF16, kE4M3 };

struct CudaLinearInput {
  CudaElement element = CudaElement::kBF16;
  const void* data = nullptr;         // [m, k], row-major, dense, 16-byte aligned
  const float* row_scales = nullptr;  // [m], multiplies the row of y; null: ones
  int64_t m = 0;
  int64_t k = 0;
};

struct CudaLinearOutput {
  CudaElement element = CudaElement::kBF16;  // kBF16 or kF32
  void* data = nullptr;                      // [m, n], row stride `stride` (in elements)
  int64_t stride = 0;
};

// 4-bit weights in the tiles of fp4_tiles.h. k a multiple of 64.
struct Fp4Tiles {
  ElementType element = ElementType::kE2M1;  // kE2M1 or kInt4
  ScaleType scale = ScaleType::kE8M0;        // kE8M0 (group 32), kE4M3 (16), kBF16 (32)
  int64_t n = 0;
  int64_t k = 0;
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
  // y is multiplied by it and bias added: [n] each, or null (ones, zeros). NVFP4: 1 / global scale.
  const float* row_scales = nullptr;
  const float* bias = nullptr;
};

}  // namespace lathe
