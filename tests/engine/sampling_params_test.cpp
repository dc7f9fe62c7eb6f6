#include "engine/sampling_params.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "engine/counter_rng.h"
#include "engine/engine_options.h"
#include "formats/expect_error.h"

namespace lathe {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(SamplingParams, RefusesImpossibleValuesByName) {
  struct BadValue {
    const char* part;  // of the message
    std::function<void(SamplingParams&)> set;
  };
  const std::vector<BadValue> cases = {
      {"temperature is -0.1", [](auto& p) { p.temperature = -0.1; }},
      {"temperature is nan", [](auto& p) { p.temperature = kNan; }},
      {"temperature is inf", [](auto& p) { p.temperature = kInfinity; }},
      {"temperature is 101", [](auto& p) { p.temperature = 101; }},
      {"top_p is 1.01", [](auto& p) { p.top_p = 1.01; }},
      {"top_p is -1", [](auto& p) { p.top_p = -1; }},
      {"top_p is nan", [](auto& p) { p.top_p = kNan; }},
      {"min_p is 2", [](auto& p) { p.min_p = 2; }},
      {"top_k is -2", [](auto& p) { p.top_k = -2; }},
      {"max_tokens is 0", [](auto& p) { p.max_tokens = 0; }},
      {"max_tokens is -7", [](auto& p) { p.max_tokens = -7; }},
      {"presence_penalty is 3", [](auto& p) { p.presence_penalty = 3; }},
      {"frequency_penalty is nan", [](auto& p) { p.frequency_penalty = kNan; }},
      {"repetition_penalty is 0", [](auto& p) { p.repetition_penalty = 0; }},
      {"logprobs is 129", [](auto& p) { p.logprobs = 129; }},
      {"logprobs is -2", [](auto& p) { p.logprobs = -2; }},
      {"token 10",
       [](auto& p) {
         p.logit_bias = {{10, 1.0f}};
       }},
      {"token -1",
       [](auto& p) {
         p.logit_bias = {{-1, 1.0f}};
       }},
      {"logit_bias is 200",
       [](auto& p) {
         p.logit_bias = {{1, 200.0f}};
       }},
      {"logit_bias is nan",
       [](auto& p) {
         p.logit_bias = {{1, static_cast<float>(kNan)}};
       }},
      {"stop_token_ids names token 11", [](auto& p) { p.stop_token_ids = {11}; }},
      {"empty string",
       [](auto& p) {
         p.stop = {"a", ""};
       }},
      {"not valid UTF-8",
       [](auto& p) {
         p.stop = {"a", "\xA9 "};
       }},
      {"1025 bytes", [](auto& p) { p.stop = {std::string(1025, 'x')}; }},
      {"65 strings", [](auto& p) { p.stop = std::vector<std::string>(65, "x"); }},
  };
  for (const BadValue& bad : cases) {
    SamplingParams params;
    bad.set(params);
    expect_error(ErrorCode::kInvalidArgument, bad.part, [&] { validate(params, 10); });
  }
  validate(SamplingParams{}, 10);
}

TEST(EngineOptions, RefusesImpossibleValuesByName) {
  EngineOptions options;
  options.max_num_seqs = 0;
  expect_error(ErrorCode::kInvalidArgument, "max_num_seqs is 0", [&] { validate(options); });
  options.max_num_seqs = 100;
  options.max_batch_tokens = 99;
  expect_error(ErrorCode::kInvalidArgument, "max_batch_tokens is 99", [&] { validate(options); });
}

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
TEST(CounterRng, MatchesRandom123) {
  using Four = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Four{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Four{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Four{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(CounterRng, StreamsPositionsAndSeedsDiffer) {
  const double base = uniform_at(1, 2, RandomStream::kSample);
  EXPECT_EQ(uniform_at(1, 2, RandomStream::kSample), base);
  EXPECT_NE(uniform_at(1, 3, RandomStream::kSample), base);
  EXPECT_NE(uniform_at(2, 2, RandomStream::kSample), base);
  EXPECT_NE(uniform_at(1, 2, RandomStream::kDraft), base);
  EXPECT_NE(uniform_at(uint64_t{1} << 32 | 1, 2, RandomStream::kSample), base);
}

}  // namespace
}  // namespace lathe
