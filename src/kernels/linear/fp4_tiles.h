// How 4-bit weights lie in GPU memory: one layout for the kernels of few and of many rows, made
// once at load. W [n, k] is cut into tiles of 64 output rows x 64 columns; tiles of one row panel
// are contiguous along k:
//   codes   [ceil(n / 64)][k / 64][128 threads][16 bytes]
//   scales  [ceil(n / 64)][k / 64][4 warps][8 lanes groups g][scales of one g]
// k is a multiple of 64; rows beyond n are zeros (code 0, scale byte 0).
//
// A warpgroup of 128 threads multiplies a tile as the *left* operand, from registers: y^T = W x^T.
// Thread `warp * 32 + lane`, with g = lane / 4 and t = lane % 4, holds of rows 16 warp + g and
// 16 warp + g + 8 what the tensor core's A fragments want, as four 32-bit words:
//   word 0: row g,     columns  0..31      word 1: row g + 8, columns  0..31
//   word 2: row g,     columns 32..63      word 3: row g + 8, columns 32..63
// The eight codes of a word are those that lane t owns of its 32 columns:
//   Fp4Order::kByteFragments (MXFP4: the fragment of FP8 wgmma m64nNk32, mma.m16n8k32)
//       A0..A3 = columns 4t .. 4t + 3          B0..B3 = columns 16 + 4t .. 16 + 4t + 3
//   Fp4Order::kHalfFragments (NVFP4, INT4: two 16-bit fragments, m64nNk16, mma.m16n8k16)
//       A0..A3 = columns 2t, 2t + 1, 2t + 8, 2t + 9      B0..B3 = the same + 16
//
// Inside a word, for E2M1, nibble p (bits 4p .. 4p + 3) holds the three magnitude bits of A_p for
// p < 4 and of B_(p-4) for p >= 4, and, in its top bit, a sign: of A_i in nibble 2i + 1, of B_i in
// nibble 2i. So `word & 0x7777` and `(word >> 16) & 0x7777` are selectors of one byte permutation
// (prmt) each over a table of the eight magnitudes, and the signs of A0..A3 and B0..B3 are at bit 7
// of every byte of `word` and `word << 4`. INT4 nibbles (two's complement + 8, so 0..15) lie
// A0..A3, B0..B3 in nibbles 0..7.
//
// Scales of g: row g then row g + 8 for each group of the 64 columns, in order of the columns:
//   MXFP4  2 groups x 2 rows x 1 byte (E8M0)  = 4 bytes     NVFP4  4 x 2 x 1 byte (E4M3) = 8 bytes
//   INT4   2 x 2 x 2 bytes (bf16)             = 8 bytes
#pragma once
#include <cstdint>

#include "tensor/host_device.h"

namespace lathe {

inline constexpr int kTileRows = 64;
inline constexpr int kTileColumns = 64;
inline constexpr int kTileCodeBytes = kTileRows * kTileColumns / 2;  // 2048

enum class Fp4Order { kByteFragments, kHalfFragments };

// Where one weight of a tile is.
struct TilePlace {
  int thread;  // 0..127
  int word;    // 0..3
  int index;   // 0..7: A0..A3, B0..B3
};

// row, column: within the tile, 0..63.
LATHE_HOST_DEVICE constexpr TilePlace tile_place(Fp4Order order, int row, int column) {
  const int warp = row / 16, g = row % 8, upper = row / 8 % 2;
  const int half = column / 32, c = column % 32;
  const int word = half * 2 + upper;
  if (order == Fp4Order::kByteFragments) {
    return {warp * 32 + g * 4 + c % 16 / 4, word, c / 16 * 4 + c % 4};
  }
  return {warp * 32 + g * 4 + c % 8 / 2, word, c / 16 * 4 + c % 16 / 8 * 2 + c % 2};
}

// Bits of an E2M1 code (sign in bit 3) at `index` of a word.
LATHE_HOST_DEVICE constexpr uint32_t e2m1_word_bits(uint32_t code, int index) {
  const int sign_nibble = index < 4 ? 2 * index + 1 : 2 * (index - 4);
  return (code & 7u) << (4 * index) | (code >> 3 & 1u) << (4 * sign_nibble + 3);
}

// Offset in bytes of the scale of (row, group) within a tile's scales; groups counted within the
// tile; scale_bytes is the size of one scale, groups 2 or 4.
LATHE_HOST_DEVICE constexpr int tile_scale_offset(int row, int group, int groups, int scale_bytes) {
  const int warp = row / 16, g = row % 8, upper = row / 8 % 2;
  return (((warp * 8 + g) * groups + group) * 2 + upper) * scale_bytes;
}

}  // namespace lathe
