#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "engine/counter_rng.h"
#include "formats/expect_error.h"
#include "support/all_close.h"

namespace lathe {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What the header promises, without any shortcut: sorts, sums in double.
std::vector<double> reference_distribution(std::vector<float> logits, const SamplingParams& params,
                                           const std::vector<int32_t>& prompt,
                                           const std::vector<int32_t>& output) {
  for (const LogitBias& entry : params.logit_bias) {
    logits[static_cast<std::size_t>(entry.token)] += entry.bias;
  }
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto token = static_cast<int32_t>(i);
    const auto count = std::count(output.begin(), output.end(), token);
    if (count + std::count(prompt.begin(), prompt.end(), token) > 0) {
      const auto penalty = static_cast<float>(params.repetition_penalty);
      logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
    }
    logits[i] -= static_cast<float>(params.frequency_penalty) * static_cast<float>(count);
    if (count > 0) logits[i] -= static_cast<float>(params.presence_penalty);
  }
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  if (params.temperature == 0) order.resize(1);
  if (params.top_k > 0 && params.top_k < static_cast<int64_t>(order.size())) {
    order.resize(static_cast<std::size_t>(params.top_k));
  }
  const double scale = params.temperature == 0 ? 1 : 1 / params.temperature;
  std::vector<double> p(logits.size(), 0.0);
  const auto normalize = [&] {
    double sum = 0;
    for (const std::size_t i : order) {
      p[i] = std::exp((double{logits[i]} - double{logits[order[0]]}) * scale);
      sum += p[i];
    }
    for (const std::size_t i : order) p[i] /= sum;
  };
  const auto keep = [&](std::size_t n) {
    for (std::size_t i = n; i < order.size(); ++i) p[order[i]] = 0;
    order.resize(n);
    normalize();
  };
  normalize();
  double sum = 0;
  std::size_t n = 0;
  while (n < order.size()) {
    sum += p[order[n++]];
    if (sum >= params.top_p) break;
  }
  keep(n);
  n = 1;
  while (n < order.size() && p[order[n]] >= params.min_p * p[order[0]]) ++n;
  keep(n);
  return p;
}

TokenCounts counts_of(const SamplingParams& params, const std::vector<int32_t>& prompt,
                      const std::vector<int32_t>& output, int64_t vocab_size) {
  if (!params.has_penalties()) return {};
  TokenCounts counts(prompt, vocab_size, 100);
  for (const int32_t token : output) counts.add_output(token);
  return counts;
}

// The support and the frequencies of 20,000 draws against the reference distribution.
TEST(Sampler, DrawsFollowTheReferenceDistribution) {
  const int64_t vocab_size = 200;
  const std::vector<int32_t> prompt = {1, 5, 5, 9, 150};
  const std::vector<int32_t> output = {7, 9, 9, 9, 42};
  std::vector<SamplingParams> cases(15);
  cases[1].temperature = 0.5;
  cases[2].temperature = 3;
  cases[3].top_k = 7;
  cases[4].top_p = 0.7;
  cases[5].min_p = 0.2;
  cases[6].top_k = 20;
  cases[6].top_p = 0.8;
  cases[6].min_p = 0.1;
  cases[6].temperature = 1.7;
  cases[7].repetition_penalty = 1.8;
  cases[7].top_k = 30;
  cases[8].frequency_penalty = 1.5;
  cases[8].presence_penalty = -2;
  cases[9].logit_bias = {{3, 100.0f}, {4, 99.5f}, {150, -100.0f}};
  cases[10].top_p = 0;  // the most probable one
  cases[11].top_k = 1000;
  cases[11].top_p = 0.999;
  cases[12].temperature = 30;  // nearly flat: the nucleus is most of the vocabulary
  cases[12].top_p = 0.9;
  cases[13].top_p = 0.6;
  cases[13].min_p = 0.3;
  cases[14].temperature = 0.2;
  cases[14].top_p = 0.9999;
  for (std::size_t c = 0; c < cases.size(); ++c) {
    SCOPED_TRACE(c);
    const SamplingParams& params = cases[c];
    const std::vector<float> logits = normal_values(vocab_size, c + 1, 2);
    const std::vector<double> p = reference_distribution(logits, params, prompt, output);
    const TokenCounts counts = counts_of(params, prompt, output, vocab_size);
    Sampler sampler(vocab_size);
    const int num_draws = 20000;
    std::vector<int> drawn(p.size(), 0);
    for (int i = 0; i < num_draws; ++i) {
      std::vector<float> row = logits;
      ++drawn[static_cast<std::size_t>(sampler.sample(row, params, counts, nullptr, i, {}).token)];
    }
    double chi_squared = 0;
    double rest_p = 0;
    int rest = 0;
    int degrees = -1;
    for (std::size_t i = 0; i < p.size(); ++i) {
      if (p[i] == 0) {
        EXPECT_EQ(drawn[i], 0) << "token " << i;
      } else if (p[i] * num_draws < 10) {  // too rare for the approximation: put together
        rest_p += p[i];
        rest += drawn[i];
      } else {
        chi_squared += std::pow(drawn[i] - p[i] * num_draws, 2) / (p[i] * num_draws);
        ++degrees;
      }
    }
    if (rest_p > 0) {
      chi_squared += std::pow(rest - rest_p * num_draws, 2) / (rest_p * num_draws);
      ++degrees;
    }
    // Mean + 6 standard deviations of a chi-squared law: about one failure in a million.
    EXPECT_LT(chi_squared, degrees + 6 * std::sqrt(2.0 * std::max(degrees, 1)) + 6);
  }
}

TEST(Sampler, GreedyIsTheArgmaxBehindPenalties) {
  const int64_t vocab_size = 300;
  const std::vector<int32_t> prompt = {1, 2, 3};
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::vector<float> logits = normal_values(vocab_size, seed, 1);
    SamplingParams params;
    params.temperature = 0;
    params.frequency_penalty = 0.9;
    params.repetition_penalty = 1.3;
    std::vector<int32_t> output;
    TokenCounts counts(prompt, vocab_size, 20);
    Sampler sampler(vocab_size);
    for (int i = 0; i < 20; ++i) {
      const std::vector<double> p = reference_distribution(logits, params, prompt, output);
      std::vector<float> row = logits;
      const int32_t token = sampler.sample(row, params, counts, nullptr, i, {}).token;
      ASSERT_EQ(token, std::max_element(p.begin(), p.end()) - p.begin());
      output.push_back(token);
      counts.add_output(token);
    }
  }
}

// Exactly k stay, those with the lowest ids, whatever stands in the vocabulary.
TEST(Sampler, TopKBreaksTiesById) {
  std::vector<float> logits(1000, 1.0f);
  logits[700] = 2;
  SamplingParams params;
  params.top_k = 5;
  Sampler sampler(1000);
  std::map<int32_t, int> drawn;
  for (int i = 0; i < 2000; ++i) {
    std::vector<float> row = logits;
    ++drawn[sampler.sample(row, params, {}, nullptr, i, {}).token];
  }
  std::vector<int32_t> tokens;
  for (const auto& [token, count] : drawn) tokens.push_back(token);
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 1, 2, 3, 700}));
  params.top_k = 1;
  EXPECT_EQ(sampler.sample(logits, params, {}, nullptr, 0, {}).token, 700);
}

TEST(Sampler, LogprobsAreTheModelsOwn) {
  const std::vector<float> logits = normal_values(500, 3, 4);
  SamplingParams params;
  params.temperature = 0.3;
  params.logit_bias = {{17, 100.0f}};
  params.logprobs = 5;
  Sampler sampler(500);
  std::vector<float> row = logits;
  std::vector<TokenLogprob> top(5);
  const SampledToken sampled = sampler.sample(row, params, {}, nullptr, 0, top);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  EXPECT_EQ(sampled.token, 17);
  EXPECT_NEAR(sampled.logprob, double{logits[17]} - std::log(sum), 1e-5);
  std::vector<float> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  ASSERT_EQ(sampled.top.size(), 5u);
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(logits[static_cast<std::size_t>(sampled.top[i].token)], sorted[i]);
    EXPECT_NEAR(sampled.top[i].logprob, double{sorted[i]} - std::log(sum), 1e-5);
  }
}

TEST(Sampler, BrokenLogitsAreAnError) {
  Sampler sampler(100);
  for (const float broken : {kNan, kInfinity}) {
    std::vector<float> row(100, broken);
    expect_error(ErrorCode::kInternal, "not finite",
                 [&] { sampler.sample(row, {}, {}, nullptr, 7, {}); });
  }
}

TEST(Sampler, ExtremeLogitsAndTemperaturesStayFinite) {
  for (const double temperature : {1e-30, 1e-3, 1.0, 100.0}) {
    SamplingParams params;
    params.temperature = temperature;
    for (const double top_p : {0.5, 1.0}) {
      params.top_p = top_p;
      std::vector<float> row = {-kInfinity, 3e38f, -3e38f, 0, kNan};
      Sampler sampler(5);
      EXPECT_EQ(sampler.sample(row, params, {}, nullptr, 0, {}).token, 1);
    }
  }
}

}  // namespace
}  // namespace lathe
