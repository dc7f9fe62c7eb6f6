// Any bytes are either refused with an Error or a judge as judge_file.h promises it: vectors of one
// length, finite, thresholds in [0, 1].
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "formats/judge_file.h"
#include "memory_file.h"

namespace {

void check(bool condition) {
  if (!condition) std::abort();
}

void check_finite(const std::vector<float>& values, std::size_t size) {
  check(values.size() == size);
  for (const float value : values) check(std::isfinite(value));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace lathe;
  const MemoryFile file(data, size);
  try {
    const JudgeFile judge = read_judge_file(file.path());
    const std::size_t dim = judge.weight.size();
    check(dim > 0 && judge.target.hidden_size == static_cast<int64_t>(dim));
    for (const auto* values : {&judge.weight, &judge.mean, &judge.scale, &judge.raw_weight}) {
      check_finite(*values, dim);
    }
    for (const auto* values : {&judge.threshold, &judge.recall, &judge.rho}) {
      check_finite(*values, judge.threshold.size());
    }
    check(std::isfinite(judge.bias));
    for (const float threshold : judge.threshold) check(threshold >= 0 && threshold <= 1);
    check(judge.default_threshold >= 0 && judge.default_threshold <= 1);
  } catch (const Error& error) {
    check(error.code() == ErrorCode::kCorruptData || error.code() == ErrorCode::kUnsupported);
  }
  return 0;
}
