// MXFP4 weights times FP8 activations on Hopper, for many rows: y = x W^T by FP8 wgmma.
//
// x is E4M3 with a float per row: quantized per token (largest magnitude / 448), or MXFP4
// activations folded into E4M3 with a power of two per row by whoever quantizes them; the kernel is
// the same. W becomes E5M2 on its way to the tensor cores: E2M1 times a power of two is exact in
// E5M2 over 27 binades. So products are exact where the scales of a row of W differ by at most
// 2^26; groups that lie lower are raised to 2^-26 of the row's largest scale, which moves a weight
// by at most 6 * 2^-26 times that scale.
//
// Sums are the tensor core's, and those of FP8 are short: of 32 products and the accumulator, each
// is cut to 13 bits below the largest exponent, and so is their sum (this model gave all of 4096
// sums over 4096 columns to the bit, H100). Against exact sums, for normal x and random codes, the
// error is 0.10 % of y's root mean square at k = 4096, 0.23 % at 14336, 0.35 % at 28672, and y is
// too small by 0.01-0.03 %; rounding y to bf16 costs 0.17 %, quantizing x to E4M3 2.6 %. Adding to
// a second accumulator every 512 (128) columns gives 0.025 % (0.010 %) at any k and was 6 % (12 %)
// slower with tiles of 128 tokens; those of 256 have no registers for it. Not done; splits = 2
// gives 0.14 % at 14336.
#pragma once
#include <string>
#include <vector>

#include "kernels/linear/linear_cuda.h"

namespace lathe {

// What is chosen by the sizes alone.
struct Mxfp4Config {
  int tokens = 256;     // rows of x in a tile: 64, 128, 256
  int panels = 2;       // of 64 outputs in a tile: 2, 4
  int share = 2;        // blocks that share their rows of x: 1, 2
  int splits = 1;       // blocks that share a tile, each a part of k: 1, 2, 4
  int token_group = 8;  // token tiles worked on together
  bool operator==(const Mxfp4Config&) const = default;
};
std::string to_string(const Mxfp4Config& config);
// Every version that can sum over k, for tests and benchmarks: a split has at least 128 columns.
std::vector<Mxfp4Config> mxfp4_configs(int64_t k);
Mxfp4Config choose_mxfp4_config(int64_t m, int64_t n, int64_t k, int num_sms);

// The largest scale byte of each row of W: [64 ceil(n / 64)] bytes on the device. Once per weight,
// before the kernel sees it: scales that lie more than 2^26 below the row's largest are raised to
// that, in w.scales itself, so that every kernel has the same weight.
void mxfp4_row_exponents(const Fp4Tiles& w, uint8_t* exponents, CudaStream stream);

// y[m, n] = (x W^T) * x.row_scales * w.row_scales + w.bias, rounded once to y's element. Only
// enqueues. y must not overlap the inputs. Throws kInvalidArgument, kUnsupported (not a Hopper),
// kDevice.
void linear_mxfp4_sm90(const Fp4Tiles& w, const uint8_t* exponents, const CudaLinearInput& x,
                       const CudaLinearOutput& y, const Mxfp4Config& config, CudaStream stream);

}  // namespace lathe
