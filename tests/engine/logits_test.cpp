#include "engine/logits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/all_close.h"

namespace lathe {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Argmax, TakesTheFirstOfTheLargest) {
  for (const int64_t size : {1, 2, 15, 16, 17, 100, 1000}) {
    std::vector<float> values = normal_values(size, static_cast<uint64_t>(size));
    const auto best = std::max_element(values.begin(), values.end());
    EXPECT_EQ(argmax(values), best - values.begin());
    if (size > 2) {
      values[static_cast<std::size_t>(size - 1)] = values[1] = 100;
      EXPECT_EQ(argmax(values), 1);
    }
  }
  EXPECT_EQ(argmax({}), -1);
  EXPECT_EQ(argmax(std::vector<float>{kNan, kNan}), -1);
  EXPECT_EQ(argmax(std::vector<float>{-kInfinity, -kInfinity}), -1);
  EXPECT_EQ(argmax(std::vector<float>{0, kInfinity}), -1);
  EXPECT_EQ(argmax(std::vector<float>{-kInfinity, -3, kNan}), 1);
}

// The rounding of x / ln 2 gives |x| 2^-24, the series and its evaluation less than 4e-7.
TEST(ExpNonpositive, IsCloseToExp) {
  EXPECT_EQ(exp_nonpositive(0), 1.0f);
  for (float x = 0; x > -87.3f; x -= 0.00093f) {
    const double expected = std::exp(double{x});
    ASSERT_NEAR(exp_nonpositive(x), expected, expected * (4e-7 - x * 1.2e-7)) << x;
  }
  for (const float x : {-88.0f, -1e4f, -std::numeric_limits<float>::max(), -kInfinity, kNan}) {
    EXPECT_EQ(exp_nonpositive(x), 0.0f) << x;
  }
}

TEST(SoftmaxWeights, AddUp) {
  for (const int64_t size : {1, 15, 16, 33, 5000}) {
    const std::vector<float> logits = normal_values(size, 7, 5);
    const float best = max_value(logits);
    std::vector<float> weights(logits.size());
    const double sum = softmax_weights(logits, best, 0.5f, weights.data());
    std::vector<float> one_by_one;
    for (const float logit : logits) one_by_one.push_back(exp_nonpositive((logit - best) * 0.5f));
    EXPECT_EQ(weights, one_by_one);  // bit for bit, in vectors or not
    double expected_sum = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double expected = std::exp((double{logits[i]} - double{best}) * 0.5);
      expected_sum += expected;
      EXPECT_NEAR(weights[i], expected, 4e-6 * expected);
    }
    EXPECT_NEAR(sum, expected_sum, 4e-6 * expected_sum);
    double exact = 0;
    for (const float logit : logits) exact += std::exp(double{logit});
    EXPECT_NEAR(log_sum_exp(logits), std::log(exact), 1e-6);
  }
}

}  // namespace
}  // namespace lathe
