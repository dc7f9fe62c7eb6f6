#include "compress/input_statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "quant/hadamard.h"
#include "support/all_close.h"

namespace lathe {
namespace {

class Statistics : public testing::Test {
 protected:
  ThreadPool threads_{2};
  Workspace workspace_;
  Exec exec_{threads_, workspace_};
};

TEST_F(Statistics, HessianIsTwoOverNTimesTheGramMatrix) {
  // Several blocks and tiles of the product in each direction, none of them whole.
  const int64_t k = 419, tokens = 170;
  const auto x = normal_values(tokens * k, 1);
  InputStatistics statistics(k, true);
  statistics.add(x.data(), 140, exec_);
  statistics.add(x.data() + 140 * k, tokens - 140, exec_);
  EXPECT_EQ(statistics.tokens(), tokens);
  const Buffer h = statistics.take_hessian(exec_);
  std::vector<float> expected;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        sum += double{x[static_cast<std::size_t>(t * k + i)]} *
               double{x[static_cast<std::size_t>(t * k + j)]};
      }
      expected.push_back(static_cast<float>(2 * sum / double(tokens)));
    }
  }
  // A sum of `tokens` products in fp32.
  EXPECT_TRUE(
      all_close({h.as<float>(), static_cast<std::size_t>(k * k)}, expected, double(tokens) * 6e-8));
  double mean = 0;
  float amax = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    mean += std::fabs(double{x[static_cast<std::size_t>(t * k + 418)]}) / double(tokens);
    amax = std::max(amax, std::fabs(x[static_cast<std::size_t>(t * k + 418)]));
  }
  EXPECT_NEAR(double{statistics.mean_abs()[418]}, mean, 1e-6);
  EXPECT_EQ(statistics.amax()[418], amax);
}

// Rotating the Hessian is the same as rotating the inputs.
TEST_F(Statistics, RotatedHessianIsTheHessianOfRotatedInputs) {
  const int64_t k = 256, tokens = 50;
  auto x = normal_values(tokens * k, 2);
  for (const int64_t block : {0, 16, 32, 64, 128}) {
    InputStatistics plain(k, true);
    plain.add(x.data(), tokens, exec_);
    Buffer h = plain.take_hessian(exec_);
    rotate_hessian(h.as<float>(), k, block, exec_);
    auto rotated = x;
    hadamard_rows(rotated.data(), tokens, k, block);
    InputStatistics direct(k, true);
    direct.add(rotated.data(), tokens, exec_);
    const Buffer expected = direct.take_hessian(exec_);
    EXPECT_TRUE(all_close({h.as<float>(), static_cast<std::size_t>(k * k)},
                          {expected.as<float>(), static_cast<std::size_t>(k * k)}, 1e-5));
  }
}

TEST_F(Statistics, OutputErrorIsTheMeanSquaredErrorOfOutputs) {
  const int64_t k = 40, tokens = 30, n = 600;
  const auto x = normal_values(tokens * k, 3);
  const auto d = normal_values(n * k, 4);
  InputStatistics statistics(k, true);
  statistics.add(x.data(), tokens, exec_);
  const Buffer h = statistics.take_hessian(exec_);
  double expected = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t row = 0; row < n; ++row) {
      double y = 0;
      for (int64_t j = 0; j < k; ++j) {
        y += double{x[static_cast<std::size_t>(t * k + j)]} *
             double{d[static_cast<std::size_t>(row * k + j)]};
      }
      expected += 2 * y * y / double(tokens);
    }
  }
  EXPECT_NEAR(output_error(d.data(), n, h.as<float>(), k, exec_), expected, 1e-5 * expected);
}

TEST_F(Statistics, RejectsNanAndInfinity) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(64, 1.0f);
    x[50] = bad;
    InputStatistics statistics(32, true);
    EXPECT_THROW(statistics.add(x.data(), 2, exec_), Error);
  }
}

}  // namespace
}  // namespace lathe
