#include "model/rope_rows.h"

#include <cmath>

namespace lathe {

RopeRows rope_rows(const RopeFrequencies& frequencies, std::span<const int64_t> positions,
                   Exec& exec) {
  const auto factor = static_cast<float>(frequencies.attention_factor);
  const auto num_rows = static_cast<int64_t>(positions.size());
  const auto num_pairs = static_cast<int64_t>(frequencies.inverse.size());
  float* cos = exec.workspace.allocate_as<float>(num_rows * num_pairs);
  float* sin = exec.workspace.allocate_as<float>(num_rows * num_pairs);
  int64_t* row_idx = exec.workspace.allocate_as<int64_t>(num_rows);
  exec.threads.parallel_for(num_rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const auto position = static_cast<float>(positions[static_cast<std::size_t>(t)]);
      for (int64_t j = 0; j < num_pairs; ++j) {
        // The angle is rounded to float, as in the models' training code.
        const float angle = position * frequencies.inverse[static_cast<std::size_t>(j)];
        cos[t * num_pairs + j] = std::cos(angle) * factor;
        sin[t * num_pairs + j] = std::sin(angle) * factor;
      }
      row_idx[t] = t;
    }
  });
  return {cos, sin, row_idx, num_rows};
}

}  // namespace lathe
