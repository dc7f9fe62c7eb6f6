#include "model/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"

namespace lathe {
namespace {

using Scaling = RopeConfig::Scaling;

struct Case {
  const char* name;
  RopeConfig config;
  int64_t rotary_dim;
  int64_t max_positions;
  int64_t sequence_length;
  double attention_factor;
  std::vector<double> inverse;
};

// What ROPE_INIT_FUNCTIONS of transformers 5.23.0 (torch 2.15.0, fp32) return for head_dim 16.
std::vector<Case> golden() {
  std::vector<double> short_factor, long_factor;
  for (int i = 0; i < 6; ++i) {
    short_factor.push_back(1 + 0.1 * i);
    long_factor.push_back(1 + i * i);
  }
  const RopeConfig longrope{.scaling = Scaling::kLongRope,
                            .original_max_position_embeddings = 4096,
                            .short_factor = short_factor,
                            .long_factor = long_factor};
  return {
      {"linear",
       {.scaling = Scaling::kLinear, .factor = 4},
       16,
       2048,
       100,
       1,
       {0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466,
        0.000250000012, 7.90569466e-05}},
      {"dynamic, short",
       {.scaling = Scaling::kDynamic, .factor = 2},
       16,
       2048,
       100,
       1,
       {1.0, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786, 0.00100000005,
        0.000316227786}},
      {"dynamic, long",
       {.scaling = Scaling::kDynamic, .factor = 2},
       16,
       2048,
       5000,
       1,
       {1.0, 0.260517091, 0.0678691566, 0.0176810753, 0.00460622227, 0.00119999971, 0.000312620425,
        8.14429659e-05}},
      {"llama3",
       {.theta = 500000,
        .scaling = Scaling::kLlama3,
        .factor = 8,
        .low_freq_factor = 1,
        .high_freq_factor = 4,
        .original_max_position_embeddings = 8192},
       16,
       131072,
       100,
       1,
       {1.0, 0.193922758, 0.0376060307, 0.00729266508, 0.000524846022, 3.42810235e-05,
        6.64786967e-06, 1.28917316e-06}},
      {"yarn",
       {.theta = 1e6,
        .scaling = Scaling::kYarn,
        .factor = 4,
        .original_max_position_embeddings = 32768},
       16,
       131072,
       100,
       1.138629436111989,
       {1.0, 0.177827939, 0.0316227786, 0.00421755994, 0.000500000024, 4.44569851e-05,
        7.90569356e-06, 1.40585337e-06}},
      {"yarn with everything given",
       {.scaling = Scaling::kYarn,
        .factor = 16,
        .original_max_position_embeddings = 4096,
        .beta_fast = 20,
        .beta_slow = 2,
        .attention_factor = 0.5},
       16,
       65536,
       100,
       0.5,
       {1.0, 0.316227764, 0.100000001, 0.0316227786, 0.00687499903, 0.00118585408, 6.2500003e-05,
        1.97642366e-05}},
      {"longrope, short",
       longrope,
       12,
       131072,
       4096,
       1.1902380714238083,
       {1.0, 0.195857689, 0.0386799015, 0.0076923077, 0.00153888157, 0.000309439318}},
      {"longrope, long",
       longrope,
       12,
       131072,
       4097,
       1.1902380714238083,
       {1.0, 0.107721724, 0.00928317662, 0.00100000005, 0.000126731422, 1.78522678e-05}},
  };
}

TEST(RopeTable, FrequenciesAreThoseOfTransformers) {
  for (const Case& c : golden()) {
    SCOPED_TRACE(c.name);
    const RopeFrequencies actual =
        rope_frequencies(c.config, c.rotary_dim, c.max_positions, c.sequence_length);
    EXPECT_NEAR(actual.attention_factor, c.attention_factor, 1e-12);
    ASSERT_EQ(actual.inverse.size(), c.inverse.size());
    for (std::size_t j = 0; j < c.inverse.size(); ++j) {
      // torch raises to powers in fp32: a few ulp.
      EXPECT_NEAR(double{actual.inverse[j]} / c.inverse[j], 1, 1e-6) << "pair " << j;
    }
  }
}

TEST(RopeTable, HoldsCosinesAndSinesTimesTheAttentionFactor) {
  const RopeConfig config{.theta = 100,
                          .scaling = Scaling::kYarn,
                          .factor = 1,
                          .original_max_position_embeddings = 64,
                          .attention_factor = 3};
  const RopeTable table(config, 4, 64, 50);
  const RopeTable::View view = table.view(50);
  EXPECT_EQ(view.num_positions, 50);
  for (int64_t position = 0; position < 50; ++position) {
    for (int64_t j = 0; j < 2; ++j) {
      const double angle = static_cast<double>(position) * (j == 0 ? 1 : 0.1);
      EXPECT_NEAR(view.cos[position * 2 + j], 3 * std::cos(angle), 1e-5);
      EXPECT_NEAR(view.sin[position * 2 + j], 3 * std::sin(angle), 1e-5);
    }
  }
}

TEST(RopeTable, LongropeAndDynamicHaveATableForLongSequences) {
  for (const auto scaling : {Scaling::kLongRope, Scaling::kDynamic, Scaling::kNone}) {
    const RopeConfig config{.scaling = scaling,
                            .factor = 2,
                            .original_max_position_embeddings = 32,
                            .short_factor = {1, 1},
                            .long_factor = {2, 3}};
    const RopeTable table(config, 4, 64, 64);
    EXPECT_EQ(table.view(1).cos, table.view(32).cos);
    EXPECT_EQ(table.view(33).cos == table.view(32).cos, scaling == Scaling::kNone);
    const RopeFrequencies beyond = rope_frequencies(config, 4, 64, 64);
    EXPECT_NEAR(table.view(33).sin[2 + 1],
                std::sin(double{beyond.inverse[1]}) * beyond.attention_factor, 1e-6);
    // A table that never reaches the original length has no second part.
    const RopeTable small(config, 4, 64, 32);
    EXPECT_EQ(small.view(33).cos, small.view(32).cos);
  }
}

TEST(RopeTable, RefusesConfigsThatCannotBeEvaluated) {
  const auto refused = [](const RopeConfig& config, int64_t rotary_dim = 8) {
    try {
      rope_frequencies(config, rotary_dim, 2048, 10);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_FALSE(refused({}));
  EXPECT_TRUE(refused({}, 7));
  EXPECT_TRUE(refused({.theta = 0}));
  EXPECT_TRUE(refused({.theta = NAN}));
  EXPECT_TRUE(refused({.scaling = Scaling::kLinear, .factor = 0}));
  EXPECT_TRUE(refused({.scaling = Scaling::kDynamic, .factor = 2}, 2));
  EXPECT_TRUE(refused({.scaling = Scaling::kLlama3, .low_freq_factor = 4, .high_freq_factor = 4}));
  EXPECT_TRUE(
      refused({.scaling = Scaling::kLongRope, .short_factor = {1, 2}, .long_factor = {1, 2}}));
}

}  // namespace
}  // namespace lathe
