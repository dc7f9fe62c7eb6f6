// Rotation angles for the rows of one step. They are computed as rows come (a sine costs some
// nanoseconds, and a step needs rotary_dim / 2 per row for all its layers together), so memory does
// not grow with the context, and no position is out of reach.
#pragma once
#include <cstdint>
#include <span>

#include "model/rope_table.h"
#include "tensor/buffer.h"
#include "tensor/exec.h"

namespace lathe {

// cos and sin of each row's position, attention factor included.
struct RopeRows {
  const float* cos = nullptr;  // [num_rows, rotary_dim / 2]
  const float* sin = nullptr;
  const int64_t* row_idx = nullptr;  // 0, 1, ...: which row of the tables a row takes
  int64_t num_rows = 0;
};

// Fills tables from exec.workspace; valid until its enclosing scope ends.
RopeRows rope_rows(const RopeFrequencies& frequencies, std::span<const int64_t> positions,
                   Exec& exec);

// Angles of whole blocks of positions, as KeyOffset wants them (kernels/attention/attention.h).
struct RotationMiddles {
  RotationMiddles() = default;
  RotationMiddles(const RopeFrequencies& frequencies, int64_t num_positions);

  Buffer middles;      // [num_blocks, rotary_dim]
  Buffer from_middle;  // [rotary_dim, kBlockSize / 2]
  int64_t num_blocks = 0;
};

// The same counted from a block's beginning, with 1 and 0 for the pairs of a head that do not turn,
// as KeyOffsetCuda wants them (attention_cuda.h).
struct RotationBlocks {
  RotationBlocks() = default;
  RotationBlocks(const RopeFrequencies& frequencies, int64_t head_dim, int64_t num_positions);

  Buffer starts;    // [num_blocks, head_dim]
  Buffer in_block;  // [head_dim, kBlockSize]
  int64_t num_blocks = 0;
};

// The same numbers for positions 0, 1, ..., in memory of their own: cos, then sin,
// [num_positions, rotary_dim / 2] each.
Buffer rope_table_memory(const RopeFrequencies& frequencies, int64_t num_positions);

}  // namespace lathe
