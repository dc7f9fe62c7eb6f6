#include "compress/input_statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "comm/thread_ranks.h"
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

// Each rank adds all rows to its part: the bits of one process, whoever is root and however many
// threads a rank has. 3001^2 is more than one piece of the reduction, 50 less than a block.
TEST_F(Statistics, PartsOfRanksAreThoseOfOneProcess) {
  const int64_t tokens = 12;
  for (const int64_t k : {3001, 50}) {
    const auto x = normal_values(tokens * k, 3);
    InputStatistics one(k, true);
    one.add(x.data(), tokens, exec_);
    const std::vector<float> mean = one.mean_abs();
    const Buffer expected = one.take_hessian(exec_);
    for (const int root : {0, 2}) {
      ThreadRanks(3).run([&](Communicator& ranks) {
        ThreadPool threads(1 + ranks.rank());
        Workspace workspace;
        Exec exec{threads, workspace};
        const GramShare share = {.part = (ranks.rank() + 1) % 3, .parts = 3};
        InputStatistics part(k, true);
        part.add(x.data(), 7, exec, share);
        part.add(x.data() + 7 * k, tokens - 7, exec, share);
        part.join(ranks, root, exec);
        EXPECT_EQ(part.tokens(), tokens);
        EXPECT_EQ(part.amax(), one.amax());
        EXPECT_EQ(part.has_gram(), ranks.rank() == root);
        if (ranks.rank() != root) return;
        EXPECT_EQ(part.mean_abs(), mean);
        const Buffer h = part.take_hessian(exec);
        EXPECT_EQ(std::memcmp(h.data(), expected.data(), static_cast<std::size_t>(h.size())), 0);
      });
    }
  }
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
    for (const int64_t k : {32, 19}) {  // whole vectors, and what is left over
      std::vector<float> x(static_cast<std::size_t>(2 * k), 1.0f);
      x[static_cast<std::size_t>(2 * k - 2)] = bad;
      InputStatistics statistics(k, true);
      EXPECT_THROW(statistics.add(x.data(), 2, exec_), Error);
    }
  }
}

TEST_F(Statistics, MagnitudesAreThoseOfTheColumns) {
  for (const int64_t k : {1, 16, 45, 200}) {
    const int64_t tokens = 150;
    const auto x = normal_values(tokens * k, 11);
    InputStatistics statistics(k, false);
    statistics.add(x.data(), tokens, exec_);
    const std::vector<float> mean = statistics.mean_abs();
    for (int64_t j = 0; j < k; ++j) {
      double sum = 0;
      float largest = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        const float a = std::fabs(x[static_cast<std::size_t>(t * k + j)]);
        sum += double{a};
        largest = std::max(largest, a);
      }
      EXPECT_EQ(mean[static_cast<std::size_t>(j)], static_cast<float>(sum / 150.0));
      EXPECT_EQ(statistics.amax()[static_cast<std::size_t>(j)], largest);
    }
  }
}

}  // namespace
}  // namespace lathe
