// Where everything lies in the W4A4 kernel for the block-scaled mma of sm_120
// (linear_fp4_sm120.cu): index functions alone, the same on host and device, so that they are
// tested without such a GPU.
//
// y[m, n] = x[m, k] * w[n, k]^T. A block of 256 threads makes 128 x 128 numbers of y and goes
// through k in stages of 128 columns. x and w are treated alike ("operand"). Of a stage, shared
// memory holds for each operand
//   codes    [128 rows][64 bytes], the four 16-byte chunks of a row permuted by swizzled_chunk()
//   scales   one 512-byte tile of quant/scale_swizzle.h for MXFP4 (128 rows x 4 scales of 32
//            columns), two for NVFP4 (4 scales of 16 columns each), as they lie in global memory
//
// The instruction, mma.m16n8k64 with E2M1 operands, for lane = 4 g + t:
//   A[16, 64] = x     register 0: row g, columns 8t .. 8t + 7       2: the same row,  columns + 32
//                     register 1: row g + 8, the same columns       3: row g + 8,     columns + 32
//   B[64, 8] = w^T    register 0: column g, rows 8t .. 8t + 7       1: rows + 32
//   D[16, 8]          registers 0, 1: row g, columns 2t, 2t + 1     2, 3: row g + 8
//   scales of A       32 bits from lanes t = 0 (row g) and t = 1 (row g + 8)   [thread-id-a 0]
//   scales of B       32 bits from lane t = 0 (column g)                       [thread-id-b 0]
// The first of eight codes is in the lowest four bits. Scale i of a row belongs to group i of the
// mma's 64 columns: byte i of the 32 bits with scale_vec::4X (NVFP4), byte byte-id + i with 2X
// (MXFP4), byte-id being 0 or 2. So a row's 32 bits of a 512-byte tile serve one mma of NVFP4, or
// two of MXFP4.
//
// ldmatrix's rows of 16 bytes are 32 codes, and what a lane gets of one is a register of A or B.
// A tile of scales has rows r, r + 32, r + 64, r + 96 side by side. So a warp takes rows 32 apart,
// and gets the scales of its four A tiles, or of its four B tiles, by one 16-byte load.
// Source: PTX ISA 9.0, "Matrix fragments for mma.m16n8k64", "Block scaling for mma.sync",
// "ldmatrix"; that t = 0 has row g and t = 1 row g + 8 of A's scales: CUTLASS's SFALayout
// (mma_traits_sm120.hpp); spec/mr-gptq.md 7.3.
#pragma once
#include <cstdint>

#include "tensor/host_device.h"

namespace lathe::block_scaled {

inline constexpr int kThreads = 256;
inline constexpr int kBlockRows = 128;     // of x and of w
inline constexpr int kStageColumns = 128;  // codes of a row in one stage
inline constexpr int kStageRowBytes = kStageColumns / 2;
inline constexpr int kStageCodeBytes = kBlockRows * kStageRowBytes;  // of one operand
inline constexpr int kStepColumns = 64;                              // of one mma
inline constexpr int kSteps = kStageColumns / kStepColumns;
inline constexpr int kTilesOfA = 4, kTilesOfB = 4;  // of a warp: 64 rows of x, 32 of w
inline constexpr int kScaleTileBytes = 512;         // 128 rows x 4 scales
inline constexpr int kScaleTileColumns = 4;

// Codes that share a scale: 32 (MXFP4) or 16 (NVFP4). What depends on it:
LATHE_HOST_DEVICE constexpr int scale_tiles_of_stage(int group) {
  return kStageColumns / (kScaleTileColumns * group);
}
LATHE_HOST_DEVICE constexpr int stage_bytes(int group) {
  return 2 * (kStageCodeBytes + scale_tiles_of_stage(group) * kScaleTileBytes);
}
// Tile of the stage whose scales belong to a step, and the byte of its 32 bits where they begin.
LATHE_HOST_DEVICE constexpr int scale_tile_of_step(int step, int group) {
  return step * kStepColumns / (kScaleTileColumns * group);
}
LATHE_HOST_DEVICE constexpr int scale_byte_of_step(int step, int group) {
  return step * (kStepColumns / group) % kScaleTileColumns;
}

// Offsets in a stage, operand 0 (x) or 1 (w).
LATHE_HOST_DEVICE constexpr int codes_at(int operand) { return operand * kStageCodeBytes; }
LATHE_HOST_DEVICE constexpr int scales_at(int operand, int tile, int group) {
  return 2 * kStageCodeBytes + (operand * scale_tiles_of_stage(group) + tile) * kScaleTileBytes;
}
// Eight rows that ldmatrix reads at once, at the same chunk, fall into different banks: two rows
// span the banks, and rows 2i, 2i + 1 have their chunks turned by i.
LATHE_HOST_DEVICE constexpr int swizzled_chunk(int row, int chunk) {
  return row * kStageRowBytes + (chunk ^ (row / 2 % 4)) * 16;
}

// 16 bytes from global to shared memory. What is not inside becomes zeros.
struct Copy {
  int target;      // in the stage
  int64_t source;  // in the codes or scales of the whole operand
  bool is_inside;
};

// Copy i (0 or 1) of a thread of an operand's codes [rows, k / 2].
inline constexpr int kCodeCopies = kStageCodeBytes / 16 / kThreads;
LATHE_HOST_DEVICE constexpr Copy code_copy(int operand, int thread, int i, int64_t first_row,
                                           int64_t rows, int64_t row_bytes, int64_t stage) {
  const int index = i * kThreads + thread;
  const int row = index / 4, chunk = index % 4;
  const int64_t byte = stage * kStageRowBytes + chunk * 16;
  return {codes_at(operand) + swizzled_chunk(row, chunk), (first_row + row) * row_bytes + byte,
          first_row + row < rows && byte < row_bytes};
}
// Threads that copy scales, one copy each: 16 bytes of a tile are scales of four rows.
LATHE_HOST_DEVICE constexpr int scale_copies(int group) {
  return 2 * scale_tiles_of_stage(group) * (kScaleTileBytes / 16);
}
LATHE_HOST_DEVICE constexpr int scale_copy_operand(int thread, int group) {
  return thread / (scale_copies(group) / 2);
}
// first_row: a multiple of 128. tiles_of_row: ceil(k / group / 4). Rows beyond the matrix have
// bytes too, since the tiles are padded.
LATHE_HOST_DEVICE constexpr Copy scale_copy(int thread, int group, int64_t first_row,
                                            int64_t tiles_of_row, int64_t stage) {
  const int operand = scale_copy_operand(thread, group), piece = thread % (kScaleTileBytes / 16);
  const int tile = thread / (kScaleTileBytes / 16) % scale_tiles_of_stage(group);
  const int64_t column = stage * scale_tiles_of_stage(group) + tile;
  return {scales_at(operand, tile, group) + piece * 16,
          (first_row / kBlockRows * tiles_of_row + column) * kScaleTileBytes + piece * 16,
          column < tiles_of_row};
}

// First row, within the block, of a warp's tile of 16 rows of x, and of its tile of 8 rows of w.
LATHE_HOST_DEVICE constexpr int a_row(int warp, int tile) { return 32 * tile + 16 * (warp % 2); }
LATHE_HOST_DEVICE constexpr int b_row(int warp, int tile) { return 32 * tile + 8 * (warp / 2); }

// Offsets in the stage that a lane gives ldmatrix: for the four registers of an A tile, and for the
// two registers each of B tiles 2 * pair and 2 * pair + 1. ldmatrix loads four matrices of 8 rows
// by 16 bytes; lane i has row i % 8 of matrix i / 8.
LATHE_HOST_DEVICE constexpr int a_matrix_row_at(int warp, int lane, int tile, int step) {
  return codes_at(0) + swizzled_chunk(a_row(warp, tile) + lane % 16, 2 * step + lane / 16);
}
LATHE_HOST_DEVICE constexpr int b_matrix_row_at(int warp, int lane, int pair, int step) {
  return codes_at(1) +
         swizzled_chunk(b_row(warp, 2 * pair + lane / 16) + lane % 8, 2 * step + lane / 8 % 2);
}

// Where a lane reads 16 bytes: word i is the scales of its row of A tile i, or B tile i. The lanes
// that the instruction does not look at read what others of their four read.
LATHE_HOST_DEVICE constexpr int a_scales_at(int warp, int lane, int tile, int group) {
  return scales_at(0, tile, group) + (a_row(warp, 0) + lane / 4 + 8 * (lane % 2)) * 16;
}
LATHE_HOST_DEVICE constexpr int b_scales_at(int warp, int lane, int tile, int group) {
  return scales_at(1, tile, group) + (b_row(warp, 0) + lane / 4) * 16;
}

// Row and column, within the block, of a lane's register i of D.
LATHE_HOST_DEVICE constexpr int y_row(int warp, int lane, int a_tile, int i) {
  return a_row(warp, a_tile) + lane / 4 + 8 * (i / 2);
}
LATHE_HOST_DEVICE constexpr int y_column(int warp, int lane, int b_tile, int i) {
  return b_row(warp, b_tile) + 2 * (lane % 4) + i % 2;
}

}  // namespace lathe::block_scaled
