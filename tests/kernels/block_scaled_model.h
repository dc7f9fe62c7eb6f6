// linear_fp4_sm120.cu on the host: the same copies, addresses and registers by the index functions
// of block_scaled_tiles.h, with ldmatrix and the block-scaled mma as the PTX ISA defines them. What
// it gives is what the kernel must give if the instructions do what the document says.
#pragma once
#include <cstdint>
#include <vector>

namespace lathe {

// x or w as the kernel gets it.
struct BlockScaledHost {
  int group = 32;  // 32: E8M0 scales (MXFP4), 16: E4M3 scales (NVFP4)
  int64_t rows = 0;
  int64_t k = 0;                // a multiple of 64
  std::vector<uint8_t> codes;   // [rows, k / 2]
  std::vector<uint8_t> scales;  // swizzle_scales() of [rows, k / group]
};

// x w^T [x.rows, w.rows], row-major; sums in double, rounded once. A number that no thread
// computes, or that is made of bytes that no thread copied, is NaN. Fails the test that runs when
// threads write the same byte or number twice, or read outside an operand.
std::vector<float> block_scaled_model(const BlockScaledHost& w, const BlockScaledHost& x);

}  // namespace lathe
