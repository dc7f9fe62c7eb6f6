#include "support/all_close.h"

#include <algorithm>
#include <cmath>

#include "base/rng.h"

namespace lathe {

testing::AssertionResult all_close(std::span<const float> actual, std::span<const float> expected,
                                   double rel, double abs) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure() << actual.size() << " values, expected " << expected.size();
  }
  double largest = 0;
  for (const float value : expected) {
    if (std::isfinite(value)) largest = std::max(largest, std::fabs(double{value}));
  }
  const double tolerance = abs + rel * largest;
  double worst = -1;
  std::size_t worst_idx = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (!std::isfinite(expected[i])) {
      const bool same = std::isnan(expected[i]) ? std::isnan(actual[i]) : actual[i] == expected[i];
      if (!same) {
        return testing::AssertionFailure()
               << "element " << i << " is " << actual[i] << ", expected " << expected[i];
      }
      continue;
    }
    const double difference = std::fabs(double{actual[i]} - double{expected[i]});
    if (!(difference <= tolerance)) {
      if (!(difference <= worst)) {
        worst = std::isnan(difference) ? HUGE_VAL : difference;
        worst_idx = i;
      }
    }
  }
  if (worst < 0) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "worst element " << worst_idx << " is " << actual[worst_idx] << ", expected "
         << expected[worst_idx] << ", tolerance " << tolerance;
}

std::vector<float> normal_values(int64_t count, uint64_t seed, double stddev) {
  Rng rng(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(stddev * rng.normal());
  return values;
}

}  // namespace lathe
