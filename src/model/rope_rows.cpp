#include "model/rope_rows.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cache/kv_cache.h"

namespace lathe {
namespace {

// One row of the tables.
void fill_row(const RopeFrequencies& frequencies, double position, float* cos, float* sin) {
  const auto factor = static_cast<float>(frequencies.attention_factor);
  for (std::size_t j = 0; j < frequencies.inverse.size(); ++j) {
    // The angle is rounded to float, as in the models' training code.
    const float angle = static_cast<float>(position) * frequencies.inverse[j];
    cos[j] = std::cos(angle) * factor;
    sin[j] = std::sin(angle) * factor;
  }
}

// [blocks, 2 num_pairs]: cos, then sin, of a place in each block; without the attention factor,
// which counts once. Pairs that have no frequency do not turn: 1 and 0.
Buffer block_rows(const RopeFrequencies& frequencies, int64_t num_pairs, int64_t num_positions,
                  double place) {
  const int64_t num_blocks = blocks_for(num_positions);
  const RopeFrequencies alone{.inverse = frequencies.inverse};
  Buffer rows(num_blocks * 2 * num_pairs * static_cast<int64_t>(sizeof(float)));
  for (int64_t b = 0; b < num_blocks; ++b) {
    float* row = rows.as<float>() + b * 2 * num_pairs;
    std::fill_n(row, num_pairs, 1.0f);
    std::fill_n(row + num_pairs, num_pairs, 0.0f);
    fill_row(alone, static_cast<double>(b * kBlockSize) + place, row, row + num_pairs);
  }
  return rows;
}

// [2 num_pairs, count]: cos, then sin, of first, first + 1, ...
Buffer token_columns(const RopeFrequencies& frequencies, int64_t num_pairs, int64_t count,
                     double first) {
  Buffer columns(2 * num_pairs * count * static_cast<int64_t>(sizeof(float)));
  std::vector<float> row(static_cast<std::size_t>(2 * num_pairs));
  std::fill_n(row.begin(), num_pairs, 1.0f);
  for (int64_t t = 0; t < count; ++t) {
    fill_row(frequencies, static_cast<double>(t) + first, row.data(), row.data() + num_pairs);
    for (int64_t j = 0; j < 2 * num_pairs; ++j) {
      columns.as<float>()[j * count + t] = row[static_cast<std::size_t>(j)];
    }
  }
  return columns;
}

int64_t num_turned_pairs(const RopeFrequencies& frequencies) {
  return static_cast<int64_t>(frequencies.inverse.size());
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
      fill_row(frequencies, static_cast<double>(positions[static_cast<std::size_t>(t)]),
               cos + t * num_pairs, sin + t * num_pairs);
      row_idx[t] = t;
    }
  });
  return {cos, sin, row_idx, num_rows};
}

RotationMiddles::RotationMiddles(const RopeFrequencies& frequencies, int64_t num_positions)
    : middles(block_rows(frequencies, num_turned_pairs(frequencies), num_positions,
                         double(kBlockSize - 1) / 2)),
      from_middle(token_columns(frequencies, num_turned_pairs(frequencies), kBlockSize / 2, 0.5)),
      num_blocks(blocks_for(num_positions)) {}

RotationBlocks::RotationBlocks(const RopeFrequencies& frequencies, int64_t head_dim,
                               int64_t num_positions)
    : starts(block_rows(frequencies, head_dim / 2, num_positions, 0)),
      in_block(token_columns(frequencies, head_dim / 2, kBlockSize, 0)),
      num_blocks(blocks_for(num_positions)) {}

Buffer rope_table_memory(const RopeFrequencies& frequencies, int64_t num_positions) {
  const auto num_pairs = static_cast<int64_t>(frequencies.inverse.size());
  Buffer memory(2 * num_positions * num_pairs * static_cast<int64_t>(sizeof(float)));
  float* cos = memory.as<float>();
  float* sin = cos + num_positions * num_pairs;
  for (int64_t t = 0; t < num_positions; ++t) {
    fill_row(frequencies, static_cast<double>(t), cos + t * num_pairs, sin + t * num_pairs);
  }
  return memory;
}

}  // namespace lathe
