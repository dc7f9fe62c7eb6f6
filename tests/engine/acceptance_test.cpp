// The acceptance rule on a toy whose numbers are known:
//   p = (.36, .24, .16, .12, .08, .04), q = (.10, .30, .10, .30, .15, .05):
//   sum min(p, q) = .68; residual (.8125, 0, .1875, 0, 0, 0); sum over x of
//   1 / sum over y of max(p_y / p_x, q_y / q_x) = .6272 (both models under the same Gumbel noise).
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "engine/sampler.h"
#include "engine/token_noise.h"

namespace lathe {
namespace {

constexpr double kP[] = {.36, .24, .16, .12, .08, .04};
constexpr double kQ[] = {.10, .30, .10, .30, .15, .05};
constexpr int64_t kDraws = 200000;
// 5 degrees of freedom; P(chi-squared > 35.89) = 1e-6.
constexpr double kLimit = 35.89;

std::vector<float> logits_of(std::span<const double> probs) {
  std::vector<float> logits;
  for (const double prob : probs) logits.push_back(static_cast<float>(std::log(prob)));
  return logits;
}

double chi_squared(std::span<const int64_t> counts, std::span<const double> probs) {
  const auto n = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  double sum = 0;
  for (std::size_t i = 0; i < probs.size(); ++i) {
    if (probs[i] == 0) {
      EXPECT_EQ(counts[i], 0) << i;
      continue;
    }
    const double difference = static_cast<double>(counts[i]) - n * probs[i];
    sum += difference * difference / (n * probs[i]);
  }
  return sum;
}

struct Toy {
  Sampler sampler{6};
  SamplingParams params;
  std::vector<int64_t> emitted = std::vector<int64_t>(6, 0);
  int64_t accepted = 0;

  // certain_draft: a token that is always drafted; -1: drawn from q.
  void run(int32_t certain_draft, std::span<const double> p = kP) {
    std::vector<TokenProb> q;
    for (int64_t position = 0; position < kDraws; ++position) {
      q.clear();
      int32_t draft = certain_draft;
      if (draft < 0) {
        std::vector<float> row = logits_of(kQ);
        draft = sampler.draft(row, params, {}, nullptr, position, q);
      }
      std::vector<float> row = logits_of(p);
      const Acceptance verdict = sampler.verify(row, params, {}, nullptr, position, draft, q, {});
      if (verdict.accepted) {
        EXPECT_EQ(verdict.sampled.token, draft);
      }
      accepted += verdict.accepted;
      ++emitted[static_cast<std::size_t>(verdict.sampled.token)];
    }
  }
  double rate() const { return static_cast<double>(accepted) / static_cast<double>(kDraws); }
};

TEST(Acceptance, EmitsTheTargetsDistribution) {
  Toy toy;
  toy.run(-1);
  EXPECT_LT(chi_squared(toy.emitted, kP), kLimit);
  EXPECT_NEAR(toy.rate(), .68, .005);  // 5 standard deviations
}

// A draw from p instead of the residual is the classic mistake; the test above must notice it.
TEST(Acceptance, TheTestWouldNoticeAWrongResidual) {
  Sampler sampler(6);
  SamplingParams params;
  std::vector<int64_t> emitted(6, 0);
  std::vector<TokenProb> q;
  for (int64_t position = 0; position < kDraws; ++position) {
    q.clear();
    std::vector<float> row = logits_of(kQ);
    const int32_t draft = sampler.draft(row, params, {}, nullptr, position, q);
    row = logits_of(kP);
    Acceptance verdict = sampler.verify(row, params, {}, nullptr, position, draft, q, {});
    row = logits_of(kP);
    if (!verdict.accepted) verdict.sampled = sampler.sample(row, params, {}, nullptr, position, {});
    ++emitted[static_cast<std::size_t>(verdict.sampled.token)];
  }
  EXPECT_GT(chi_squared(emitted, kP), 10000);
}

TEST(Acceptance, ACertainDraftIsAcceptedWithItsProbability) {
  Toy toy;
  toy.run(1);
  EXPECT_LT(chi_squared(toy.emitted, kP), kLimit);
  EXPECT_NEAR(toy.rate(), .24, .005);
}

TEST(Acceptance, CoupledChoicesAgreeAndFollowTheTarget) {
  Toy toy;
  toy.params.coupled = true;
  toy.run(-1);
  EXPECT_LT(chi_squared(toy.emitted, kP), kLimit);
  EXPECT_NEAR(toy.rate(), .6272, .005);
  // The same tokens as without drafts.
  Sampler sampler(6);
  std::vector<int64_t> plain(6, 0);
  for (int64_t position = 0; position < kDraws; ++position) {
    std::vector<float> row = logits_of(kP);
    ++plain[static_cast<std::size_t>(
        sampler.sample(row, toy.params, {}, nullptr, position, {}).token)];
  }
  EXPECT_EQ(plain, toy.emitted);
}

TEST(Acceptance, TokensOutsideTheTargetsNucleusAreRejected) {
  const double nucleus[] = {.36 / .76, .24 / .76, .16 / .76, 0, 0, 0};
  for (const int32_t draft : {-1, 0, 1, 3, 5}) {
    Toy toy;
    toy.params.top_p = .75;
    toy.run(draft);
    // 2 degrees of freedom; P(chi-squared > 27.6) = 1e-6.
    EXPECT_LT(chi_squared(toy.emitted, nucleus), 27.6) << draft;
    if (draft >= 3) {
      EXPECT_EQ(toy.accepted, 0);
    }
    if (draft == 0) {
      EXPECT_NEAR(toy.rate(), .4737, .006);
    }
  }
}

TEST(Acceptance, EqualModelsNeverReject) {
  Toy toy;
  toy.run(-1, kQ);
  EXPECT_EQ(toy.accepted, kDraws);
}

// Every transform of a request, on a vocabulary with ties and rare tokens.
TEST(Acceptance, EveryTransformKeepsTheDistribution) {
  std::vector<SamplingParams> cases(6);
  cases[1].temperature = 0.4;
  cases[2].top_k = 3;
  cases[3].min_p = 0.3;
  cases[4].temperature = 2;
  cases[4].top_k = 4;
  cases[4].top_p = 0.8;
  cases[5].repetition_penalty = 1.5;
  cases[5].frequency_penalty = 0.4;
  for (std::size_t c = 0; c < cases.size(); ++c) {
    SCOPED_TRACE(c);
    const SamplingParams& params = cases[c];
    TokenCounts counts;
    if (params.has_penalties()) {
      const int32_t prompt[] = {0, 3};
      counts = TokenCounts(prompt, 6, 10);
      counts.add_output(1);
    }
    Sampler sampler(6);
    std::vector<int64_t> plain(6, 0);
    std::vector<int64_t> speculative(6, 0);
    std::vector<TokenProb> q;
    for (int64_t position = 0; position < kDraws; ++position) {
      q.clear();
      std::vector<float> row = logits_of(kQ);
      const int32_t draft = sampler.draft(row, params, counts, nullptr, position, q);
      row = logits_of(kP);
      ++speculative[static_cast<std::size_t>(
          sampler.verify(row, params, counts, nullptr, position, draft, q, {}).sampled.token)];
      row = logits_of(kP);
      ++plain[static_cast<std::size_t>(
          sampler.sample(row, params, counts, nullptr, position, {}).token)];
    }
    // Two samples of the same law: sum of (a - b)^2 / (a + b) is chi-squared.
    double sum = 0;
    for (std::size_t i = 0; i < 6; ++i) {
      const auto a = static_cast<double>(plain[i]);
      const auto b = static_cast<double>(speculative[i]);
      EXPECT_EQ(a == 0, b == 0) << i;
      if (a + b > 0) sum += (a - b) * (a - b) / (a + b);
    }
    EXPECT_LT(sum, kLimit);
  }
}

// Penalties that are advanced over drafts and taken back leave the counts as they were.
TEST(TokenCounts, RemovingUndoesAdding) {
  const int32_t prompt[] = {0, 3, 3};
  TokenCounts counts(prompt, 8, 10);
  counts.add_output(3);
  const auto listed = [&] {
    std::vector<std::pair<int32_t, int32_t>> entries;
    counts.for_each([&](int32_t token, int32_t outputs) { entries.emplace_back(token, outputs); });
    return entries;
  };
  const auto before = listed();
  const int32_t drafts[] = {5, 3, 5, 0, 7};
  for (const int32_t token : drafts) counts.add_output(token);
  EXPECT_NE(listed(), before);
  for (std::size_t i = std::size(drafts); i-- > 0;) counts.remove_output(drafts[i]);
  EXPECT_EQ(listed(), before);
}

TEST(TokenNoise, IsExponentialAndBoundedFromBelow) {
  double sum = 0;
  double sum_of_squares = 0;
  const int n = 100000;
  TokenNoise::Words words;
  for (int i = 0; i < n; ++i) {
    const TokenNoise noise(17, i / 1000);
    if (i % 1000 == 0) words = {};
    const double value = noise.exponential(i % 1000);
    ASSERT_GT(value, 0);
    ASSERT_LE(noise.least(i % 1000, words), value);
    sum += value;
    sum_of_squares += value * value;
  }
  EXPECT_NEAR(sum / n, 1, 5 / std::sqrt(n));                    // variance 1
  EXPECT_NEAR(sum_of_squares / n, 2, 5 * std::sqrt(20.0 / n));  // E x^4 - 4 = 20
}

TEST(TokenNoise, LogAgreesWithTheLibrary) {
  for (int i = 1; i < 2000; ++i) {
    const double x = std::pow(0.97, i);
    // 1.2e-14 of the series, and a few roundings of numbers up to |log x|.
    EXPECT_NEAR(portable_log(x), std::log(x), 2e-14 + 4e-16 * std::abs(std::log(x)));
  }
  EXPECT_EQ(portable_log(1.0), 0);
}

}  // namespace
}  // namespace lathe
