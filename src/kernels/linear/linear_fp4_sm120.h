// W4A4 by the FP4 tensor cores of GeForce and RTX PRO Blackwell (compute capability 12.0): MXFP4 by
// MXFP4, or NVFP4 by NVFP4, block scales applied by the instruction, fp32 sums.
//
// Compiled and looked at in SASS, never run: there was no such GPU
// (docs/decisions/0023-blackwell.md). Nothing in lathe calls it, since the kernels around it are
// Hopper's. Built with -DLATHE_CUDA_BLACKWELL=ON.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/linear/linear_cuda.h"

namespace lathe {

// A quantized matrix on the device, x or w.
struct BlockScaledFp4 {
  ScaleType scale = ScaleType::kE8M0;  // kE8M0: groups of 32 (MXFP4); kE4M3: of 16 (NVFP4)
  int64_t rows = 0;
  int64_t k = 0;                      // a multiple of 64
  const std::byte* codes = nullptr;   // [rows, k / 2], even column in the low nibble
  const std::byte* scales = nullptr;  // swizzle_scales() of [rows, k / group], padding zeros
  // [rows], or null for ones: 1 / global scale (NVFP4; MXFP4 by a rule that has one).
  const float* row_scales = nullptr;
};

// y[x.rows, w.rows] = (x * w^T) * x.row_scales[row] * w.row_scales[column] + bias[column].
// bias: [w.rows] or null. Only enqueues on the stream. No rows of x: nothing to do.
// Throws kInvalidArgument on sizes, scale types, strides and pointers that it cannot have (codes
// and scales must be 16-byte aligned), kUnsupported unless the current GPU is of compute
// capability 12.0.
void linear_fp4_sm120(const BlockScaledFp4& w, const float* bias, const BlockScaledFp4& x,
                      const CudaLinearOutput& y, CudaStream stream);

}  // namespace lathe
