#include "engine/speculation/draft_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "base/rng.h"
#include "engine/speculation_cases.h"

namespace lathe {
namespace {

struct Planned {
  int64_t length;
  double speedup;
};

Planned plan_one(double acceptance, double draft_cost, double knee, int64_t limit = 64) {
  const DraftPlanCosts costs = {
      .target = [knee](double rows) { return std::max(1.0, rows / knee); },
      .draft = [draft_cost](double) { return draft_cost; }};
  DraftPlanner planner;
  int64_t length = 0;
  const double speedup = planner.plan(costs, {&acceptance, 1}, {&limit, 1}, 1.0, {&length, 1});
  return {length, speedup};
}

// The tables of optimal lengths and speedups for draft steps of relative cost c: at c * k + 1, and
// where rows beyond a knee cost in proportion.
TEST(DraftPlan, ReproducesTheTables) {
  struct Row {
    double c, knee, acceptance;
    int64_t length;
    double speedup;
  };
  const Row rows[] = {
      {.02, 1e9, .6, 6, 2.17},   {.02, 1e9, .8, 11, 3.82},   {.02, 1e9, .95, 31, 9.95},
      {.02, 1e9, .98, 56, 16.1}, {.05, 1e9, .7, 6, 2.35},    {.05, 1e9, .9, 13, 4.67},
      {.10, 1e9, .6, 3, 1.67},   {.10, 1e9, .9, 10, 3.43},   {.10, 1e9, .98, 26, 5.84},
      {.155, 1e9, .7, 3, 1.73},  {.155, 1e9, .95, 12, 3.40}, {.20, 1e9, .8, 4, 1.87},
      {.32, 1e9, .6, 1, 1.21},   {.32, 1e9, .9, 5, 1.80},    {.32, 1e9, .98, 13, 2.39},
      {.32, 3, .7, 2, 1.34},     {.32, 3, .95, 2, 1.74},     {.17, 3, .9, 2, 2.03},
      {.17, 6, .8, 4, 2.01},     {.17, 6, .95, 5, 2.87},     {.09, 3, .8, 2, 2.07},
      {.09, 12, .9, 10, 3.61},   {.09, 12, .95, 11, 4.62},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(testing::Message() << row.c << " " << row.knee << " " << row.acceptance);
    const Planned planned = plan_one(row.acceptance, row.c, row.knee);
    EXPECT_EQ(planned.length, row.length);
    EXPECT_NEAR(planned.speedup, row.speedup, row.speedup > 10 ? .06 : .01);
  }
}

TEST(DraftPlan, ExpectedTokensAreThoseOfASimulation) {
  EXPECT_NEAR(expected_tokens(.8, 4), 3.3616, 1e-12);
  EXPECT_NEAR(expected_tokens(.9, 8), 6.1258, 1e-4);
  Rng rng(1);
  const int n = 200000;
  for (const auto& [a, k] : {std::pair{.8, 4}, std::pair{.9, 8}}) {
    int64_t emitted = 0;
    for (int i = 0; i < n; ++i) {
      int j = 0;
      while (j < k && rng.uniform() < a) ++j;
      emitted += j + 1;
    }
    EXPECT_NEAR(static_cast<double>(emitted) / n, expected_tokens(a, k), k == 4 ? .02 : .03);
  }
}

// Against every length, for random convex costs.
TEST(DraftPlan, OneSequenceGetsTheBestLength) {
  Rng rng(2);
  for (int round = 0; round < 500; ++round) {
    const double c = rng.uniform() * .5;
    const double slope = rng.uniform() * .3;
    const double knee = 1 + 20 * rng.uniform();
    const double a = rng.uniform();
    const int64_t limit = 1 + static_cast<int64_t>(rng.below(40));
    const auto target = [&](double rows) { return 1 + slope * std::max(0.0, rows - knee); };
    const DraftPlanCosts costs = {.target = target, .draft = [&](double) { return c; }};
    DraftPlanner planner;
    int64_t length = 0;
    planner.plan(costs, {&a, 1}, {&limit, 1}, 1.0, {&length, 1});
    double best = 0;
    int64_t best_length = 0;
    for (int64_t k = 0; k <= limit; ++k) {
      const double rate =
          expected_tokens(a, k) / (target(static_cast<double>(k + 1)) + c * static_cast<double>(k));
      if (rate > best * (1 + 1e-12)) {
        best = rate;
        best_length = k;
      }
    }
    ASSERT_EQ(length, best_length) << round;
  }
}

// Two and three sequences against all combinations.
TEST(DraftPlan, ABatchGetsNearlyTheBestLengths) {
  Rng rng(3);
  for (int round = 0; round < 100; ++round) {
    const std::size_t n = 2 + rng.below(2);
    const double c = rng.uniform() * .4;
    const double slope = rng.uniform() * .2;
    std::vector<double> a(n);
    for (double& value : a) value = rng.uniform();
    const std::vector<int64_t> limits(n, 5);
    const DraftPlanCosts costs = {
        .target = [&](double rows) { return 1 + slope * rows; },
        .draft = [&](double sequences) { return c * (1 + .05 * sequences); }};
    const auto rate = [&](std::span<const int64_t> lengths) {
      double tokens = 0;
      double rows = 0;
      double seconds = 0;
      for (std::size_t i = 0; i < n; ++i) {
        tokens += expected_tokens(a[i], lengths[i]);
        rows += static_cast<double>(1 + lengths[i]);
      }
      for (int64_t j = 0; j < 5; ++j) {
        const auto drafting = std::count_if(lengths.begin(), lengths.end(),
                                            [j](int64_t length) { return length > j; });
        if (drafting > 0) seconds += costs.draft(static_cast<double>(drafting));
      }
      return tokens / (seconds + costs.target(rows));
    };
    DraftPlanner planner;
    std::vector<int64_t> lengths(n);
    planner.plan(costs, a, limits, 1.0, lengths);
    double best = 0;
    std::vector<int64_t> trial(n);
    for (int64_t code = 0; code < 216; ++code) {
      trial[0] = code % 6;
      trial[1] = code / 6 % 6;
      if (n == 3) trial[2] = code / 36;
      best = std::max(best, rate(trial));
    }
    // A draft position costs more when more take part, so thresholds are not quite the optimum.
    EXPECT_GE(rate(lengths), .98 * best) << round;
  }
}

TEST(DraftPlan, NothingIsDraftedWhereItDoesNotPay) {
  EXPECT_EQ(plan_one(.3, .32, 1e9).length, 0);  // one token pays only when acceptance > c
  EXPECT_EQ(plan_one(.33, .32, 1e9).length, 1);
  EXPECT_EQ(plan_one(.99, .01, 1).length, 0);  // every row costs a step
  EXPECT_EQ(plan_one(.9, .1, 1e9, 0).length, 0);
  EXPECT_EQ(plan_one(0, 0, 1e9).length, 0);
}

// A batch beyond the knee decodes plainly, whatever the acceptance.
TEST(DraftPlan, LargeBatchesTurnItOff) {
  const DraftPlanCosts costs = {.target = [](double rows) { return std::max(1.0, rows / 3); },
                                .draft = [](double) { return .2; }};
  DraftPlanner planner;
  for (const int64_t n : {1, 2, 16}) {
    const std::vector<double> acceptance(static_cast<std::size_t>(n), .9);
    const std::vector<int64_t> limits(static_cast<std::size_t>(n), 16);
    std::vector<int64_t> lengths(static_cast<std::size_t>(n));
    planner.plan(costs, acceptance, limits, 1.02, lengths);
    EXPECT_EQ(lengths[0] > 0, n < 3) << n;
  }
}

TEST(DraftPlan, AcceptanceIsLearnedAndForgotten) {
  DraftState state;
  EXPECT_EQ(estimated_acceptance(state, .7), .7);
  for (int i = 0; i < 200; ++i) learn_acceptance(state, 4, 4);
  EXPECT_GT(estimated_acceptance(state, .7), .98);
  for (int i = 0; i < 200; ++i) learn_acceptance(state, 4, 1);
  EXPECT_NEAR(estimated_acceptance(state, .7), .5, .02);
  for (int i = 0; i < 200; ++i) learn_acceptance(state, 4, 0);
  EXPECT_LT(estimated_acceptance(state, .7), .1);
}

TEST(StepTimes, AreLinearBetweenPoints) {
  const StepTimes times({1, 2, 4}, {10, 9, 20});
  EXPECT_EQ(times.at(0.5), 10);
  EXPECT_EQ(times.at(1), 10);
  EXPECT_EQ(times.at(2), 10);  // a longer step is not faster
  EXPECT_EQ(times.at(3), 15);
  EXPECT_EQ(times.at(6), 30);
}

// Where drafts cost little and nearly all pass, windows are as long as they may be: 64 tokens for a
// few sequences, fewer for each of many.
TEST(DraftPlan, LongWindowsAreForFewSequences) {
  for (const auto& [num_sequences, longest] : {std::pair{1, 64}, {4, 64}, {8, 32}, {32, 16}}) {
    SCOPED_TRACE(num_sequences);
    std::vector<int64_t> asked;
    auto drafter = std::make_unique<ScriptedDrafter>([&](const Sequence&, int64_t max_tokens) {
      asked.push_back(max_tokens);
      return std::vector<int32_t>();
    });
    Speculator speculator(std::move(drafter), {}, StepTimes({1, 128}, {1, 1}), num_sequences);
    std::vector<Sequence> sequences(static_cast<std::size_t>(num_sequences));
    std::vector<Sequence*> running;
    for (Sequence& sequence : sequences) {
      sequence.tokens = {1, 2};
      sequence.prompt_size = 1;
      sequence.max_new_tokens = 1000;
      sequence.kv.num_tokens = 1;
      for (int i = 0; i < 1000; ++i) speculator.learn(sequence, 64, 64);
      running.push_back(&sequence);
    }
    speculator.propose(running, /*max_rows=*/1 << 20);
    EXPECT_EQ(asked, std::vector<int64_t>(sequences.size(), longest));
  }
}

// As many tokens as may be, at the cost that it is told.
class CostlyDrafter final : public Drafter {
 public:
  explicit CostlyDrafter(double seconds) : seconds_(seconds) {}
  void propose(std::span<const DraftJob> jobs) override {
    for (const DraftJob& job : jobs) {
      for (int64_t i = 0; i < job.max_tokens; ++i) job.sequence->draft.add(1);
    }
  }
  void retire(Sequence&) override {}
  double seconds(double) const override { return seconds_; }

 private:
  double seconds_;
};

// C4: whatever acceptance does, drafting is never slower than none by more than 2 %. It is 0
// throughout, or switches between 0 and much, `period` cycles each. 20000 tokens, simulated time.
TEST(DraftPlan, SwitchingAcceptanceCostsNextToNothing) {
  for (const double draft_cost : {.02, .1, .3}) {
    for (const double slope : {0.0, .05, .3}) {  // of a step's time by rows
      const StepTimes times({1, 128}, {1, 1 + 127 * slope});
      for (const int period : {0, 20, 100, 1000}) {
        for (const double high : {.8, .95}) {
          SCOPED_TRACE(testing::Message()
                       << draft_cost << " " << slope << " " << period << " " << high);
          Speculator speculator(std::make_unique<CostlyDrafter>(draft_cost), {}, times, 1);
          Sequence sequence;
          sequence.tokens = {1, 2};
          sequence.prompt_size = 1;
          sequence.max_new_tokens = 1 << 20;
          sequence.kv.num_tokens = 1;
          Sequence* const running[] = {&sequence};
          Rng rng(1);
          double seconds = 0;
          int64_t emitted = 0;  // plain decoding: a second each
          for (int cycle = 0; emitted < 20000; ++cycle) {
            speculator.propose(running, 1 << 20);
            const int64_t drafted = sequence.draft.size();
            const double acceptance = period > 0 && cycle / period % 2 == 1 ? high : 0;
            int64_t passed = 0;
            while (passed < drafted && rng.uniform() < acceptance) ++passed;
            seconds += times.at(static_cast<double>(1 + drafted)) +
                       draft_cost * static_cast<double>(drafted);
            emitted += 1 + passed;
            if (drafted > 0) speculator.learn(sequence, drafted, passed);
          }
          EXPECT_LE(seconds, 1.02 * static_cast<double>(emitted));
        }
      }
    }
  }
}

// The engine with measured costs: exact all the same, and it terminates.
TEST(TimeRatio, FollowsWhatLastsAndForgetsWhatDoesNot) {
  TimeRatio ratio;
  EXPECT_EQ(ratio.value(), 1);
  ratio.add(100, 1);  // a step that waited for something
  EXPECT_EQ(ratio.value(), 1);
  for (int i = 0; i < 7; ++i) ratio.add(100, 1);
  EXPECT_NEAR(ratio.value(), 1.05, 1e-12) << "the eighth in a row";
  for (int i = 0; i < 10000; ++i) ratio.forget();
  EXPECT_NEAR(ratio.value(), 1, 1e-6);
  for (int i = 0; i < 60; ++i) ratio.add(3, 1.5);
  EXPECT_NEAR(ratio.value(), 2, 0.01);
  for (int i = 0; i < 60; ++i) ratio.add(1, 2);
  EXPECT_NEAR(ratio.value(), 0.5, 0.01);
  ratio.add(0, 1);
  ratio.add(1, 0);
  EXPECT_NEAR(ratio.value(), 0.5, 0.01);
}

// A drafter that takes longer than it says is left alone after a while; one that does not is not.
TEST(DraftPlan, TimesThatDoNotComeTrueTurnItOff) {
  for (const bool is_slow : {false, true}) {
    TinyEngine plain;
    const std::vector<int32_t> prompt = random_prompt(8, 3);
    const auto text = submit(plain.engine, prompt, greedy(100));
    plain.run();
    TinyEngine tiny;
    int64_t num_proposals = 0;
    tiny.engine.set_drafter(
        std::make_unique<ScriptedDrafter>([&](const Sequence& sequence, int64_t n) {
          ++num_proposals;
          if (is_slow) std::this_thread::sleep_for(std::chrono::milliseconds(8));
          const auto at = static_cast<std::size_t>(sequence.num_output());
          const auto end = std::min(text->tokens.size(), at + static_cast<std::size_t>(n));
          return std::vector<int32_t>(text->tokens.begin() + static_cast<int64_t>(at),
                                      text->tokens.begin() + static_cast<int64_t>(end));
        }),
        {.num_tokens = -1, .max_auto_tokens = 1});
    for (int i = 0; i < 6; ++i) {
      num_proposals = 0;
      const auto record = submit(tiny.engine, prompt, greedy(100));
      tiny.run();
      EXPECT_EQ(record->tokens, text->tokens);
    }
    if (is_slow) {
      EXPECT_LT(num_proposals, 12) << "of 99 steps";
    } else {
      EXPECT_GT(num_proposals, 30) << "of 50 steps";
    }
  }
}

TEST(DraftPlan, TheEngineChoosesLengths) {
  TinyEngine tiny;
  DraftModel other;
  tiny.engine.set_drafter(other.drafter(tiny), {.num_tokens = -1});
  std::vector<std::shared_ptr<Record>> records;
  for (uint64_t i = 0; i < 16; ++i) {
    records.push_back(submit(tiny.engine, random_prompt(9, i), greedy(60)));
  }
  tiny.run();
  for (uint64_t i = 0; i < 16; ++i) {
    EXPECT_TRUE(records[i]->same_as(alone(random_prompt(9, i), greedy(60))));
  }
}

}  // namespace
}  // namespace lathe
