// The engine's way to a model that samples by itself: a model on the CPU that does so, by the CPU's
// own sampler, from nothing but what it is told. It must choose what the engine's sampler chooses.
#include "engine/device_sampling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/counter_rng.h"
#include "engine/speculation_cases.h"
#include "engine/tiny_engine.h"

namespace lathe {
namespace {

class FixedConstraint final : public TokenConstraint {
 public:
  explicit FixedConstraint(std::vector<uint64_t> allowed) : allowed_(std::move(allowed)) {}
  void allowed_tokens(std::span<uint64_t> words) override {
    std::copy(allowed_.begin(), allowed_.end(), words.begin());
  }
  void accept(int32_t) override {}
  void rollback(int64_t) override {}

 private:
  std::vector<uint64_t> allowed_;
};

class SamplingModel final : public Model {
 public:
  explicit SamplingModel(Model& model) : model_(model), sampler_(model.config().vocab_size) {}

  const ModelConfig& config() const override { return model_.config(); }
  int64_t weight_bytes() const override { return model_.weight_bytes(); }
  std::string kernels() const override { return model_.kernels(); }
  void set_profile(StepProfile*) override {}
  void forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
               Exec& exec) override {
    model_.forward(batch, cache, logits, hidden, exec);
  }
  bool can_sample() const override { return true; }
  void forward_and_sample(const ForwardBatch& batch, KvCache& cache, const SampleBatch& sampling,
                          const SampledBatch& sampled, float* hidden, Exec& exec) override {
    ASSERT_EQ(sampling.rows.size(), batch.logit_rows.size());
    ASSERT_EQ(sampled.tokens.size(), batch.logit_rows.size());
    const auto vocab_size = static_cast<std::size_t>(config().vocab_size);
    std::vector<float> logits(batch.logit_rows.size() * vocab_size);
    model_.forward(batch, cache, logits.data(), hidden, exec);
    for (std::size_t i = 0; i < sampling.rows.size(); ++i) {
      sample_row(std::span(logits).subspan(i * vocab_size, vocab_size), sampling, i, sampled);
    }
    ++num_steps;
    num_windows += !sampled.drafts.empty();
    if (is_broken) std::fill(sampled.tokens.begin(), sampled.tokens.end(), -1);
  }

  int num_steps = 0;
  int num_windows = 0;
  bool is_broken = false;

 private:
  void sample_row(std::span<float> logits, const SampleBatch& sampling, std::size_t i,
                  const SampledBatch& sampled) {
    const SamplingRow& row = sampling.rows[i];
    SamplingParams params;
    params.temperature = row.inverse_temperature > 0 ? 1 / double{row.inverse_temperature} : 0;
    params.top_p = row.top_p;
    params.min_p = row.min_p;
    params.top_k = row.top_k;
    params.repetition_penalty = double{row.repetition_penalty};
    params.frequency_penalty = double{row.frequency_penalty};
    params.presence_penalty = double{row.presence_penalty};
    params.logprobs = row.num_logprobs;
    params.seed = 77;  // of every request here
    for (int32_t b = row.biases_begin; b < row.biases_end; ++b) {
      const SamplingBias& bias = sampling.biases[static_cast<std::size_t>(b)];
      params.logit_bias.push_back({bias.token, bias.bias});
    }
    TokenCounts counts;
    if (params.has_penalties()) {
      std::vector<int32_t> prompt;
      for (int32_t c = row.counts_begin; c < row.counts_end; ++c) {
        prompt.push_back(sampling.counts[static_cast<std::size_t>(c)].token);
      }
      counts = TokenCounts(prompt, config().vocab_size, 1000);
      for (int32_t c = row.counts_begin; c < row.counts_end; ++c) {
        const SamplingCount& count = sampling.counts[static_cast<std::size_t>(c)];
        for (int32_t n = 0; n < count.outputs; ++n) counts.add_output(count.token);
      }
    }
    // The position is known by the random number alone.
    const RandomStream stream = row.draft < 0 ? RandomStream::kSample : RandomStream::kResidual;
    int64_t position = 0;
    while (uniform_at(params.seed, position, stream) != row.uniform) {
      if (++position == 1000) return;  // a row that nobody asks for
    }
    std::vector<uint64_t> allowed;
    if (row.mask_row >= 0) {
      const std::size_t words = (logits.size() + 63) / 64;
      const auto begin =
          sampling.masks.begin() + static_cast<int64_t>(words) * int64_t{row.mask_row};
      allowed.assign(begin, begin + static_cast<int64_t>(words));
    }
    FixedConstraint constraint(allowed);
    TokenConstraint* const mask = allowed.empty() ? nullptr : &constraint;
    std::vector<TokenLogprob> top(static_cast<std::size_t>(std::max<int64_t>(0, params.logprobs)));
    SampledToken token;
    if (row.draft < 0) {
      token = sampler_.sample(logits, params, counts, mask, position, top);
    } else {
      EXPECT_EQ(row.accept_uniform, uniform_at(params.seed, position, RandomStream::kAccept));
      std::vector<TokenProb> q;
      for (int32_t j = row.probs_begin; j < row.probs_end; ++j) {
        const SamplingProb& entry = sampling.probs[static_cast<std::size_t>(j)];
        q.push_back({entry.token, entry.prob});
      }
      const Acceptance verdict =
          sampler_.verify(logits, params, counts, mask, position, row.draft, q, top);
      token = verdict.sampled;
      EXPECT_EQ(verdict.accepted, token.token == row.draft);
      SampledToken draft = {row.draft, 0, {}};
      sampler_.set_logprob(params, draft);
      sampled.drafts[i] = {
          .prob = static_cast<float>(sampler_.probability(logits, params, row.draft)),
          .gap = logits[static_cast<std::size_t>(token.token)] -
                 logits[static_cast<std::size_t>(row.draft)],
          .logprob = draft.logprob};
    }
    sampled.tokens[i] = token.token;
    if (params.logprobs < 0) return;
    sampled.logprobs[i] = token.logprob;
    for (int64_t j = 0; j < sampling.max_logprobs; ++j) {
      const std::size_t at =
          i * static_cast<std::size_t>(sampling.max_logprobs) + static_cast<std::size_t>(j);
      const bool is_there = j < static_cast<int64_t>(token.top.size());
      sampled.top_tokens[at] = is_there ? token.top[static_cast<std::size_t>(j)].token : -1;
      sampled.top_logprobs[at] = is_there ? token.top[static_cast<std::size_t>(j)].logprob : 0;
    }
  }

  Model& model_;
  Sampler sampler_;
};

// Requests with everything that a row can ask for.
std::vector<SamplingParams> every_kind() {
  std::vector<SamplingParams> all(6);
  for (SamplingParams& params : all) {
    params.max_tokens = 20;
    params.seed = 77;
  }
  all[0].temperature = 0;
  all[1].temperature = 0.7;
  all[1].top_k = 40;
  all[1].logprobs = 0;
  all[2].top_p = 0.8;
  all[2].logprobs = 5;
  all[3].min_p = 0.02;
  all[3].repetition_penalty = 1.4;
  all[3].frequency_penalty = 0.3;
  all[4].presence_penalty = 1.5;
  all[4].logit_bias = {{7, 2.0f}, {3, -50.0f}, {7, 2.0f}};
  all[4].logprobs = 2;
  all[5].temperature = 1.3;
  all[5].logit_bias = {{200, 6.0f}};
  return all;
}

TEST(DeviceSampling, ChoosesAsTheEngineDoes) {
  TinyEngine tiny;
  SamplingModel model(*tiny.loaded.model);
  Engine engine(model, make_engine_cache(model, tiny.options), &tiny.tokenizer, tiny.options,
                tiny.loaded.owned.exec);
  std::vector<std::shared_ptr<Record>> records;
  uint64_t prompt_seed = 0;
  for (const SamplingParams& params : every_kind()) {
    records.push_back(submit(engine, random_prompt(10, ++prompt_seed), params));
  }
  while (engine.has_work()) engine.step();
  EXPECT_GT(model.num_steps, 10);
  prompt_seed = 0;
  for (std::size_t i = 0; i < records.size(); ++i) {
    SCOPED_TRACE(i);
    const Record expected = alone(random_prompt(10, ++prompt_seed), every_kind()[i]);
    EXPECT_TRUE(records[i]->same_as(expected));
    EXPECT_FALSE(expected.tokens.empty());
  }
}

// Allows a token where it and the number of tokens before it are both even or both odd.
class Alternating final : public TokenConstraint {
 public:
  void allowed_tokens(std::span<uint64_t> words) override {
    std::fill(words.begin(), words.end(),
              num_accepted_ % 2 == 0 ? 0x5555555555555555u : 0xaaaaaaaaaaaaaaaau);
  }
  void accept(int32_t token) override {
    EXPECT_EQ(token % 2, num_accepted_ % 2);
    ++num_accepted_;
  }
  void rollback(int64_t n) override { num_accepted_ -= n; }

 private:
  int64_t num_accepted_ = 0;
};

enum class Drafts { kRandom, kOwn, kOther };

// Windows of drafts, judged where the logits are, become the tokens that the engine's sampler makes
// of them, whoever drafts, and so do the counts of where they came from.
void expect_same_windows(Drafts drafts, bool with_judge) {
  const auto run = [&](bool on_device) {
    TinyEngine tiny;
    DraftModel other;
    SamplingModel target(*tiny.loaded.model);
    SamplingModel own_draft(*tiny.loaded.model);
    SamplingModel other_draft(*other.loaded.model);
    Model& model = on_device ? static_cast<Model&>(target) : *tiny.loaded.model;
    Engine engine(model, make_engine_cache(model, tiny.options), &tiny.tokenizer, tiny.options,
                  tiny.loaded.owned.exec);
    std::unique_ptr<Drafter> drafter = random_drafter(11);
    if (drafts == Drafts::kOwn) {
      drafter = DraftModel::make(on_device ? static_cast<Model&>(own_draft) : *tiny.loaded.model,
                                 tiny, 16 * 128, true);
    } else if (drafts == Drafts::kOther) {
      drafter = DraftModel::make(on_device ? static_cast<Model&>(other_draft) : *other.loaded.model,
                                 tiny, 16 * 128, true);
    }
    engine.set_drafter(std::move(drafter), {.num_tokens = 4});
    if (with_judge) {
      std::vector<float> weight;
      Rng rng(5);
      for (int64_t i = 0; i < model.config().hidden_size; ++i) {
        weight.push_back(static_cast<float>(rng.normal()));
      }
      engine.set_judge(std::make_unique<LogisticJudge>(weight, 0.0f, 1e-6), 0.5);
    }
    std::vector<Record> results;
    std::vector<SamplingParams> kinds = every_kind();
    kinds[0].logprobs = 3;
    kinds.push_back(kinds[0]);
    kinds.back().repetition_penalty = 1.2;
    kinds.push_back(kinds[2]);
    for (std::size_t i = 0; i < kinds.size(); ++i) {
      auto record = std::make_shared<Record>();
      Request request;
      request.prompt = random_prompt(10, i + 1);
      request.params = kinds[i];
      if (i + 2 >= kinds.size()) request.constraint = std::make_unique<Alternating>();
      request.on_output = [record](const RequestOutput& output) {
        record->tokens.insert(record->tokens.end(), output.token_ids.begin(),
                              output.token_ids.end());
        for (const SampledToken& token : output.logprobs) {
          record->logprobs.push_back(token.logprob);
          for (const TokenLogprob& entry : token.top) {
            record->logprobs.push_back(static_cast<float>(entry.token));
            record->logprobs.push_back(entry.logprob);
          }
        }
        record->usage = output.usage;
      };
      engine.add_request(std::move(request));
      // One after the other: a random drafter's tokens depend on the order of its calls.
      while (engine.has_work()) engine.step();
      results.push_back(*record);
    }
    if (on_device) {
      EXPECT_GT(target.num_windows, 10);
      EXPECT_EQ(own_draft.num_steps > 10, drafts == Drafts::kOwn);
      EXPECT_EQ(other_draft.num_steps, 0);  // ids of another vocabulary need the logits
    }
    return results;
  };
  const std::vector<Record> expected = run(false);
  const std::vector<Record> actual = run(true);
  ASSERT_EQ(actual.size(), expected.size());
  int64_t judged = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(actual[i].tokens, expected[i].tokens);
    EXPECT_TRUE(same_bits(actual[i].logprobs, expected[i].logprobs));
    const SpeculationUsage& a = actual[i].usage.speculation;
    const SpeculationUsage& e = expected[i].usage.speculation;
    EXPECT_EQ(a.cycles, e.cycles);
    EXPECT_EQ(a.accepted, e.accepted);
    EXPECT_EQ(a.judge_accepted, e.judge_accepted);
    EXPECT_EQ(a.judged, e.judged);
    EXPECT_EQ(a.corrected, e.corrected);
    EXPECT_EQ(a.bonus, e.bonus);
    EXPECT_NEAR(a.logprob_deficit, e.logprob_deficit, 1e-5 * (1 + std::fabs(e.logprob_deficit)));
    judged += a.judge_accepted;
  }
  if (with_judge && drafts == Drafts::kRandom) {
    EXPECT_GT(judged, 10);
  }
}

TEST(DeviceSampling, JudgesWindowsAsTheEngineDoes) {
  for (const Drafts drafts : {Drafts::kRandom, Drafts::kOwn, Drafts::kOther}) {
    for (const bool with_judge : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << "drafts " << static_cast<int>(drafts) << ", judge " << with_judge);
      expect_same_windows(drafts, with_judge);
    }
  }
}

// A rule that compares logits has them.
TEST(DeviceSampling, LogitsComeBackForJudgesThatReadThem) {
  TinyEngine tiny;
  SamplingModel model(*tiny.loaded.model);
  Engine engine(model, make_engine_cache(model, tiny.options), &tiny.tokenizer, tiny.options,
                tiny.loaded.owned.exec);
  engine.set_drafter(random_drafter(3), {.num_tokens = 4});
  engine.set_judge(baseline_judge("top-k"), 200);
  const auto record = submit(engine, random_prompt(5, 1), every_kind()[0]);
  while (engine.has_work()) engine.step();
  EXPECT_EQ(model.num_windows, 0);
  EXPECT_GT(record->usage.speculation.judge_accepted, 0);
}

TEST(DeviceSampling, BrokenLogitsEndTheRequestWithAnError) {
  TinyEngine tiny;
  SamplingModel model(*tiny.loaded.model);
  model.is_broken = true;
  Engine engine(model, make_engine_cache(model, tiny.options), &tiny.tokenizer, tiny.options,
                tiny.loaded.owned.exec);
  const auto record = submit(engine, random_prompt(5, 1), every_kind()[0]);
  while (engine.has_work()) engine.step();
  EXPECT_EQ(record->reason, FinishReason::kError);
  EXPECT_NE(record->error.find("not finite"), std::string::npos) << record->error;
}

}  // namespace
}  // namespace lathe
