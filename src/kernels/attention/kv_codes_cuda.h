// How the paged cache keeps codes on the GPU. The numbers are those of kv_codes.h (higgs4: the code
// of dims j and j + head_dim / 2 is "slot" j, one byte; a bf16 scale per token and head), in
// another order: one KV head of one block, keys or values, is codes, then scales, and a lane of a
// warp finds what it needs of them for the fragments of a matrix product in one or two loads
// (attention_codes_warp.h).
//
//   keys    [32 tokens][head_dim / 2 slots]
//   values  [4 groups of 8 tokens][8 slots mod 8][4 pairs of tokens][head_dim / 16][2 tokens], or,
//           where 16 does not divide head_dim, as keys
//   scales  [8 tokens mod 8][4 groups of 8 tokens]
//
// A sequence's first kLiveSinks tokens lie a second time, exactly, in a block of its own
// (KvSequence::sink_block, cache/kv_cache.h), whose heads, keys and values alike, begin with
//
//   sinks   [kLiveSinks tokens][head_dim] in bf16, in the coordinates of the codes
#pragma once
#include <cstdint>
#include <memory>

#include "kernels/attention/kv_codes.h"
#include "kernels/attention/kv_layout_cuda.h"

namespace lathe {

// Bytes from the start of a head.
LATHE_HOST_DEVICE constexpr int key_code_offset(int head_dim, int token, int slot) {
  return token * (head_dim / 2) + slot;
}
LATHE_HOST_DEVICE constexpr int value_code_offset(int head_dim, int token, int slot) {
  if (head_dim % 16 != 0) return key_code_offset(head_dim, token, slot);
  return token / 8 * 4 * head_dim + (slot % 8 * 4 + token % 8 / 2) * (head_dim / 8) + slot / 8 * 2 +
         token % 2;
}
LATHE_HOST_DEVICE constexpr int code_scale_offset(int head_dim, int token) {
  return static_cast<int>(kBlockSize) * (head_dim / 2) + (token % 8 * 4 + token / 8) * 2;
}
LATHE_HOST_DEVICE constexpr int sink_offset(int head_dim, int token) {
  return token * head_dim * 2;
}
static_assert(sink_offset(8, static_cast<int>(kLiveSinks)) <=
              kv_cuda_head_bytes(KvCudaElement::kHiggs4, 8));

// A grid and what the search for its nearest points needs, as it lies in a GPU's memory.
struct KvCudaGrid {
  uint32_t pairs[256];  // both coordinates in bf16, exactly; the first in the low half
  int8_t first[256];
  int8_t second[256];
  float step;
  int32_t begin[KvGridSearch::kCells * KvGridSearch::kCells + 1];
  uint8_t candidates[1 << 16];
};
// Of kHiggs4, in the host's memory.
std::unique_ptr<KvCudaGrid> make_kv_cuda_grid(KvCudaElement element);

// One rounding each, on the device too: what kv_store() computes.
LATHE_HOST_DEVICE inline float product_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
LATHE_HOST_DEVICE inline float sum_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// The code that kv_store() chooses for (x, y), in steps of the grid.
LATHE_HOST_DEVICE inline int nearest_code(const KvCudaGrid& grid, float x, float y) {
  constexpr int kCells = KvGridSearch::kCells;
  constexpr float kCellSize = KvGridSearch::kCellSize;
  constexpr float kLimit = kCellSize * kCells / 2;
  int best = 0;
  float best_distance = 3.402823466e38f;
  const auto consider = [&](int i) {
    const float dx = sum_rn(x, -static_cast<float>(grid.first[i]));
    const float dy = sum_rn(y, -static_cast<float>(grid.second[i]));
    const float distance = sum_rn(product_rn(dx, dx), product_rn(dy, dy));
    if (distance < best_distance) best_distance = distance, best = i;
  };
  if (x >= -kLimit && x < kLimit && y >= -kLimit && y < kLimit) {
    // Multiples of a power of two: no rounding but that of the sum, which just below the limit goes
    // up to what would be a cell more.
    int column = static_cast<int>(sum_rn(x, kLimit) / kCellSize);
    int row = static_cast<int>(sum_rn(y, kLimit) / kCellSize);
    if (column == kCells) --column;
    if (row == kCells) --row;
    const int cell = row * kCells + column;
    for (int c = grid.begin[cell]; c < grid.begin[cell + 1]; ++c) consider(grid.candidates[c]);
  } else {
    for (int i = 0; i < 256; ++i) consider(i);
  }
  return best;
}

}  // namespace lathe
