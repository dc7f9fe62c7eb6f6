#include "model/step_profile.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace lathe {
namespace {

constexpr const char* kNames[] = {"embed",      "norm",   "qkv",     "rope",       "attention",
                                  "o",          "router", "gate_up", "activation", "down",
                                  "all_reduce", "logits", "sample",  "draft",      "schedule"};
static_assert(std::size(kNames) == static_cast<std::size_t>(Stage::kCount));

}  // namespace

int64_t StepProfile::total_nanoseconds() const {
  return std::accumulate(nanoseconds.begin(), nanoseconds.end(), int64_t{0});
}

std::string StepProfile::table() const {
  const double total = static_cast<double>(std::max<int64_t>(total_nanoseconds(), 1));
  const double per_step = 1e3 * static_cast<double>(std::max<int64_t>(steps, 1));
  std::string text;
  char line[96];
  for (std::size_t i = 0; i < nanoseconds.size(); ++i) {
    const auto time = static_cast<double>(nanoseconds[i]);
    std::snprintf(line, sizeof line, "%-11s %10.1f us %5.1f %%\n", kNames[i], time / per_step,
                  100 * time / total);
    text += line;
  }
  std::snprintf(line, sizeof line, "%-11s %10.1f us over %lld steps\n", "total", total / per_step,
                static_cast<long long>(steps));
  return text + line;
}

}  // namespace lathe
