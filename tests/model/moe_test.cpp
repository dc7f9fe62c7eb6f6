#include "model/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

ModelConfig config_of(int64_t num_experts, int64_t per_token, bool renormalize) {
  ModelConfig config;
  config.num_experts = num_experts;
  config.num_experts_per_token = per_token;
  config.norm_topk_prob = renormalize;
  return config;
}

TEST(ChooseExperts, AgreesWithASort) {
  for (const bool renormalize : {true, false}) {
    for (const int64_t per_token : {1, 2, 8}) {
      const int64_t num_experts = 13;
      const int64_t num_rows = 37;
      const ModelConfig config = config_of(num_experts, per_token, renormalize);
      const std::vector<float> scores = normal_values(num_rows * num_experts, 5, 2);
      OwnedExec owned(3);
      const Workspace::Scope scope(owned.workspace);
      std::vector<float> overwritten = scores;
      const ExpertRows chosen = choose_experts(config, overwritten.data(), num_rows, owned.exec);

      std::vector<std::vector<double>> actual(static_cast<std::size_t>(num_rows));
      for (auto& row : actual) row.assign(static_cast<std::size_t>(num_experts), 0);
      for (int64_t e = 0; e < num_experts; ++e) {
        for (int64_t i = chosen.offsets[e]; i < chosen.offsets[e + 1]; ++i) {
          if (i > chosen.offsets[e]) {
            EXPECT_GT(chosen.rows[i], chosen.rows[i - 1]);
          }
          actual[static_cast<std::size_t>(chosen.rows[i])][static_cast<std::size_t>(e)] =
              chosen.weights[i];
        }
      }
      EXPECT_EQ(chosen.offsets[num_experts], num_rows * per_token);

      for (std::size_t t = 0; t < actual.size(); ++t) {
        const float* row = scores.data() + t * static_cast<std::size_t>(num_experts);
        std::vector<std::size_t> order(static_cast<std::size_t>(num_experts));
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::sort(order.begin(), order.end(),
                  [&](std::size_t a, std::size_t b) { return row[a] > row[b]; });
        double all = 0;
        double kept = 0;
        for (std::size_t i = 0; i < order.size(); ++i) {
          all += std::exp(double{row[order[i]]});
          if (i < static_cast<std::size_t>(per_token)) kept += std::exp(double{row[order[i]]});
        }
        for (std::size_t i = 0; i < order.size(); ++i) {
          const double expected = i < static_cast<std::size_t>(per_token)
                                      ? std::exp(double{row[order[i]]}) / (renormalize ? kept : all)
                                      : 0;
          EXPECT_NEAR(actual[t][order[i]], expected, 1e-6);
        }
      }
    }
  }
}

// Broken scores must not choose one expert twice: its rows would not fit.
TEST(ChooseExperts, AnyScoresGiveDifferentExperts) {
  const ModelConfig config = config_of(6, 3, true);
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> scores = {kNan, kNan, kNan, kNan, kNan, kNan, 1, 1, 1,
                               1,    1,    1,    kNan, 2,    kNan, 1, 0, kNan};
  OwnedExec owned(1);
  const Workspace::Scope scope(owned.workspace);
  const ExpertRows chosen = choose_experts(config, scores.data(), 3, owned.exec);
  std::vector<int> times(18, 0);
  for (int64_t e = 0; e < 6; ++e) {
    for (int64_t i = chosen.offsets[e]; i < chosen.offsets[e + 1]; ++i) {
      ++times[static_cast<std::size_t>(chosen.rows[i] * 6 + e)];
    }
  }
  EXPECT_EQ(std::count(times.begin(), times.end(), 1), 9);
  EXPECT_EQ(std::count(times.begin(), times.end(), 0), 9);
  // Ties go to the lower expert.
  EXPECT_EQ(times[6] + times[7] + times[8], 3);
}

}  // namespace
}  // namespace lathe
