// The comparison of the kernel tests. Fails unless |a - b| <= abs + rel * max(|b|) for every
// element, written so that NaN fails; infinities must stand in the same places.
#pragma once
#include <gtest/gtest.h>

#include <span>
#include <vector>

namespace lathe {

// The tolerance scales with the largest magnitude of `expected`, since the error of a sum goes with
// the size of its terms, not of its result.
testing::AssertionResult all_close(std::span<const float> actual, std::span<const float> expected,
                                   double rel, double abs = 0);

// Seeded standard normal numbers.
std::vector<float> normal_values(int64_t count, uint64_t seed, double stddev = 1);

}  // namespace lathe
