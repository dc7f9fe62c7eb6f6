// Codes of keys that have much in common on a GPU: they are kept without it (kv_layout_cuda.h), and
// the first tokens are kept exactly.
#include <gtest/gtest.h>

#include <numeric>

#include "compress/random_model.h"
#include "support/cuda_cases.h"

namespace lathe {
namespace {

// Heads of 64, which have a kernel of their own.
constexpr const char* kWideConfig = R"({"architectures": ["Qwen2ForCausalLM"],
  "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101, "rms_norm_eps": 1e-6,
  "max_position_embeddings": 256, "hidden_act": "silu", "rope_theta": 10000.0,
  "tie_word_embeddings": true, "torch_dtype": "float32"})";
// A norm behind the biases.
constexpr const char* kNormedConfig = R"({"architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 101,
  "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "hidden_act": "silu",
  "attention_bias": true, "rope_theta": 10000.0, "tie_word_embeddings": true,
  "torch_dtype": "float32"})";

using Ids = std::vector<int32_t>;

// A model, and sequences in a cache of its own.
class Runner {
 public:
  // device -1: the CPU, in fp32 arithmetic on the same weights. texts: what means are learnt from.
  Runner(const std::string& path, KvFormat format, int device, const std::vector<Ids>& texts = {})
      : owned_(2) {
    owned_.exec.cuda_device = device;
    const auto checkpoint = Checkpoint::open(path);
    model_ = Model::load(*checkpoint,
                         {.compute = device < 0 ? ComputeType::kF32 : ComputeType::kAuto,
                          .max_sequence_tokens = 160},
                         owned_.exec);
    if (!texts.empty()) model_->learn_key_means(texts, owned_.exec);
    cache_ = model_->make_cache(format, 640, 160);
    for (KvSequence& sequence : sequences_) sequence = cache_->new_sequence();
  }
  ~Runner() {
    for (KvSequence& sequence : sequences_) cache_->release(sequence);
    EXPECT_EQ(cache_->num_free_blocks(), cache_->num_blocks());
  }

  // Appends tokens to sequences in one step; logits of all of them.
  struct Run {
    std::size_t sequence;
    Ids ids;
  };
  std::vector<float> step(const std::vector<Run>& runs) {
    std::vector<KvRows> rows;
    Ids ids;
    std::vector<int64_t> positions;
    for (const Run& run : runs) {
      KvSequence& sequence = sequences_[run.sequence];
      const auto count = static_cast<int64_t>(run.ids.size());
      EXPECT_TRUE(cache_->reserve(sequence, count));
      rows.push_back({&sequence, static_cast<int64_t>(ids.size()), count});
      ids.insert(ids.end(), run.ids.begin(), run.ids.end());
      for (int64_t i = 0; i < count; ++i) positions.push_back(sequence.num_tokens + i);
    }
    std::vector<int32_t> logit_rows(ids.size());
    std::iota(logit_rows.begin(), logit_rows.end(), 0);
    std::vector<float> logits(ids.size() * static_cast<std::size_t>(model_->config().vocab_size));
    model_->forward(
        {.token_ids = ids, .positions = positions, .sequences = rows, .logit_rows = logit_rows},
        *cache_, logits.data(), nullptr, owned_.exec);
    return logits;
  }
  void fork(std::size_t from, std::size_t to, int64_t num_tokens) {
    cache_->fork(sequences_[from], num_tokens, sequences_[to]);
  }

 private:
  OwnedExec owned_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvCache> cache_;
  KvSequence sequences_[3];
};

// Logits of a sequence that comes as a prompt, a few rows, then row by row, which are captured in
// graphs.
std::vector<float> logits_in_steps(const std::string& path, const Ids& ids, KvFormat format,
                                   int device = 0, const std::vector<Ids>& texts = {}) {
  Runner runner(path, format, device, texts);
  std::vector<float> logits;
  for (std::size_t begin = 0; begin < ids.size();) {
    const std::size_t count = begin == 0 ? 90 : begin == 90 ? 12 : 1;
    const auto from = ids.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto part = runner.step({{0, Ids(from, from + static_cast<std::ptrdiff_t>(count))}});
    logits.insert(logits.end(), part.begin(), part.end());
    begin += count;
  }
  return logits;
}

// As key_offset_test.cpp has it for a CPU, where this costs 0.12 of squared distance with the
// biases left out and 0.91 with them in the codes. Activations in bf16 add to both sides: a key's
// 2^-9 of a bias of 30, 0.06, where codes have 0.09.
TEST(KeyOffsetCuda, BiasesOfKeysDoNotCountInTheirCodes) {
  LATHE_NEEDS_GPU();
  for (const char* config : {kQwen2Config, kWideConfig}) {
    const TemporaryDirectory temporary;
    write_random_model(temporary.path(), config, 7, 30);
    const auto ids = random_sequences(1, 150, 101, 4).front();
    const auto exact = logits_in_steps(temporary.path(), ids, KvFormat::kBF16);
    const auto coded = logits_in_steps(temporary.path(), ids, KvFormat::kHiggs4);
    EXPECT_GT(relative_distance(coded, exact), 0);
    EXPECT_LT(relative_distance(coded, exact), 0.4);
  }
}

// On a CPU this costs 0.006 of squared distance where heads have 64 numbers and 0.024 with whole
// keys, 0.012 and 0.23 where they have 16, which take the general kernel.
TEST(KeyOffsetCuda, MeansOfNormedKeysDoNotCountInTheirCodes) {
  LATHE_NEEDS_GPU();
  const auto ids = random_sequences(1, 150, 101, 4).front();
  const auto texts = random_sequences(3, 50, 101, 5);
  for (const bool is_wide : {true, false}) {
    std::string config = kNormedConfig;
    const std::string wide = "\"head_dim\": 64";
    if (!is_wide) config.replace(config.find(wide), wide.size(), "\"head_dim\": 16");
    const TemporaryDirectory temporary;
    write_random_model(temporary.path(), config, 7, 30);
    const auto exact = logits_in_steps(temporary.path(), ids, KvFormat::kBF16);
    const auto whole = logits_in_steps(temporary.path(), ids, KvFormat::kHiggs4);
    const auto coded = logits_in_steps(temporary.path(), ids, KvFormat::kHiggs4, 0, texts);
    EXPECT_GT(relative_distance(coded, exact), 0);
    EXPECT_LT(relative_distance(coded, exact), relative_distance(whole, exact) / (is_wide ? 2 : 4));
    EXPECT_EQ(coded, logits_in_steps(temporary.path(), ids, KvFormat::kHiggs4, 0, texts))
        << "the same texts, the same bits";
    EXPECT_EQ(exact, logits_in_steps(temporary.path(), ids, KvFormat::kBF16, 0, texts))
        << "what bf16 keeps does not depend on what was learnt";
  }
}

// Closer to the CPU's logits with codes than codes are to exact ones: without sinks or means the
// codes would be others, and their errors add up to twice that. What tells the devices apart with
// bf16 caches, which moves some codes to their neighbours, is allowed for.
TEST(KeyOffsetCuda, CodesAreThoseOfTheCpu) {
  LATHE_NEEDS_GPU();
  const auto ids = random_sequences(1, 150, 101, 4).front();
  const auto texts = random_sequences(3, 50, 101, 5);
  const std::pair<const char*, double> models[] = {
      {kQwen2Config, 1}, {kWideConfig, 1}, {kNormedConfig, 30}, {kGemma3Config, 0.1}};
  for (const auto& [config, key_bias_stddev] : models) {
    const TemporaryDirectory temporary;
    write_random_model(temporary.path(), config, 7, key_bias_stddev);
    const auto logits = [&](KvFormat format, int device) {
      return logits_in_steps(temporary.path(), ids, format, device, texts);
    };
    const auto cpu = logits(KvFormat::kHiggs4, -1), cpu_exact = logits(KvFormat::kBF16, -1);
    const auto gpu = logits(KvFormat::kHiggs4, 0), gpu_exact = logits(KvFormat::kBF16, 0);
    EXPECT_LT(relative_distance(gpu, cpu),
              relative_distance(cpu, cpu_exact) / 2 + 4 * relative_distance(gpu_exact, cpu_exact))
        << config;
  }
}

// Up to the fourth token nothing is read from codes, however the tokens come: as one run, one by
// one, in a step with another sequence, forked among the sinks, and in front of a long prompt.
TEST(LiveSinksCuda, TheFirstTokensAreAsExactAsInBf16) {
  LATHE_NEEDS_GPU();
  // Of these tokens none is sensitive: bf16 instead of fp32 caches move no row by more than 1.5e-5
  // on a CPU (of others by 3e-4, of which a GPU's bf16 makes 5e-3).
  const auto ids = random_sequences(4, 30, 101, 18);
  const auto part = [&](std::size_t sequence, std::ptrdiff_t begin, std::ptrdiff_t end) {
    return Ids(ids[sequence].begin() + begin, ids[sequence].begin() + end);
  };
  const auto texts = random_sequences(3, 50, 101, 5);
  // Both round keys, values and what attention makes of them to bf16, in other coordinates: on a
  // CPU caches of either kind are off by 5e-5 at most. Codes of the next four tokens cost 2e-3.
  constexpr double kLimit = 5e-4;
  for (const char* config : {kQwen2Config, kWideConfig, kNormedConfig}) {
    for (const bool has_means : {false, true}) {
      SCOPED_TRACE(testing::Message() << config << " means " << has_means);
      const TemporaryDirectory temporary;
      write_random_model(temporary.path(), config, 7, 1);
      Runner coded(temporary.path(), KvFormat::kHiggs4, 0, has_means ? texts : std::vector<Ids>{});
      Runner exact(temporary.path(), KvFormat::kBF16, 0);
      // Numbers of the first rows of each of `runs`, so many a run.
      const auto distance = [&](const std::vector<Runner::Run>& runs, std::size_t rows = 4) {
        const auto a = coded.step(runs), b = exact.step(runs);
        std::vector<float> first_a, first_b;
        std::size_t row = 0;
        for (const Runner::Run& run : runs) {
          for (std::size_t i = row * 101; i < (row + std::min(rows, run.ids.size())) * 101; ++i) {
            first_a.push_back(a[i]), first_b.push_back(b[i]);
          }
          row += run.ids.size();
        }
        return relative_distance(first_a, first_b);
      };
      const auto fork = [&](std::size_t from, std::size_t to, int64_t num_tokens) {
        coded.fork(from, to, num_tokens), exact.fork(from, to, num_tokens);
      };
      EXPECT_LT(distance({{0, part(0, 0, 4)}, {1, part(1, 0, 2)}}), kLimit);
      EXPECT_LT(distance({{1, part(1, 2, 3)}}), kLimit);
      fork(0, 2, 2);  // the block of sinks is shared, then copied
      for (std::ptrdiff_t t = 2; t < 4; ++t) {
        EXPECT_LT(distance({{2, part(2, t, t + 1)}}), kLimit);
      }
      EXPECT_LT(distance({{1, part(1, 3, 4)}}), kLimit) << "its own sinks are as they were";
      EXPECT_GT(distance({{0, part(0, 4, 30)}, {1, part(1, 4, 30)}, {2, part(2, 4, 30)}}, 26), 0);
    }
  }
  const TemporaryDirectory temporary;
  write_random_model(temporary.path(), kWideConfig, 7, 1);
  Runner coded(temporary.path(), KvFormat::kHiggs4, 0, texts);
  Runner exact(temporary.path(), KvFormat::kBF16, 0);
  const auto first_rows = [&](Runner& runner) {
    auto logits = runner.step({{0, part(3, 0, 30)}});
    logits.resize(4 * 101);
    return logits;
  };
  EXPECT_LT(relative_distance(first_rows(coded), first_rows(exact)), kLimit);
}

}  // namespace
}  // namespace lathe
