// The engine's way to a model that samples by itself: a model on the CPU that does so, by the CPU's
// own sampler, from nothing but what it is told. It must choose what the engine's sampler chooses.
#include "engine/device_sampling.h"

#include <algorithm>
#include <vector>

#include "engine/counter_rng.h"
#include "engine/tiny_engine.h"

namespace lathe {
namespace {

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
                          const SampledBatch& sampled, Exec& exec) override {
    ASSERT_EQ(sampling.rows.size(), batch.logit_rows.size());
    ASSERT_EQ(sampled.tokens.size(), batch.logit_rows.size());
    const auto vocab_size = static_cast<std::size_t>(config().vocab_size);
    std::vector<float> logits(batch.logit_rows.size() * vocab_size);
    model_.forward(batch, cache, logits.data(), nullptr, exec);
    for (std::size_t i = 0; i < sampling.rows.size(); ++i) {
      sample_row(std::span(logits).subspan(i * vocab_size, vocab_size), sampling, i, sampled);
    }
    ++num_steps;
    if (is_broken) std::fill(sampled.tokens.begin(), sampled.tokens.end(), -1);
  }

  int num_steps = 0;
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
    int64_t position = 0;
    while (uniform_at(params.seed, position, RandomStream::kSample) != row.uniform) {
      ASSERT_LT(++position, 1000);
    }
    std::vector<TokenLogprob> top(static_cast<std::size_t>(std::max<int64_t>(0, params.logprobs)));
    const SampledToken token = sampler_.sample(logits, params, counts, nullptr, position, top);
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
