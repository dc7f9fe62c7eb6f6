// Judged answers compared with the exact ones: counted right, never in the way, nothing left over.
#include "server/judge_shadow.h"

#include <gtest/gtest.h>

#include "engine/logits.h"
#include "engine/speculation_cases.h"
#include "server/served_tiny.h"

namespace lathe {
namespace {

EngineOptions sharing_options() {
  EngineOptions options = small_options();
  options.prefix_cache = true;
  return options;
}

ShadowJob job_of(const Record& record, int64_t max_tokens, int64_t judge_accepted) {
  ShadowJob job;
  job.prompt = random_prompt(20, 1);
  job.params = greedy(max_tokens);
  job.token_ids = record.tokens;
  job.text = record.text;
  job.judge_accepted = judge_accepted;
  job.threshold = 0.5;
  return job;
}

// The engine's thread, as EngineRunner runs it.
void run_idle(TinyEngine& tiny, JudgeShadow& shadow) {
  shadow.between_steps(false);
  while (tiny.engine.has_work()) {
    tiny.engine.step();
    shadow.between_steps(false);
  }
}

TEST(JudgeShadow, ComparesTextsAndTellsWhatTheyCost) {
  TinyEngine tiny(sharing_options());
  JudgeShadow shadow(tiny.engine, {.share = 1, .certified = {}, .on_alarm = nullptr});
  const Record exact = alone(random_prompt(20, 1), greedy(12));
  shadow.submit(job_of(exact, 12, 3));
  run_idle(tiny, shadow);
  EXPECT_EQ(shadow.compared.value(), 1);
  EXPECT_EQ(shadow.differed.value(), 0);
  EXPECT_EQ(shadow.deficit.sum(), 0);

  Record other = exact;
  for (int32_t& token : other.tokens) token ^= 1;
  other.text = "other";
  shadow.submit(job_of(other, 12, 3));
  run_idle(tiny, shadow);
  EXPECT_EQ(shadow.compared.value(), 2);
  EXPECT_EQ(shadow.differed.value(), 1);
  // By the model itself: logprobs of both along their own texts.
  double expected = 0;
  for (const float logprob : exact.logprobs) expected += static_cast<double>(logprob);
  SequenceRunner runner(tiny.loaded, 128);
  std::vector<int32_t> ids = random_prompt(20, 1);
  ids.insert(ids.end(), other.tokens.begin(), other.tokens.end());
  const std::vector<float> logits = runner.feed(ids).logits;
  const auto vocab = static_cast<std::size_t>(tiny.loaded.config().vocab_size);
  for (std::size_t i = 20; i < ids.size(); ++i) {
    const auto row = std::span(logits).subspan((i - 1) * vocab, vocab);
    expected -= static_cast<double>(row[static_cast<std::size_t>(ids[i])]) - log_sum_exp(row);
  }
  EXPECT_NEAR(shadow.deficit.sum(), expected, 1e-3);
  EXPECT_GT(shadow.deficit.sum(), 1);

  // Where nothing passed there is nothing to compute.
  const int64_t steps = tiny.engine.stats().steps;
  shadow.submit(job_of(exact, 12, 0));
  run_idle(tiny, shadow);
  EXPECT_EQ(shadow.compared.value(), 3);
  EXPECT_EQ(tiny.engine.stats().steps, steps);
  // With the prefix cache on, nothing of it is kept.
  EXPECT_TRUE(tiny.cache_is_empty());
  EXPECT_EQ(shadow.dropped.value(), 0);
}

TEST(JudgeShadow, WaitsForEverybody) {
  TinyEngine tiny(sharing_options());
  JudgeShadow shadow(tiny.engine, {.share = 1, .certified = {}, .on_alarm = nullptr});
  const Record exact = alone(random_prompt(20, 1), greedy(12));
  shadow.submit(job_of(exact, 12, 3));
  shadow.between_steps(/*others_wait=*/true);
  EXPECT_FALSE(tiny.engine.step());
  shadow.between_steps(false);
  for (int i = 0; i < 5; ++i) tiny.engine.step();
  EXPECT_EQ(tiny.engine.stats().num_running, 1);
  // A request arrives: one step beside it, then the request has the engine for itself.
  const auto record = submit(tiny.engine, random_prompt(9, 2), greedy(20));
  tiny.engine.step();
  shadow.between_steps(false);
  while (!record->reason) {
    tiny.engine.step();
    shadow.between_steps(false);
    if (record->reason) break;
    EXPECT_EQ(tiny.engine.stats().num_running, 1);
  }
  EXPECT_TRUE(record->same_as(alone(random_prompt(9, 2), greedy(20))));
  EXPECT_EQ(shadow.compared.value(), 0);
  run_idle(tiny, shadow);
  EXPECT_EQ(shadow.compared.value(), 1);
  EXPECT_EQ(shadow.differed.value(), 0);
}

TEST(JudgeShadow, IsBounded) {
  TinyEngine tiny(sharing_options());
  JudgeShadow shadow(tiny.engine, {.share = 1, .certified = {}, .on_alarm = nullptr});
  const Record exact = alone(random_prompt(20, 1), greedy(12));
  for (std::size_t i = 0; i < JudgeShadow::kMaxQueue + 3; ++i) {
    shadow.submit(job_of(exact, 12, 1));
  }
  EXPECT_EQ(shadow.dropped.value(), 3);
  EXPECT_EQ(shadow.num_queued(), static_cast<int64_t>(JudgeShadow::kMaxQueue));
  // One that is interrupted each time is given up.
  for (int64_t i = 0; i < JudgeShadow::kMaxTries; ++i) {
    shadow.between_steps(false);
    tiny.engine.step();
    shadow.between_steps(true);
    tiny.engine.step();
  }
  EXPECT_EQ(shadow.dropped.value(), 4);
  EXPECT_EQ(shadow.compared.value(), 0);
  // A prompt that cannot be run ends only its own comparison.
  TinyEngine second;
  JudgeShadow strict(second.engine, {.share = 1, .certified = {}, .on_alarm = nullptr});
  ShadowJob bad = job_of(exact, 12, 1);
  bad.prompt = {-1};
  strict.submit(bad);
  strict.submit(job_of(exact, 12, 1));
  run_idle(second, strict);
  run_idle(second, strict);
  EXPECT_EQ(strict.dropped.value(), 1);
  EXPECT_EQ(strict.compared.value(), 1);
}

TEST(JudgeShadow, WantsItsShareOfWhatCanBeCompared) {
  TinyEngine tiny;
  JudgeShadow shadow(tiny.engine, {.share = 0.25, .certified = {}, .on_alarm = nullptr});
  int count = 0;
  for (int i = 0; i < 4000; ++i) count += shadow.wants(greedy(1));
  EXPECT_NEAR(count, 1000, 6 * 27.4);  // six standard deviations
  SamplingParams params = greedy(1);
  params.temperature = 1;
  JudgeShadow all(tiny.engine, {.share = 1, .certified = {}, .on_alarm = nullptr});
  EXPECT_FALSE(all.wants(params));
  params.coupled = true;
  EXPECT_TRUE(all.wants(params));
}

TEST(JudgeShadow, AnAlarmLowersTheServersThreshold) {
  TinyEngine tiny;
  std::vector<double> thresholds;
  JudgeShadow shadow(tiny.engine, {.share = 1,
                                   .alarm_rate = 0.05,
                                   .threshold = 0.5,
                                   .certified = {0.1, 0.3, 0.7, 0},
                                   .on_alarm = [&](double t) { thresholds.push_back(t); }});
  Record other = alone(random_prompt(20, 1), greedy(2));
  for (int32_t& token : other.tokens) token ^= 1;
  other.text = "other";
  const auto differ = [&](double threshold, int times) {
    for (int i = 0; i < times; ++i) {
      ShadowJob job = job_of(other, 2, 1);
      job.threshold = threshold;
      shadow.submit(std::move(job));
      run_idle(tiny, shadow);
    }
  };
  differ(0.9, 20);  // a client's own threshold is the client's business
  EXPECT_EQ(shadow.threshold(), 0.5);
  EXPECT_FALSE(shadow.alarmed());
  for (const double threshold : {0.5, 0.3, 0.1}) {
    EXPECT_EQ(shadow.threshold(), threshold);
    differ(threshold, 20);
  }
  EXPECT_EQ(shadow.threshold(), 0);
  EXPECT_TRUE(shadow.alarmed());
  EXPECT_EQ(thresholds, (std::vector<double>{0.3, 0.1, 0}));
}

// Q3: under the rate that is allowed, ever a false alarm with probability 0.05 at most; far above
// it, an alarm soon.
TEST(RiskAlarm, KeepsItsLevelAndNotices) {
  Rng rng(5);
  for (const double rate : {0.02, 0.1, 0.5}) {
    int alarms = 0;
    for (int replication = 0; replication < 2000; ++replication) {
      RiskAlarm alarm(rate);
      for (int i = 0; i < 300; ++i) {
        if (!alarm.observe(rng.uniform() < rate)) continue;
        ++alarms;
        break;
      }
    }
    // 100 expected at most; three standard deviations of a binomial count: 29.
    EXPECT_LE(alarms, 129) << rate;
    EXPECT_GT(alarms, 0) << rate;  // it is not deaf
    RiskAlarm alarm(rate);
    int needed = 1;
    while (!alarm.observe(rng.uniform() < 0.5 + rate / 2)) ++needed;
    EXPECT_LT(needed, 150) << rate;
  }
}

// All of it together: a server with a judge that lets everything pass.
class TakesAll final : public Judge {
 public:
  std::string name() const override { return "all"; }
  bool accepts(const JudgedToken&, double) const override { return true; }
};

TEST(JudgeShadow, WatchesAServerWithoutChangingIt) {
  const auto speculate = [](TinyEngine& tiny) {
    // The same drafts for the same text, whoever asks.
    tiny.engine.set_drafter(
        std::make_unique<ScriptedDrafter>([](const Sequence& sequence, int64_t n) {
          std::vector<int32_t> tokens;
          for (int64_t i = 0; i < n; ++i) {
            tokens.push_back(static_cast<int32_t>((sequence.size() + i) % 90 + 32));
          }
          return tokens;
        }),
        {.num_tokens = 3});
    tiny.engine.set_judge(std::make_unique<TakesAll>(), 0.5);
    ServedSpeculation served;
    served.method = "model";
    served.judge = "all";
    served.judge_threshold = 0.5;
    return served;
  };
  TinyApi watched(small_options(), {}, 8, {}, speculate, 1);
  TinyApi plain(small_options(), {}, 8, {}, speculate);
  const auto ask = [](int i, double temperature) {
    return Json{{"prompt", "question " + std::to_string(i)},
                {"max_tokens", 20},
                {"ignore_eos", true},
                {"n", 2},
                {"seed", i},
                {"temperature", temperature}};
  };
  for (int i = 0; i < 6; ++i) {
    const Json answer = watched.answer("/v1/completions", ask(i, 0));
    EXPECT_EQ(answer["choices"], plain.answer("/v1/completions", ask(i, 0))["choices"]);
    EXPECT_EQ(answer["usage"]["speculative"]["lossy"], true);
  }
  watched.answer("/v1/completions", ask(7, 1));  // no exact text to compare with
  Json exact = ask(8, 0);
  exact["speculative"] = {{"judge_threshold", 0}};
  watched.answer("/v1/completions", exact);  // not judged
  const JudgeShadow& shadow = *watched.shadow;
  ASSERT_TRUE(eventually([&] { return shadow.compared.value() == 12; }));
  EXPECT_EQ(shadow.differed.value(), 12);
  EXPECT_EQ(shadow.dropped.value(), 0);
  ASSERT_TRUE(eventually([&] { return watched.tiny.cache_is_empty(); }));
  const std::string text = watched.get("/metrics").body;
  const std::string labels = "{engine=\"0\",model_name=\"tiny\",draft=\"model\",judge=\"all\"} ";
  for (const char* line : {"lathe_shadow_requests_total", "lathe_shadow_disagree_total"}) {
    EXPECT_NE(text.find(line + labels + "12\n"), std::string::npos) << text;
  }
  EXPECT_NE(text.find("lathe_judge_alarm" + labels + "0\n"), std::string::npos);
}

}  // namespace
}  // namespace lathe
