// 4-bit weights times 1 to 64 rows of bf16 on Hopper: bound by reading the weights once.
//   MXFP4, NVFP4   element * scale is exact in bf16: products exact, sums fp32
//   INT4           element * scale is rounded to bf16 once
//   MXFP4, split   to E5M2, which is exact, and x to pairs of E4M3, which is nearly so; sums of 256
//                  columns keep 13 fraction bits of their largest term (small_split_sm90.h). Up to
//                  16 rows; what is fast.
#pragma once
#include "kernels/linear/linear_cuda.h"
#include "kernels/linear/small_linear.h"

namespace lathe {

SmallLinearConfig choose_fp4_small_config(int64_t m, int64_t n, int64_t k, int num_sms);

// y[m, n] = (x W^T) * x.row_scales * w.row_scales + w.bias, rounded once to y's element; x is bf16,
// x.m 1..64 (0 is a no-op). w: as pack_fp4() makes it (MXFP4 scale bytes at most 127). workspace:
// small_linear_workspace_bytes() on the device, or null for none. split: for MXFP4 weights whose
// scales mxfp4_row_exponents() has seen, and config.rows up to kSplitRows. Only enqueues; starts
// reading W before what stands in front of it in the stream has ended. Throws kInvalidArgument,
// kUnsupported (not a Hopper), kDevice.
inline constexpr int kSplitRows = 16;
void linear_fp4_small_sm90(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                           const SmallLinearConfig& config, bool split, std::byte* workspace,
                           CudaStream stream);

}  // namespace lathe
