// Rows of logits that models on a GPU have left there, compared there; only the results come back.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "eval/windows.h"
#include "kernels/logits/compare_logits_cuda.h"
#include "tensor/device_buffer.h"

namespace lathe {

class DeviceComparison {
 public:
  // Copies the rows that `reference` has just computed: compare() uses the copy for it from now on.
  // Needed where its model runs again, with another cache, before the comparison.
  void keep(const LogitStream& reference);
  // The rows that `stream` has just computed, and, unless null, those of `reference` for the same
  // chunk, over the tokens below `common`.
  std::span<const LogitComparison> compare(const LogitStream* reference, const LogitStream& stream,
                                           int64_t common);

 private:
  std::vector<int32_t> targets_;
  std::vector<LogitComparison> results_;
  const LogitStream* kept_stream_ = nullptr;
  DeviceBuffer kept_rows_;
  DeviceBuffer device_targets_;
  DeviceBuffer device_results_;
};

}  // namespace lathe
