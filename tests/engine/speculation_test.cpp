// Speculative decoding gives what plain decoding gives: token for token at temperature 0 and with
// `coupled`, in distribution otherwise.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "engine/speculation_cases.h"
#include "formats/expect_error.h"
#include "formats/random_checkpoint.h"
#include "support/sanitizers.h"

namespace lathe {
namespace {

// Prompts that repeat themselves, so that n-grams find something.
std::vector<int32_t> repeating_prompt(int64_t size, uint64_t seed) {
  std::vector<int32_t> prompt = random_prompt(std::max<int64_t>(1, size / 3), seed);
  while (static_cast<int64_t>(prompt.size()) < size) {
    prompt.push_back(prompt[prompt.size() - std::min<std::size_t>(prompt.size(), 5)]);
  }
  return prompt;
}

// All that may ride in a batch and must give the same tokens with and without drafts.
std::vector<Case> repeatable_cases() {
  std::vector<Case> cases;
  for (int64_t i = 0; i < 16; ++i) {
    SamplingParams params = greedy(8 + 5 * i % 27);
    if (i % 2 == 1) {
      params.temperature = 0.8;
      params.coupled = true;
      params.seed = static_cast<uint64_t>(i);
    }
    if (i % 5 == 2) params.frequency_penalty = 0.7;
    if (i % 5 == 3) params.repetition_penalty = 1.4;
    if (i % 4 == 3) params.top_k = 20;
    if (i % 7 == 3) params.top_p = 0.9;
    if (i % 6 == 1) params.logprobs = -1;
    if (i % 6 == 4) params.logit_bias = {{65, 1.5f}, {66, -2.0f}};
    cases.push_back({repeating_prompt(1 + (i * 37) % 80, static_cast<uint64_t>(i)), params});
  }
  return cases;
}

// V1 of the plan: 200 models of random weights, windows of all lengths, four kinds of drafts.
TEST(Speculation, GreedyIsThatOfPlainDecodingOnRandomModels) {
  constexpr int64_t kWindows[] = {1, 2, 3, 5, 8, 16, 64};
  DraftModel other;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    const std::vector<int32_t> prompt = repeating_prompt(3 + static_cast<int64_t>(seed % 40), seed);
    SamplingParams params = greedy(40);
    params.frequency_penalty = seed % 3 == 0 ? 0.02 : 0;  // else random models repeat themselves
    params.ignore_eos = true;
    TinyEngine tiny(small_options(),
                    open_random_checkpoint(golden_path("tiny/qwen2-tied-mqa"),
                                           {.format = std::nullopt, .scheme = {}, .seed = seed}),
                    1);
    const auto expected = submit(tiny.engine, prompt, params);
    tiny.run();
    const SpeculationOptions options{.num_tokens = kWindows[seed % std::size(kWindows)]};
    std::unique_ptr<Drafter> drafter;
    if (seed % 4 == 0) drafter = random_drafter(seed);
    if (seed % 4 == 1) drafter = own_drafter(tiny);
    if (seed % 4 == 2) drafter = std::make_unique<NgramDrafter>();
    if (seed % 4 == 3) drafter = other.drafter(tiny);
    tiny.engine.set_drafter(std::move(drafter), options);
    const auto actual = submit(tiny.engine, prompt, params);
    tiny.run();
    EXPECT_TRUE(actual->same_as(*expected));
    EXPECT_TRUE(tiny.cache_is_empty());
  }
}

// V2: a draft that is the target: every window is accepted whole.
TEST(Speculation, TheModelsOwnDraftsAreAllAccepted) {
  for (const int64_t k : {1, 3, 7}) {
    for (const bool coupled : {false, true}) {
      SCOPED_TRACE(k);
      TinyEngine tiny;
      tiny.engine.set_drafter(own_drafter(tiny), {.num_tokens = k});
      SamplingParams params = greedy(1 + 5 * (k + 1));
      params.temperature = coupled ? 1 : 0;
      params.coupled = coupled;
      params.ignore_eos = true;
      const auto record = submit(tiny.engine, random_prompt(9, 5), params);
      tiny.run();
      EXPECT_TRUE(record->same_as(alone(random_prompt(9, 5), params)));
      // The first token comes from the prompt.
      EXPECT_EQ(record->usage.speculation.cycles, 5);
      EXPECT_EQ(record->usage.speculation.drafted, 5 * k);
      EXPECT_EQ(record->usage.speculation.accepted, 5 * k);
    }
  }
}

// Sampling from p with drafts from q = p: rejected with probability 0.
TEST(Speculation, TheModelsOwnSamplesAreAllAccepted) {
  TinyEngine tiny;
  tiny.engine.set_drafter(own_drafter(tiny), {.num_tokens = 4});
  SamplingParams params = greedy(100);
  params.temperature = 0.7;
  params.top_k = 100;  // at most kMaxDraftSupport, or p has tokens that q has not
  params.ignore_eos = true;
  const auto record = submit(tiny.engine, random_prompt(9, 5), params);
  tiny.run();
  EXPECT_EQ(record->tokens.size(), 100u);
  EXPECT_EQ(record->usage.speculation.accepted, record->usage.speculation.drafted);
  EXPECT_GE(record->usage.speculation.drafted, 76);
}

// V3: a draft that is always wrong costs time only.
TEST(Speculation, WrongDraftsGiveOneTokenACycle) {
  const Record expected = alone(random_prompt(9, 5), greedy(30));
  TinyEngine tiny;
  auto drafter = std::make_unique<ScriptedDrafter>([&](const Sequence& s, int64_t n) {
    const int32_t right = expected.tokens[static_cast<std::size_t>(s.num_output())];
    return std::vector<int32_t>(static_cast<std::size_t>(n), (right + 1) % 256);
  });
  tiny.engine.set_drafter(std::move(drafter), {.num_tokens = 5});
  const auto record = submit(tiny.engine, random_prompt(9, 5), greedy(30));
  tiny.run();
  EXPECT_TRUE(record->same_as(expected));
  EXPECT_EQ(record->usage.speculation.cycles, 28);  // none for the last token
  EXPECT_EQ(record->usage.speculation.accepted, 0);
}

// V8: everything at once, with every kind of draft, any chunk size, and a cache so tight that
// sequences are preempted.
TEST(Speculation, ABatchGivesEachRequestItsTokens) {
  const std::vector<Case> cases = repeatable_cases();
  std::vector<Record> expected;
  for (const Case& c : cases) expected.push_back(alone(c.prompt, c.params));
  DraftModel other;
  for (const int64_t cache_tokens : {16 * 128, 128}) {
    for (const bool prefix_cache : {false, true}) {
      for (int kind = 0; kind < 4; ++kind) {
        SCOPED_TRACE(testing::Message() << cache_tokens << " " << prefix_cache << " " << kind);
        EngineOptions options = small_options();
        options.cache_tokens = cache_tokens;
        options.prefix_cache = prefix_cache;
        TinyEngine tiny(options, 2);
        std::unique_ptr<Drafter> drafter;
        if (kind == 0) drafter = random_drafter(1);
        if (kind == 1) drafter = own_drafter(tiny);
        if (kind == 2) drafter = std::make_unique<NgramDrafter>();
        if (kind == 3) drafter = other.drafter(tiny, cache_tokens, prefix_cache);
        tiny.engine.set_drafter(std::move(drafter), {.num_tokens = 4});
        for (int round = 0; round < 2; ++round) {
          expect_same(run_together(tiny, cases), expected);
        }
        EXPECT_EQ(tiny.engine.stats().running_cache_blocks, KvBlocks{});
        if (!prefix_cache) {
          EXPECT_TRUE(tiny.cache_is_empty());
        }
        if (cache_tokens < 1000) {
          EXPECT_GT(tiny.engine.stats().num_preemptions, 0);
        }
        if (kind == 1) {
          EXPECT_GT(tiny.engine.stats().speculation.accepted, 50);
        }
      }
    }
  }
}

// What a window leaves in the prefix cache is what plain decoding leaves: the next turn goes on
// from it.
TEST(Speculation, LaterTurnsShareCommittedTokensOnly) {
  EngineOptions options = small_options();
  options.prefix_cache = true;
  TinyEngine tiny(options);
  DraftModel other;
  tiny.engine.set_drafter(other.drafter(tiny), {.num_tokens = 6});
  std::vector<int32_t> prompt = random_prompt(20, 1);
  for (int turn = 0; turn < 4; ++turn) {
    SCOPED_TRACE(turn);
    const auto record = submit(tiny.engine, prompt, greedy(10));
    tiny.run();
    EXPECT_TRUE(record->same_as(alone(prompt, greedy(10))));
    if (turn > 0) {
      EXPECT_EQ(record->usage.cached_tokens, static_cast<int64_t>(prompt.size()) - 6);
    }
    prompt.insert(prompt.end(), record->tokens.begin(), record->tokens.end());
    const std::vector<int32_t> words = random_prompt(5, static_cast<uint64_t>(turn));
    prompt.insert(prompt.end(), words.begin(), words.end());
  }
}

// V4: the end of an answer at every offset of a window.
TEST(Speculation, EndsAnywhereInAWindow) {
  const std::vector<int32_t> prompt = random_prompt(9, 6);
  SamplingParams base = greedy(24);
  base.temperature = 1;
  base.coupled = true;
  base.seed = 3;
  base.ignore_eos = true;
  const Record full = alone(prompt, base);
  for (const int64_t k : {1, 4, 7}) {
    for (std::size_t i = 0; i < full.tokens.size(); ++i) {
      SCOPED_TRACE(testing::Message() << k << " " << i);
      for (int kind = 0; kind < 3; ++kind) {
        SamplingParams params = base;
        if (kind == 0) params.stop_token_ids = {full.tokens[i]};
        if (kind == 1) params.max_tokens = static_cast<int64_t>(i) + 1;
        if (kind == 2) {
          params.stop = {full.text.substr(std::min(i, full.text.size() - 2), 2)};
          if (!is_valid_utf8(params.stop[0])) continue;
        }
        TinyEngine tiny;
        tiny.engine.set_drafter(own_drafter(tiny), {.num_tokens = k});
        const auto record = submit(tiny.engine, prompt, params);
        tiny.run();
        EXPECT_TRUE(record->same_as(alone(prompt, params)));
        EXPECT_TRUE(tiny.cache_is_empty());
      }
    }
  }
}

// S4, and what the row of a window costs nothing in: random drafts under `coupled`.
TEST(Speculation, CoupledSamplingIsThatOfPlainDecodingForEveryWindow) {
  DraftModel other;
  int64_t accepted = 0;
  for (const int64_t k : {1, 2, 5, 16}) {
    for (uint64_t seed = 0; seed < 10; ++seed) {
      SamplingParams params = greedy(30);
      params.temperature = 0.3 + 0.1 * static_cast<double>(seed);
      params.coupled = true;
      params.seed = seed;
      if (seed % 3 == 1) params.top_p = 0.8;
      TinyEngine tiny;
      tiny.engine.set_drafter(other.drafter(tiny), {.num_tokens = k});
      const auto record = submit(tiny.engine, random_prompt(7, seed), params);
      tiny.run();
      EXPECT_TRUE(record->same_as(alone(random_prompt(7, seed), params)));
      accepted += record->usage.speculation.accepted;
    }
  }
  EXPECT_GT(accepted, 0);  // the same noise makes unrelated models agree now and then
}

// S5: the distribution of three sampled tokens, through the whole engine, against the product of
// the model's conditional probabilities. Three tokens may be drawn, so there are 27 outcomes.
class SampledStrings : public ::testing::Test {
 protected:
  static constexpr int32_t kTokens[] = {65, 97, 200};
  static constexpr int kDraws = 20000;

  static SamplingParams params() {
    SamplingParams params = greedy(3);
    params.temperature = 6;
    params.ignore_eos = true;
    params.logprobs = -1;
    // Close to each other, so that every outcome comes often enough.
    params.logit_bias = {{65, 99.8f}, {97, 100.0f}, {200, 99.7f}};
    return params;
  }

  static std::vector<double> expected() {
    std::vector<double> probs(27, 1.0);
    TinyEngine tiny;
    for (int outcome = 0; outcome < 27; ++outcome) {
      std::vector<int32_t> ids = {1, 2, 3};
      const int digits[] = {outcome / 9, outcome / 3 % 3, outcome % 3};
      for (const int digit : digits) {
        SequenceRunner runner(tiny.loaded, 128);
        const std::vector<float> logits = runner.feed(ids).logits;
        const auto vocab_size = static_cast<std::size_t>(tiny.loaded.config().vocab_size);
        const std::span<const float> row = std::span(logits).last(vocab_size);
        double weights[3];
        double sum = 0;
        for (std::size_t t = 0; t < 3; ++t) {
          const auto bias = static_cast<double>(params().logit_bias[t].bias) - 100;
          weights[t] = std::exp((double{row[static_cast<std::size_t>(kTokens[t])]} + bias) / 6);
          sum += weights[t];
        }
        probs[static_cast<std::size_t>(outcome)] *= weights[digit] / sum;
        ids.push_back(kTokens[digit]);
      }
    }
    return probs;
  }

  static double chi_squared(TinyEngine& tiny, const std::vector<double>& probs) {
    std::vector<int> counts(27, 0);
    for (int i = 0; i < kDraws; ++i) {
      Request request;
      request.prompt = {1, 2, 3};
      request.params = params();
      request.params.seed = static_cast<uint64_t>(i);
      auto value = std::make_shared<int>(0);
      request.on_output = [&counts, value](const RequestOutput& output) {
        for (const int32_t token : output.token_ids) {
          *value = 3 * *value + static_cast<int>(std::find(kTokens, kTokens + 3, token) - kTokens);
        }
        if (output.finish_reason) ++counts.at(static_cast<std::size_t>(*value));
      };
      tiny.engine.add_request(std::move(request));
      if (i % 64 == 63) tiny.run();
    }
    tiny.run();
    double sum = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const double mean = probs[i] * kDraws;
      EXPECT_GT(mean, 20);
      sum += (counts[i] - mean) * (counts[i] - mean) / mean;
    }
    return sum;
  }
};

TEST_F(SampledStrings, FollowTheModelWithAnyDraft) {
  if (kSanitized) {
    GTEST_SKIP() << "statistics of 20,000 draws: minutes under a sanitizer, on ways that other "
                    "tests go too";
  }
  const std::vector<double> probs = expected();
  // 26 degrees of freedom; P(chi-squared > 77.5) = 5e-7.
  constexpr double kLimit = 77.5;
  DraftModel other;
  for (const int64_t k : {1, 2, 3}) {
    TinyEngine tiny;
    tiny.engine.set_drafter(other.drafter(tiny), {.num_tokens = k});
    EXPECT_LT(chi_squared(tiny, probs), kLimit) << "window " << k;
    const SpeculationUsage usage = tiny.engine.stats().speculation;
    EXPECT_GT(usage.accepted, usage.drafted / 2);
    EXPECT_LT(usage.accepted, usage.drafted * 99 / 100);  // the models differ
  }
  {
    TinyEngine tiny;  // drafts without a distribution
    auto drafter = std::make_unique<ScriptedDrafter>([](const Sequence&, int64_t n) {
      return std::vector<int32_t>(static_cast<std::size_t>(n), 97);
    });
    tiny.engine.set_drafter(std::move(drafter), {.num_tokens = 2});
    EXPECT_LT(chi_squared(tiny, probs), kLimit);
    EXPECT_GT(tiny.engine.stats().speculation.accepted, 1000);
  }
}

// Every token of an output is counted once, under the step that made it; what a window has behind
// a stop string or an end token, nowhere.
TEST(Speculation, UsageSaysWhereTokensCameFrom) {
  const std::string text = alone(random_prompt(9, 5), greedy(30)).text;
  for (const int64_t k : {1, 3, 8}) {
    for (std::size_t length = 2; length < 20; ++length) {
      TinyEngine tiny;
      DraftModel other;
      if (length % 3 == 0) {
        tiny.engine.set_drafter(other.drafter(tiny), {.num_tokens = k});
      } else {
        tiny.engine.set_drafter(own_drafter(tiny), {.num_tokens = k});
      }
      SamplingParams params = greedy(30);
      params.stop = {text.substr(length - 2, 2)};
      const auto record = submit(tiny.engine, random_prompt(9, 5), params);
      tiny.run();
      EXPECT_TRUE(record->same_as(alone(random_prompt(9, 5), params)));
      const SpeculationUsage usage = record->usage.speculation;
      const int64_t emitted = usage.accepted + usage.judge_accepted + usage.corrected + usage.bonus;
      EXPECT_EQ(record->usage.completion_tokens, 1 + emitted) << k << ' ' << length;
      EXPECT_LE(usage.corrected + usage.bonus, usage.cycles);
      EXPECT_GE(usage.corrected + usage.bonus, usage.cycles - 1);
      const EngineStats stats = tiny.engine.stats();
      EXPECT_EQ(stats.speculation.accepted, usage.accepted);
      EXPECT_EQ(std::accumulate(stats.windows.accepted_at.begin(), stats.windows.accepted_at.end(),
                                int64_t{0}),
                usage.accepted);
      EXPECT_EQ(stats.windows.windows_of[static_cast<std::size_t>(k)], usage.cycles);
    }
  }
}

TEST(Speculation, RequestsChooseTheirOwnLength) {
  TinyEngine tiny;
  tiny.engine.set_drafter(own_drafter(tiny), {.num_tokens = 3});
  const auto run_with = [&](int64_t num_tokens) {
    auto usage = std::make_shared<Usage>();
    Request request;
    request.prompt = random_prompt(9, 5);
    request.params = greedy(21);
    request.params.ignore_eos = true;
    request.speculative.num_tokens = num_tokens;
    request.on_output = [usage](const RequestOutput& output) { *usage = output.usage; };
    tiny.engine.add_request(std::move(request));
    tiny.run();
    return *usage;
  };
  EXPECT_EQ(run_with(-1).speculation.cycles, 5);
  EXPECT_EQ(run_with(0).speculation.cycles, 0);
  EXPECT_EQ(run_with(9).speculation.cycles, 2);
  for (const int64_t bad : {-2, 65}) {
    expect_error(ErrorCode::kInvalidArgument, "speculative.num_tokens", [&] { run_with(bad); });
  }
  expect_error(ErrorCode::kInvalidArgument, "num_tokens is 65",
               [&] { tiny.engine.set_drafter(own_drafter(tiny), {.num_tokens = 65}); });
}

// A draft model that fails, or has no room, leaves plain decoding.
TEST(Speculation, ADrafterThatFailsDoesNoHarm) {
  const Record expected = alone(random_prompt(9, 5), greedy(20));
  {
    TinyEngine tiny;
    tiny.engine.set_drafter(
        std::make_unique<ScriptedDrafter>([](const Sequence&, int64_t) -> std::vector<int32_t> {
          fail(ErrorCode::kInternal, "no draft today");
        }),
        {.num_tokens = 4});
    const auto record = submit(tiny.engine, random_prompt(9, 5), greedy(20));
    tiny.run();
    EXPECT_TRUE(record->same_as(expected));
  }
  TinyEngine tiny;
  DraftModel other;
  tiny.engine.set_drafter(other.drafter(tiny, 32), {.num_tokens = 4});  // one block
  std::vector<std::shared_ptr<Record>> records;
  for (int i = 0; i < 5; ++i) {
    records.push_back(submit(tiny.engine, random_prompt(9, 5), greedy(20)));
  }
  tiny.run();
  for (const auto& record : records) EXPECT_TRUE(record->same_as(expected));
}

// Constraints see every token once, in order, whatever was drafted.
TEST(Speculation, ConstraintsRuleWindows) {
  struct Increasing : TokenConstraint {
    std::vector<int32_t> accepted = {-1};
    void allowed_tokens(std::span<uint64_t> words) override {
      std::fill(words.begin(), words.end(), uint64_t{0});
      for (int32_t t = 0; t < 256; t += 3) {
        if (t > accepted.back()) words[static_cast<std::size_t>(t / 64)] |= uint64_t{1} << (t % 64);
      }
    }
    void accept(int32_t token) override {
      EXPECT_EQ(token % 3, 0);
      EXPECT_GT(token, accepted.back());
      accepted.push_back(token);
    }
    // Drafts are masked too, and taken back before the window is judged row by row.
    void rollback(int64_t n) override {
      ASSERT_LT(n, std::ssize(accepted));
      accepted.resize(accepted.size() - static_cast<std::size_t>(n));
    }
  };
  const auto run_with = [](std::unique_ptr<Drafter> drafter, double temperature) {
    TinyEngine tiny;
    if (drafter == nullptr) drafter = own_drafter(tiny);
    tiny.engine.set_drafter(std::move(drafter), {.num_tokens = 4});
    std::vector<int32_t> tokens;
    Request request;
    request.prompt = {1, 2, 3};
    request.params = greedy(5);
    request.params.temperature = temperature;
    request.params.coupled = true;
    request.constraint = std::make_unique<Increasing>();
    request.on_output = [&](const RequestOutput& output) {
      tokens.insert(tokens.end(), output.token_ids.begin(), output.token_ids.end());
    };
    tiny.engine.add_request(std::move(request));
    tiny.run();
    return tokens;
  };
  const auto nothing = [] {
    return std::make_unique<ScriptedDrafter>(
        [](const Sequence&, int64_t) { return std::vector<int32_t>(); });
  };
  for (const double temperature : {0.0, 1.0}) {
    const std::vector<int32_t> expected = run_with(nothing(), temperature);
    EXPECT_EQ(expected.size(), 5u);
    EXPECT_EQ(run_with(nullptr, temperature), expected);
    EXPECT_EQ(run_with(random_drafter(3), temperature), expected);
  }
}

TEST(NgramDrafter, FindsTheLongestLatestMatch) {
  const auto next = [](std::vector<int32_t> tokens, int64_t n) {
    const auto found = ngram_continuation(tokens, n, {});
    return std::vector<int32_t>(found.begin(), found.end());
  };
  using Tokens = std::vector<int32_t>;
  EXPECT_EQ(next({}, 3), Tokens());
  EXPECT_EQ(next({1}, 3), Tokens());
  EXPECT_EQ(next({1, 2, 3, 4}, 3), Tokens());
  EXPECT_EQ(next({1, 9, 1}, 3), Tokens());                          // one token is no match
  EXPECT_EQ(next({1, 2, 3, 1, 2}, 2), (Tokens{3, 1}));              // two are
  EXPECT_EQ(next({1, 2, 3, 1, 2}, 9), (Tokens{3, 1, 2}));           // to the end
  EXPECT_EQ(next({1, 2, 5, 1, 2, 6, 1, 2}, 1), (Tokens{6}));        // the latest
  EXPECT_EQ(next({7, 1, 2, 5, 1, 2, 6, 7, 1, 2}, 1), (Tokens{5}));  // the longest
  EXPECT_EQ(next({4, 4, 4, 4}, 2), (Tokens{4}));                    // overlapping itself
}

}  // namespace
}  // namespace lathe
