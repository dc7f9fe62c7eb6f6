// 4-bit weights times bf16 activations on Hopper, for many rows: y = x W^T by bf16 wgmma, the
// weights in the order Fp4Order::kHalfFragments.
//
//   NVFP4 (E2M1, E4M3 scale per 16)   element * scale has five significant bits: exact in bf16
//   MXFP4 (E2M1, E8M0 scale per 32)   exact, but for products beyond bf16's range
//   INT4  (bf16 scale per 32)         the product is rounded to bf16
//
// The per-tensor factor of NVFP4 goes into w.row_scales. Sums are fp32.
#pragma once
#include <string>
#include <vector>

#include "kernels/linear/linear_cuda.h"

namespace lathe {

struct Bf16GemmConfig {
  int tokens = 256;     // rows of x in a tile: 128, 256
  int panels = 2;       // of 64 outputs in a tile: 2, 4
  int share = 2;        // blocks that share their rows of x: 1, 2
  int splits = 1;       // blocks that share a tile, each a part of k: 1, 2
  int token_group = 8;  // token tiles worked on together
  bool operator==(const Bf16GemmConfig&) const = default;
};
std::string to_string(const Bf16GemmConfig& config);
// Every version that can sum over k, for tests and benchmarks: a split has at least 64 columns.
std::vector<Bf16GemmConfig> nvfp4_configs(int64_t k);
Bf16GemmConfig choose_nvfp4_config(int64_t m, int64_t n, int64_t k, int num_sms);

// y[m, n] = (x W^T) * x.row_scales * w.row_scales + w.bias, rounded once to y's element; x is bf16.
// Only enqueues. y must not overlap the inputs. Throws kInvalidArgument, kUnsupported (not a
// Hopper), kDevice.
void linear_nvfp4_sm90(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                       const Bf16GemmConfig& config, CudaStream stream);

}  // namespace lathe
