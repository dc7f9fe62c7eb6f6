#include "model/rope_rows.h"

#include <cmath>
#include <vector>

#include "cache/kv_cache.h"

namespace lathe {
namespace {

// One row of the tables.
void fill_row(const RopeFrequencies& frequencies, int64_t position, float* cos, float* sin) {
  const auto factor = static_cast<float>(frequencies.attention_factor);
  for (std::size_t j = 0; j < frequencies.inverse.size(); ++j) {
    // The angle is rounded to float, as in the models' training code.
    const float angle = static_cast<float>(position) * frequencies.inverse[j];
    cos[j] = std::cos(angle) * factor;
    sin[j] = std::sin(angle) * factor;
  }
}

}  // namespace

RopeRows rope_rows(const RopeFrequencies& frequencies, std::span<const int64_t> positions,
                   Exec& exec) {
  const auto num_rows = static_cast<int64_t>(positions.size());
  const auto num_pairs = static_cast<int64_t>(frequencies.inverse.size());
  float* cos = exec.workspace.allocate_as<float>(num_rows * num_pairs);
  float* sin = exec.workspace.allocate_as<float>(num_rows * num_pairs);
  int64_t* row_idx = exec.workspace.allocate_as<int64_t>(num_rows);
  exec.threads.parallel_for(num_rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      fill_row(frequencies, positions[static_cast<std::size_t>(t)], cos + t * num_pairs,
               sin + t * num_pairs);
      row_idx[t] = t;
    }
  });
  return {cos, sin, row_idx, num_rows};
}

RotationBlocks::RotationBlocks(const RopeFrequencies& frequencies, int64_t num_positions)
    : num_blocks(blocks_for(num_positions)) {
  const auto num_pairs = static_cast<int64_t>(frequencies.inverse.size());
  starts = Buffer(num_blocks * 2 * num_pairs * static_cast<int64_t>(sizeof(float)));
  in_block = Buffer(2 * num_pairs * kBlockSize * static_cast<int64_t>(sizeof(float)));
  const RopeFrequencies alone{.inverse = frequencies.inverse};  // the factor counts once
  for (int64_t b = 0; b < num_blocks; ++b) {
    float* row = starts.as<float>() + b * 2 * num_pairs;
    fill_row(alone, b * kBlockSize, row, row + num_pairs);
  }
  std::vector<float> row(static_cast<std::size_t>(2 * num_pairs));
  for (int64_t t = 0; t < kBlockSize; ++t) {
    fill_row(frequencies, t, row.data(), row.data() + num_pairs);
    for (int64_t j = 0; j < 2 * num_pairs; ++j) {
      in_block.as<float>()[j * kBlockSize + t] = row[static_cast<std::size_t>(j)];
    }
  }
}

Buffer rope_table_memory(const RopeFrequencies& frequencies, int64_t num_positions) {
  const auto num_pairs = static_cast<int64_t>(frequencies.inverse.size());
  Buffer memory(2 * num_positions * num_pairs * static_cast<int64_t>(sizeof(float)));
  float* cos = memory.as<float>();
  float* sin = cos + num_positions * num_pairs;
  for (int64_t t = 0; t < num_positions; ++t) {
    fill_row(frequencies, t, cos + t * num_pairs, sin + t * num_pairs);
  }
  return memory;
}

}  // namespace lathe
