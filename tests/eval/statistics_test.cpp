#include "eval/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/rng.h"

namespace lathe {
namespace {

TEST(Statistics, PassAtK) {
  EXPECT_DOUBLE_EQ(pass_at_k(1, 0, 1), 0);
  EXPECT_DOUBLE_EQ(pass_at_k(1, 1, 1), 1);
  EXPECT_NEAR(pass_at_k(10, 3, 1), 0.3, 1e-15);
  EXPECT_NEAR(pass_at_k(10, 3, 5), 1 - 21.0 / 252, 1e-15);  // C(7,5) / C(10,5)
  EXPECT_DOUBLE_EQ(pass_at_k(10, 6, 5), 1);
  EXPECT_NEAR(pass_at_k(200, 100, 100), 1, 1e-15);
  for (const auto& [n, c, k] : {std::tuple{0, 0, 1}, {5, 6, 1}, {5, -1, 1}, {5, 1, 0}, {5, 1, 6}}) {
    EXPECT_THROW(pass_at_k(n, c, k), Error) << n << ' ' << c << ' ' << k;
  }
}

// scipy.stats.binomtest(b, b + c).pvalue
TEST(Statistics, ExactMcNemar) {
  EXPECT_DOUBLE_EQ(mcnemar_exact(0, 0), 1);
  EXPECT_NEAR(mcnemar_exact(5, 5), 1, 1e-12);
  EXPECT_NEAR(mcnemar_exact(0, 5), 0.0625, 1e-12);
  EXPECT_NEAR(mcnemar_exact(2, 10), 0.03857421875, 1e-12);
  EXPECT_NEAR(mcnemar_exact(10, 2), 0.03857421875, 1e-12);
  EXPECT_NEAR(mcnemar_exact(400, 500), 0.00095644413691925, 1e-12);
}

TEST(Statistics, ComparesPairedAccuracy) {
  std::vector<char> first(100, 1), second(100, 1);
  for (int i = 0; i < 10; ++i) second[static_cast<std::size_t>(i)] = 0;
  first[50] = first[51] = 0;
  const PairedAccuracy result = compare_accuracy(first, second);
  EXPECT_EQ(result.items, 100);
  EXPECT_EQ(result.only_first, 10);
  EXPECT_EQ(result.only_second, 2);
  EXPECT_NEAR(result.difference, -0.08, 1e-15);
  // sqrt(12 - 64 / 100) / 100 * 1.959964
  EXPECT_NEAR(result.high - result.difference, 0.06605980033506, 1e-12);
  EXPECT_NEAR(result.p_value, 0.03857421875, 1e-12);
}

// Tables of Student's t.
TEST(Statistics, StudentQuantiles) {
  EXPECT_NEAR(student_t_quantile(0.975, 1), 12.7062047, 1e-6);
  EXPECT_NEAR(student_t_quantile(0.975, 10), 2.2281389, 1e-6);
  EXPECT_NEAR(student_t_quantile(0.95, 30), 1.6972609, 1e-6);
  EXPECT_NEAR(student_t_quantile(0.025, 10), -2.2281389, 1e-6);
  EXPECT_NEAR(student_t_quantile(0.975, 1e6), 1.9599664, 1e-5);
  EXPECT_NEAR(student_t_quantile(0.5, 3), 0, 1e-7);
}

TEST(Statistics, MeanInterval) {
  const std::vector<double> values = {1, 2, 3, 4, 5};
  const MeanInterval interval = mean_interval(values);
  EXPECT_DOUBLE_EQ(interval.mean, 3);
  EXPECT_NEAR(interval.standard_error, std::sqrt(0.5), 1e-15);
  EXPECT_NEAR(interval.high, 3 + 2.7764451 * std::sqrt(0.5), 1e-6);
  EXPECT_NEAR(interval.low, 3 - 2.7764451 * std::sqrt(0.5), 1e-6);
  EXPECT_EQ(mean_interval(values).bootstrap_low, interval.bootstrap_low);  // seeded
  EXPECT_EQ(mean_interval({}).count, 0);
  EXPECT_TRUE(std::isinf(mean_interval(std::vector<double>{7}).high));
}

// Both intervals must hold the true mean about 95 times in 100.
TEST(Statistics, IntervalsCover) {
  Rng rng(1);
  int by_t = 0, by_bootstrap = 0;
  constexpr int kTrials = 300;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> values(40);
    for (double& value : values) value = 2 + rng.normal();
    const MeanInterval interval = mean_interval(values);
    by_t += interval.low <= 2 && 2 <= interval.high;
    by_bootstrap += interval.bootstrap_low <= 2 && 2 <= interval.bootstrap_high;
  }
  // Binomial(300, 0.95): standard deviation 1.26 %; the bootstrap is a little narrow at n = 40.
  EXPECT_NEAR(by_t / double{kTrials}, 0.95, 0.04);
  EXPECT_NEAR(by_bootstrap / double{kTrials}, 0.94, 0.05);
}

TEST(Statistics, Quantile) {
  const std::vector<float> values = {3, 1, 2};
  EXPECT_DOUBLE_EQ(quantile(values, 0), 1);
  EXPECT_DOUBLE_EQ(quantile(values, 0.5), 2);
  EXPECT_DOUBLE_EQ(quantile(values, 0.75), 2.5);
  EXPECT_DOUBLE_EQ(quantile(values, 1), 3);
  EXPECT_TRUE(std::isnan(quantile({}, 0.5)));
}

}  // namespace
}  // namespace lathe
