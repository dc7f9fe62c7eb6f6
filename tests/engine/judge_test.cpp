// Judges: what they may change, and what not.
#include "engine/speculation/judge.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/speculation_cases.h"
#include "formats/expect_error.h"

namespace lathe {
namespace {

// Accepts what the test says, and counts.
class ScriptedJudge final : public Judge {
 public:
  using Rule = std::function<bool(const JudgedToken&, double threshold)>;
  ScriptedJudge(Rule rule, bool hidden, int64_t* calls = nullptr)
      : rule_(std::move(rule)), hidden_(hidden), calls_(calls) {}
  std::string name() const override { return "scripted"; }
  bool needs_hidden() const override { return hidden_; }
  bool accepts(const JudgedToken& token, double threshold) const override {
    if (calls_ != nullptr) ++*calls_;
    return rule_(token, threshold);
  }

 private:
  Rule rule_;
  bool hidden_;
  int64_t* calls_;
};

std::unique_ptr<Judge> yes_judge(int64_t* calls = nullptr) {
  return std::make_unique<ScriptedJudge>([](const JudgedToken&, double) { return true; }, false,
                                         calls);
}

struct Judged {
  Record record;
  SpeculationUsage usage;
};

using MakeDrafter = std::function<std::unique_ptr<Drafter>(TinyEngine&)>;

// Random tokens: mismatches throughout. The tiny models themselves are of one mind about much.
MakeDrafter random_tokens() {
  return [](TinyEngine&) { return random_drafter(3); };
}
MakeDrafter drafts_of(DraftModel& other) {
  return [&other](TinyEngine& tiny) { return other.drafter(tiny); };
}

Judged run(std::unique_ptr<Judge> judge, double threshold, const MakeDrafter& drafter, int64_t k,
           const SamplingParams& params, const SpeculativeParams& speculative = {}) {
  TinyEngine tiny;
  tiny.engine.set_drafter(drafter(tiny), {.num_tokens = k});
  tiny.engine.set_judge(std::move(judge), threshold);
  Judged result;
  Request request;
  request.prompt = random_prompt(9, 5);
  request.params = params;
  request.speculative = speculative;
  request.on_output = [&](const RequestOutput& output) {
    result.record.tokens.insert(result.record.tokens.end(), output.token_ids.begin(),
                                output.token_ids.end());
    for (const SampledToken& t : output.logprobs) result.record.logprobs.push_back(t.logprob);
    result.record.text += output.text;
    result.record.reason = output.finish_reason;
    result.usage = output.usage.speculation;
  };
  tiny.engine.add_request(std::move(request));
  tiny.run();
  EXPECT_TRUE(tiny.cache_is_empty());
  return result;
}

// J1.
TEST(Judge, ThresholdZeroIsExactAndIsNeverAsked) {
  int64_t calls = 0;
  const Judged judged = run(yes_judge(&calls), 0, random_tokens(), 4, greedy(30));
  EXPECT_GT(judged.usage.drafted, judged.usage.accepted);
  EXPECT_TRUE(judged.record.same_as(alone(random_prompt(9, 5), greedy(30))));
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(judged.usage.judge_accepted, 0);
}

// J2: a judge that lets everything pass leaves the draft's own greedy text, but for the token
// behind each window, which is the target's.
TEST(Judge, LettingAllPassFollowsTheDraft) {
  DraftModel other;
  const int64_t k = 5;
  SamplingParams params = greedy(1 + 4 * (k + 1));
  params.ignore_eos = true;
  const Judged judged = run(yes_judge(), 1, drafts_of(other), k, params);
  EXPECT_EQ(judged.usage.cycles, 4);
  EXPECT_EQ(judged.usage.accepted + judged.usage.judge_accepted, judged.usage.drafted);
  std::vector<int32_t> ids = random_prompt(9, 5);
  for (std::size_t i = 0; i < judged.record.tokens.size(); ++i) {
    if (i % static_cast<std::size_t>(k + 1) != 0) {
      SequenceRunner runner(other.loaded, 128);
      const std::vector<float> logits = runner.feed(ids).logits;
      const auto row =
          std::span(logits).last(static_cast<std::size_t>(other.loaded.config().vocab_size));
      EXPECT_EQ(judged.record.tokens[i], std::max_element(row.begin(), row.end()) - row.begin());
    }
    ids.push_back(judged.record.tokens[i]);
    if (ids.back() >= other.loaded.config().vocab_size) break;
  }
}

// J3: never about tokens that the exact rule takes.
TEST(Judge, IsAskedAboutMismatchesOnly) {
  TinyEngine tiny;
  int64_t calls = 0;
  tiny.engine.set_drafter(own_drafter(tiny), {.num_tokens = 4});
  tiny.engine.set_judge(yes_judge(&calls), 1);
  const auto record = submit(tiny.engine, random_prompt(9, 5), greedy(30));
  tiny.run();
  EXPECT_EQ(calls, 0);
  EXPECT_TRUE(record->same_as(alone(random_prompt(9, 5), greedy(30))));
}

// V5: the hidden state is that of the row whose input is the draft token, bit for bit, and the
// logits are those that chose against it.
TEST(Judge, SeesTheDraftTokensRow) {
  LoadedModel target(golden_path("tiny/qwen2-tied-mqa"), 1);
  int64_t checked = 0;
  std::vector<int32_t> text = random_prompt(9, 5);
  // Windows of one token: the context is what has been emitted.
  TinyEngine tiny;
  tiny.engine.set_drafter(random_drafter(3), {.num_tokens = 1});
  auto judge = std::make_unique<ScriptedJudge>(
      [&](const JudgedToken& token, double) {
        std::vector<int32_t> ids = text;
        ids.push_back(token.draft);
        SequenceRunner runner(target, 128);
        const auto result = runner.feed(ids);
        const auto width = static_cast<std::size_t>(target.config().hidden_size);
        const auto vocab = static_cast<std::size_t>(target.config().vocab_size);
        const auto hidden = std::span(result.hidden).last(width);
        EXPECT_TRUE(
            std::equal(hidden.begin(), hidden.end(), token.hidden.begin(), token.hidden.end()));
        const auto logits = std::span(result.logits).subspan((ids.size() - 2) * vocab, vocab);
        EXPECT_TRUE(
            std::equal(logits.begin(), logits.end(), token.logits.begin(), token.logits.end()));
        ++checked;
        return checked % 2 == 0;
      },
      /*hidden=*/true);
  tiny.engine.set_judge(std::move(judge), 0.5);
  Request request;
  request.prompt = text;
  request.params = greedy(30);
  request.on_output = [&](const RequestOutput& output) {
    text.insert(text.end(), output.token_ids.begin(), output.token_ids.end());
  };
  tiny.engine.add_request(std::move(request));
  tiny.run();
  EXPECT_GT(checked, 5);
}

// J5: in one window, a larger threshold never accepts fewer tokens. Judges here are monotone in
// their thresholds, so it is enough that each is.
TEST(Judge, AcceptanceGrowsWithTheThreshold) {
  Rng rng(4);
  LogisticJudge logistic({1.0f, -0.5f, 0.25f}, -0.3f, 0);
  TopKJudge top_k;
  KlJudge kl;
  TypicalJudge typical;
  for (int round = 0; round < 10000; ++round) {
    std::vector<float> logits(12), draft_logits(12), hidden(3);
    for (float& v : logits) v = static_cast<float>(2 * rng.normal());
    for (float& v : draft_logits) v = static_cast<float>(2 * rng.normal());
    for (float& v : hidden) v = static_cast<float>(rng.normal());
    const JudgedToken token{.draft = static_cast<int32_t>(rng.below(12)),
                            .logits = logits,
                            .hidden = hidden,
                            .draft_logits = draft_logits,
                            .target_prob = rng.uniform() < .5 ? 1e-5 : .5};
    const double a = rng.uniform() * 2;
    const double b = a + rng.uniform();
    for (const Judge* judge :
         {static_cast<const Judge*>(&logistic), static_cast<const Judge*>(&top_k),
          static_cast<const Judge*>(&kl), static_cast<const Judge*>(&typical)}) {
      ASSERT_LE(judge->accepts(token, a), judge->accepts(token, b)) << judge->name();
      ASSERT_FALSE(judge->accepts(token, 0)) << judge->name();
    }
  }
}

// J4, J6 and numbers that are none.
TEST(LogisticJudge, IsStrictGuardedAndRefusesNan) {
  const float logits[] = {0, 0};  // both 1/2
  const float hidden[] = {1, 0};
  const auto accepts = [&](float bias, double threshold, double floor, std::span<const float> row) {
    return LogisticJudge({0, 0}, bias, floor)
        .accepts(
            {.draft = 1, .logits = logits, .hidden = row, .draft_logits = {}, .target_prob = .5},
            threshold);
  };
  EXPECT_FALSE(accepts(0, 0.5, 0, hidden));  // P = 1/2 exactly
  EXPECT_TRUE(accepts(0, 0.5000001, 0, hidden));
  EXPECT_FALSE(accepts(-5, 0.5, 0.6, hidden));  // below the floor
  EXPECT_TRUE(accepts(100, 1, 0, hidden));
  EXPECT_TRUE(accepts(100, std::numeric_limits<double>::infinity(), 0, hidden));
  EXPECT_FALSE(accepts(0, std::numeric_limits<double>::quiet_NaN(), 0, hidden));
  const float broken[] = {std::numeric_limits<float>::quiet_NaN(), 0};
  EXPECT_FALSE(accepts(-5, 1, 0, broken));
}

TEST(Baselines, FollowTheirDefinitions) {
  const float logits[] = {std::log(.5f), std::log(.3f), std::log(.2f)};
  const float same[] = {std::log(.5f), std::log(.3f), std::log(.2f)};
  const float other[] = {std::log(.2f), std::log(.3f), std::log(.5f)};
  const JudgedToken second{
      .draft = 1, .logits = logits, .hidden = {}, .draft_logits = same, .target_prob = .3};
  const JudgedToken third{
      .draft = 2, .logits = logits, .hidden = {}, .draft_logits = other, .target_prob = .2};
  EXPECT_FALSE(TopKJudge().accepts(second, 1));
  EXPECT_TRUE(TopKJudge().accepts(second, 2));
  EXPECT_FALSE(TopKJudge().accepts(third, 2));
  // KL = .3 ln(.5 / .2) = .27489.
  EXPECT_TRUE(KlJudge().accepts(second, 1e-3));
  EXPECT_FALSE(KlJudge().accepts(third, .2748));
  EXPECT_TRUE(KlJudge().accepts(third, .2750));
  // H = 1.0297, e^-H = .3571.
  EXPECT_TRUE(TypicalJudge().accepts(third, .6));   // d = .4: min(.16, .143) < .2
  EXPECT_FALSE(TypicalJudge().accepts(third, .4));  // d = .6: min(.36, .214) > .2
  const float sure[] = {std::log(.95f), std::log(.05f)};
  EXPECT_FALSE(KlJudge().accepts(
      {.draft = 1, .logits = sure, .hidden = {}, .draft_logits = sure, .target_prob = .05}, 10));
  // J6 for all: the floor is one of the request's own probabilities, not of these logits.
  JudgedToken cut = second;
  cut.target_prob = kJudgeFloor / 2;
  EXPECT_FALSE(TopKJudge().accepts(cut, 3));
  EXPECT_FALSE(KlJudge().accepts(cut, 10));
  EXPECT_FALSE(TypicalJudge().accepts(cut, 1));
  EXPECT_TRUE(TypicalJudge().accepts(second, 1));
  const float hidden[] = {1};
  cut.hidden = hidden;
  EXPECT_FALSE(LogisticJudge({0}, -5).accepts(cut, .5));
  expect_error(ErrorCode::kInvalidArgument, "coin", [] { baseline_judge("coin"); });
}

// Vocabularies that differ by padding: the divergence is that of the ids that both have.
TEST(KlJudge, ComparesWhatBothModelsHave) {
  // .4, .24, .16 and .2 of padding: renormalized .5, .3, .2.
  const float logits[] = {std::log(.4f), std::log(.24f), std::log(.16f), std::log(.2f)};
  const float draft[] = {std::log(.2f), std::log(.3f), std::log(.5f)};
  const auto accepts = [&](std::span<const float> draft_logits, double threshold) {
    return KlJudge().accepts({.draft = 2,
                              .logits = logits,
                              .hidden = {},
                              .draft_logits = draft_logits,
                              .target_prob = .16},
                             threshold);
  };
  EXPECT_FALSE(accepts(draft, .2748));  // KL = .3 ln(.5 / .2) = .27489
  EXPECT_TRUE(accepts(draft, .2750));
  EXPECT_FALSE(accepts({}, 10));
}

// Asks for the draft's logits and looks at them.
class PeekingJudge final : public Judge {
 public:
  explicit PeekingJudge(std::vector<std::vector<float>>& seen) : seen_(seen) {}
  std::string name() const override { return "peeking"; }
  bool needs_draft_logits() const override { return true; }
  bool accepts(const JudgedToken& token, double) const override {
    seen_.emplace_back(token.draft_logits.begin(), token.draft_logits.end());
    return false;
  }

 private:
  std::vector<std::vector<float>>& seen_;
};

// The draft has 288 ids, the target 320: what is compared are logits of 288, none of them made up.
TEST(KlJudge, GetsTheLogitsOfASmallerDraftVocabulary) {
  DraftModel other;
  TinyEngine tiny;
  ASSERT_LT(other.loaded.config().vocab_size, tiny.loaded.config().vocab_size);
  std::vector<std::vector<float>> seen;
  SamplingParams params = greedy(40);
  params.temperature = 1;  // greedily, these two models are of one mind
  run(std::make_unique<PeekingJudge>(seen), 1, drafts_of(other), 4, params);
  ASSERT_FALSE(seen.empty());
  for (const std::vector<float>& logits : seen) {
    EXPECT_EQ(std::ssize(logits), other.loaded.config().vocab_size);
    EXPECT_TRUE(
        std::all_of(logits.begin(), logits.end(), [](float v) { return std::isfinite(v); }));
  }
}

// With drafts that are looked up there is nothing to compare, and it would be silently exact.
TEST(KlJudge, NeedsADraftWithLogits) {
  TinyEngine tiny;
  tiny.engine.set_drafter(std::make_unique<NgramDrafter>(), {.num_tokens = 4});
  expect_error(ErrorCode::kInvalidArgument, "kl",
               [&] { tiny.engine.set_judge(std::make_unique<KlJudge>(), 0.5); });
  tiny.engine.set_judge(std::make_unique<TopKJudge>(), 2);
}

// J10: behind the last accept that a budget allows, decoding is exact.
TEST(Judge, BudgetsEndItsPower) {
  SpeculativeParams budget;
  budget.max_judge_accepts = 3;
  SamplingParams params = greedy(40);
  const Judged judged = run(yes_judge(), 1, random_tokens(), 4, params, budget);
  EXPECT_EQ(judged.usage.judge_accepted, 3);
  // Where the text leaves the model's own for the third time.
  std::vector<int32_t> ids = random_prompt(9, 5);
  TinyEngine tiny;
  int deviations = 0;
  for (const int32_t token : judged.record.tokens) {
    SequenceRunner runner(tiny.loaded, 128);
    const std::vector<float> logits = runner.feed(ids).logits;
    const auto row =
        std::span(logits).last(static_cast<std::size_t>(tiny.loaded.config().vocab_size));
    deviations += token != std::max_element(row.begin(), row.end()) - row.begin();
    ids.push_back(token);
  }
  EXPECT_EQ(deviations, 3);
  SpeculativeParams deficit;
  deficit.max_logprob_deficit = 0;
  EXPECT_EQ(run(yes_judge(), 1, random_tokens(), 4, params, deficit).usage.judge_accepted, 0);
  SpeculativeParams exact;
  exact.judge_threshold = 0;
  EXPECT_EQ(run(yes_judge(), 1, random_tokens(), 4, params, exact).usage.judged, 0);
  EXPECT_GT(judged.usage.logprob_deficit, 0);
}

// Whatever a judge says: only what the request's sampling could draw.
TEST(Judge, PassesNothingThatSamplingExcludes) {
  LoadedModel target(golden_path("tiny/qwen2-tied-mqa"), 1);
  const auto vocab = static_cast<std::size_t>(target.config().vocab_size);
  SamplingParams sampled = greedy(40);
  sampled.temperature = 0.8;
  SamplingParams top_k = sampled, top_p = sampled, min_p = sampled, sharp = sampled;
  top_k.top_k = 20;
  top_p.top_p = 0.5;
  min_p.min_p = 0.1;
  sharp.top_k = 1;
  int64_t accepted = 0;
  for (const SamplingParams& params : {top_k, top_p, min_p, sharp}) {
    SCOPED_TRACE(testing::Message() << params.top_k << " " << params.top_p << " " << params.min_p);
    const Judged judged = run(yes_judge(), 1, random_tokens(), 4, params);
    EXPECT_GT(judged.usage.judged, 0);
    if (params.top_k == 1) {
      EXPECT_EQ(judged.usage.judge_accepted, 0);
    }
    accepted += judged.usage.judge_accepted;
    std::vector<int32_t> ids = random_prompt(9, 5);
    for (const int32_t token : judged.record.tokens) {
      SequenceRunner runner(target, 128);
      const std::vector<float> all = runner.feed(ids).logits;
      const auto row = std::span(all).last(vocab);
      const double best = *std::max_element(row.begin(), row.end());
      double total = 0, before = 0;  // of all, and of the more probable ones
      int64_t rank = 0;
      const double own = row[static_cast<std::size_t>(token)];
      for (const double logit : row) {
        const double weight = std::exp((logit - best) / params.temperature);
        total += weight;
        if (logit <= own) continue;
        before += weight;
        ++rank;
      }
      EXPECT_LT(rank, params.top_k > 0 ? params.top_k : std::ssize(row));
      EXPECT_LT(before, params.top_p * total);
      // Weights are of floats: a few ulp.
      EXPECT_GE(std::exp((own - best) / params.temperature), params.min_p * (1 - 1e-5));
      ids.push_back(token);
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(Judge, WrongRequestsAreRefused) {
  for (const double bad : {-2.0, std::numeric_limits<double>::quiet_NaN()}) {
    SpeculativeParams params;
    params.judge_threshold = bad;
    expect_error(ErrorCode::kInvalidArgument, "judge_threshold",
                 [&] { run(yes_judge(), 1, random_tokens(), 4, greedy(5), params); });
  }
  TinyEngine tiny;
  Request request;
  request.prompt = {1};
  request.speculative.judge_threshold = 0.5;
  expect_error(ErrorCode::kInvalidArgument, "no judge",
               [&] { tiny.engine.add_request(std::move(request)); });
  expect_error(ErrorCode::kInvalidArgument, "needs a draft",
               [&] { tiny.engine.set_judge(yes_judge(), 0.5); });
}

// J9: sampling with a judge that accepts a rejected token with probability 1/2, independent of all:
// emitted = min(p, q) + (q - min(p, q)) / 2 + (rest) r, at a distance of .16 from p.
TEST(Judge, SampledDistributionMovesByTheChanceOfAcceptance) {
  const double p[] = {.36, .24, .16, .12, .08, .04};
  const double q[] = {.10, .30, .10, .30, .15, .05};
  const double expected[] = {.23, .27, .13, .21, .115, .045};
  Sampler sampler(6);
  SamplingParams params;
  Rng rng(9);
  const int n = 200000;
  std::vector<int> emitted(6, 0);
  std::vector<TokenProb> distribution;
  const auto logits_of = [](const double* probs) {
    std::vector<float> logits;
    for (int i = 0; i < 6; ++i) logits.push_back(static_cast<float>(std::log(probs[i])));
    return logits;
  };
  for (int position = 0; position < n; ++position) {
    distribution.clear();
    std::vector<float> row = logits_of(q);
    const int32_t draft = sampler.draft(row, params, {}, nullptr, position, distribution);
    row = logits_of(p);
    const Acceptance exact =
        sampler.verify(row, params, {}, nullptr, position, draft, distribution, {});
    const bool passes = exact.accepted || rng.uniform() < .5;
    ++emitted[static_cast<std::size_t>(passes ? draft : exact.sampled.token)];
  }
  double chi_squared = 0;
  double distance = 0;
  for (std::size_t i = 0; i < 6; ++i) {
    const double mean = expected[i] * n;
    chi_squared += (emitted[i] - mean) * (emitted[i] - mean) / mean;
    distance += std::abs(emitted[i] / static_cast<double>(n) - p[i]) / 2;
  }
  EXPECT_LT(chi_squared, 35.89);  // 5 degrees of freedom: 1e-6
  EXPECT_NEAR(distance, .16, .005);
}

// The hidden state with the first token is that of the prompt's last one.
TEST(Engine, GivesTheHiddenStateOfThePromptsEnd) {
  TinyEngine tiny;
  const std::vector<int32_t> prompt = random_prompt(70, 3);  // two chunks
  std::vector<float> hidden;
  Request request;
  request.prompt = prompt;
  request.params = greedy(4);
  request.wants_hidden = true;
  request.on_output = [&](const RequestOutput& output) {
    hidden.insert(hidden.end(), output.hidden.begin(), output.hidden.end());
  };
  tiny.engine.add_request(std::move(request));
  const auto other = submit(tiny.engine, random_prompt(9, 5), greedy(30));
  tiny.run();
  SequenceRunner runner(tiny.loaded, 128);
  const auto result = runner.feed(prompt);
  const auto last =
      std::span(result.hidden).last(static_cast<std::size_t>(tiny.loaded.config().hidden_size));
  EXPECT_TRUE(std::equal(last.begin(), last.end(), hidden.begin(), hidden.end()));
}

}  // namespace
}  // namespace lathe
