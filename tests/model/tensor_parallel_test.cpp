// Models over several ranks of CPU threads against the same model undivided.
#include "model/tensor_parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "compress/random_model.h"
#include "formats/random_checkpoint.h"
#include "formats/sharded_checkpoint.h"
#include "formats/temporary_directory.h"
#include "formats/tiny_compressed_model.h"
#include "kernels/collective/thread_collective.h"
#include "model/decoder.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

// golden/README.md: on these models fp32 differs from fp64 by 1.3e-5 at most. Divided or not, it is
// fp32 in another order of sums, so the two differ by at most twice that; four times as much room.
constexpr double kTolerance = 1e-4;

// The CPU's, or, with LATHE_TEST_DEVICE=cuda, as many GPUs.
class Ranks {
 public:
  Ranks(const Checkpoint& checkpoint, int size, ComputeType compute = ComputeType::kF32,
        KvFormat kv = KvFormat::kF32, std::span<const std::vector<int32_t>> texts = {})
      : owned_(2) {
    ModelOptions options;
    options.compute = compute;
    if (compute == ComputeType::kF32) options.dense_dtype = DType::kF32;
    options.tensor_parallel = size;
    model_ = Model::load(checkpoint, options, owned_.exec);
    if (!texts.empty()) model_->learn_key_means(texts, owned_.exec);
    // Served, a GPU's cache is bf16.
    cache_ = model_->make_cache(kv, 512, 128);
  }
  ~Ranks() {
    for (KvSequence& sequence : sequences_) cache_->release(sequence);
  }

  struct Result {
    std::vector<float> logits;
    std::vector<float> hidden;
  };
  // Appends tokens to a sequence; of every one of them.
  Result feed(std::size_t which, std::span<const int32_t> ids) {
    while (sequences_.size() <= which) sequences_.push_back(cache_->new_sequence());
    KvSequence& sequence = sequences_[which];
    const auto n = static_cast<int64_t>(ids.size());
    std::vector<int64_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), sequence.num_tokens);
    std::vector<int32_t> rows_wanted(ids.size());
    std::iota(rows_wanted.begin(), rows_wanted.end(), 0);
    Result result;
    result.logits.resize(ids.size() * static_cast<std::size_t>(model_->config().vocab_size));
    result.hidden.resize(ids.size() * static_cast<std::size_t>(model_->config().hidden_size));
    EXPECT_TRUE(cache_->reserve(sequence, n));
    const KvRows rows{.sequence = &sequence, .row_begin = 0, .num_rows = n};
    model_->forward({.token_ids = ids,
                     .positions = positions,
                     .sequences = {&rows, 1},
                     .logit_rows = rows_wanted},
                    *cache_, result.logits.data(), result.hidden.data(), owned_.exec);
    return result;
  }
  void fork(std::size_t from, std::size_t to, int64_t num_tokens) {
    while (sequences_.size() <= to) sequences_.push_back(cache_->new_sequence());
    cache_->fork(sequences_[from], num_tokens, sequences_[to]);
  }
  Model& model() { return *model_; }
  KvCache& cache() { return *cache_; }
  Exec& exec() { return owned_.exec; }
  const KvSequence& sequence(std::size_t i) const { return sequences_[i]; }

 private:
  OwnedExec owned_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvCache> cache_;
  std::vector<KvSequence> sequences_;
};

std::vector<int32_t> some_tokens(int64_t count, int64_t vocab_size, uint64_t seed = 5) {
  return random_sequences(1, count, vocab_size, seed).front();
}

// Chunks and single tokens, a second sequence, and one that shares blocks with the first and then
// writes behind them: all of `divided` within `same` of `whole`.
template <typename Same>
void expect_same(Ranks& divided, Ranks& whole, const Same& same) {
  const int64_t vocab = whole.model().config().vocab_size;
  EXPECT_EQ(divided.model().config(), whole.model().config());
  const auto feed = [&](std::size_t which, std::span<const int32_t> ids) {
    const Ranks::Result a = divided.feed(which, ids);
    const Ranks::Result b = whole.feed(which, ids);
    EXPECT_TRUE(same(a.logits, b.logits)) << "sequence " << which;
    EXPECT_TRUE(same(a.hidden, b.hidden)) << "sequence " << which;
  };
  const std::vector<int32_t> ids = some_tokens(45, vocab);
  feed(0, std::span(ids).subspan(0, 30));
  for (std::size_t i = 30; i < 35; ++i) feed(0, std::span(ids).subspan(i, 1));
  feed(1, std::span(ids).subspan(20, 20));
  for (Ranks* ranks : {&divided, &whole}) ranks->fork(0, 2, 33);
  feed(2, std::span(ids).subspan(35, 7));
  feed(0, std::span(ids).subspan(35, 10));
  EXPECT_EQ(divided.sequence(0).num_tokens, whole.sequence(0).num_tokens);
  EXPECT_EQ(divided.cache().num_free_blocks(), whole.cache().num_free_blocks());
}

testing::AssertionResult close_in_fp32(std::span<const float> a, std::span<const float> b) {
  return all_close(a, b, 0, kTolerance);
}

double distance(std::span<const float> a, std::span<const float> b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    size += double{b[i]} * b[i];
  }
  return std::sqrt(difference / size);
}

bool on_gpus() { return OwnedExec(1).exec.on_cuda(); }

// Whether this machine has as many GPUs, where they are what is tested.
bool has_ranks(const Checkpoint& checkpoint, int size) {
  static std::map<int, bool> known;  // NCCL takes its time
  if (!on_gpus()) return true;
  if (const auto found = known.find(size); found != known.end()) return found->second;
  try {
    Ranks ranks(checkpoint, size);
    return known[size] = true;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kDevice) throw;
    std::printf("  %d ranks left out: %s\n", size, error.what());
    return known[size] = false;
  }
}

class TinyModels : public testing::TestWithParam<const char*> {};

TEST_P(TinyModels, OverRanksAsAlone) {
  std::optional<std::string> directory = golden_path(std::string("tiny/") + GetParam());
  if (!std::filesystem::exists(*directory)) {
    directory = shared_path(std::string("golden/tiny/") + GetParam());
  }
  LATHE_SKIP_WITHOUT(directory, GetParam());
  const auto checkpoint = Checkpoint::open(*directory);
  int num_checked = 0;
  for (const int size : {2, 4}) {
    SCOPED_TRACE(size);
    if (checkpoint->config().num_heads % size != 0 || !has_ranks(*checkpoint, size)) continue;
    Ranks whole(*checkpoint, 1);
    Ranks divided(*checkpoint, size);
    expect_same(divided, whole, close_in_fp32);
    ++num_checked;
  }
  EXPECT_GT(num_checked, 0);
}

INSTANTIATE_TEST_SUITE_P(AllModels, TinyModels,
                         testing::Values("llama-rope-llama3", "qwen2-tied-mqa", "qwen3-sharded",
                                         "mistral-sliding-window", "gemma3-sliding-global", "phi3",
                                         "phi3-partial-longrope", "qwen3-moe", "mixtral"),
                         [](const auto& tested) {
                           std::string name = tested.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Biases of o and down, which the sum over the ranks must have once; an odd vocabulary.
TEST(TensorParallel, BiasesOfEveryLinear) {
  const TemporaryDirectory scratch;
  write_random_model(scratch.path(), R"({"architectures": ["LlamaForCausalLM"],
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256, "hidden_act": "silu", "attention_bias": true, "mlp_bias": true,
    "tie_word_embeddings": false, "torch_dtype": "float32"})",
                     3);
  const auto checkpoint = Checkpoint::open(scratch.path());
  ASSERT_TRUE(checkpoint->config().o_bias);
  ASSERT_TRUE(checkpoint->config().mlp_bias);
  // Its logits reach 40, ten times those of the golden models.
  const auto close = [](std::span<const float> a, std::span<const float> b) {
    return all_close(a, b, 1e-5, kTolerance);
  };
  for (const int size : {2, 4}) {
    SCOPED_TRACE(size);
    if (!has_ranks(*checkpoint, size)) continue;
    Ranks whole(*checkpoint, 1);
    Ranks divided(*checkpoint, size);
    expect_same(divided, whole, close);
  }
}

// Each rank's keys have a mean of their own, which its codes leave out.
TEST(TensorParallel, KeyMeans) {
  if (on_gpus()) GTEST_SKIP() << "a GPU's caches have no means";
  const TemporaryDirectory scratch;
  write_random_model(scratch.path(), R"({"architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 101,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "hidden_act": "silu",
    "attention_bias": true, "tie_word_embeddings": true, "torch_dtype": "float32"})",
                     3, 30);
  const auto checkpoint = Checkpoint::open(scratch.path());
  const auto texts = random_sequences(2, 60, 101, 9);
  const std::vector<int32_t> ids = some_tokens(100, 101);
  Ranks exact(*checkpoint, 1);
  Ranks whole(*checkpoint, 1, ComputeType::kF32, KvFormat::kInt8, texts);
  Ranks divided(*checkpoint, 2, ComputeType::kF32, KvFormat::kInt8, texts);
  const std::vector<float> logits = divided.feed(0, ids).logits;
  // Codes of whole keys are 0.009 off; a rank's sums in another order may turn a code or two.
  EXPECT_LT(distance(logits, exact.feed(0, ids).logits), 0.004);
  EXPECT_LT(distance(logits, whole.feed(0, ids).logits), 0.001);
}

struct Quantized {
  const char* format;
  ActivationFormat activations;
  int64_t hadamard;
  int size;
};
constexpr Quantized kQuantized[] = {
    {"mxfp4", ActivationFormat::kNone, 32, 2},  {"mxfp4", ActivationFormat::kMxfp4, 32, 2},
    {"nvfp4", ActivationFormat::kNone, 16, 4},  {"nvfp4", ActivationFormat::kNvfp4, 16, 2},
    {"int4", ActivationFormat::kNone, 0, 2},    {"int8", ActivationFormat::kInt8, 32, 2},
    {"mxfp8", ActivationFormat::kMxfp8, 32, 2}, {"fp8", ActivationFormat::kFp8, 0, 2},
};

// The weights' arithmetic in fp32, rotation included.
TEST(TensorParallel, QuantizedWeightsInFp32) {
  for (const Quantized& c : kQuantized) {
    SCOPED_TRACE(std::string(c.format) + " over " + std::to_string(c.size));
    const TemporaryDirectory scratch;
    write_tiny_compressed_model(scratch / "m", c.format, ActivationFormat::kNone, c.hadamard);
    const auto checkpoint = Checkpoint::open(scratch / "m");
    if (!has_ranks(*checkpoint, c.size)) continue;
    Ranks whole(*checkpoint, 1);
    Ranks divided(*checkpoint, c.size);
    // A linear's fp32 sum over 128 inputs is off by at most 128 * 2^-24 of its terms' sum; 14 of
    // them, and what the next layers make of it.
    expect_same(divided, whole, [](std::span<const float> a, std::span<const float> b) {
      const double d = distance(a, b);
      return d < 1e-4 ? testing::AssertionSuccess() : testing::AssertionFailure() << d;
    });
  }
}

// With quantized activations, by how far these take the model from the same weights in fp32. With a
// scale for each group an input is the same number, unless the last bit in front of the rounding
// carries it over to its neighbour: if that happened to one in a hundred, the distance would be a
// tenth (errors add up as squares). With a scale for each row (fp8), the parts of a row have scales
// of their own in o and down: another rounding of the same size, so at most twice as far apart as
// each is from fp32.
TEST(TensorParallel, QuantizedActivations) {
  for (const Quantized& c : kQuantized) {
    SCOPED_TRACE(std::string(c.format) + " over " + std::to_string(c.size));
    const TemporaryDirectory scratch;
    write_tiny_compressed_model(scratch / "plain", c.format, ActivationFormat::kNone, c.hadamard);
    write_tiny_compressed_model(scratch / "m", c.format, c.activations, c.hadamard);
    const auto plain = Checkpoint::open(scratch / "plain");
    const auto checkpoint = Checkpoint::open(scratch / "m");
    if (!has_ranks(*checkpoint, c.size)) continue;
    const std::vector<int32_t> ids = some_tokens(45, 96);
    const auto exact = Ranks(*plain, 1).feed(0, ids).logits;
    const auto alone = Ranks(*checkpoint, 1, ComputeType::kAuto).feed(0, ids).logits;
    const double rounding = distance(alone, exact);
    EXPECT_GT(rounding, 1e-3);
    // On a GPU bf16 between the kernels is rounded elsewhere too.
    const bool by_row = c.activations == ActivationFormat::kFp8 || on_gpus();
    Ranks whole(*checkpoint, 1, ComputeType::kAuto);
    Ranks divided(*checkpoint, c.size, ComputeType::kAuto);
    expect_same(divided, whole, [&](std::span<const float> a, std::span<const float> b) {
      const double d = distance(a, b);
      return d < (by_row ? 2 : 0.1) * rounding
                 ? testing::AssertionSuccess()
                 : testing::AssertionFailure() << d << ", to fp32 " << rounding;
    });
  }
}

// What `bench --random-weights` loads.
TEST(TensorParallel, RandomWeights) {
  const TemporaryDirectory scratch;
  scratch.write("config.json", kQwen2Config);
  RandomWeights weights;
  weights.format = weight_format_from_name("nvfp4");
  const auto checkpoint = open_random_checkpoint(scratch.path(), weights);
  if (!has_ranks(*checkpoint, 2)) GTEST_SKIP() << "one GPU";
  Ranks whole(*checkpoint, 1);
  Ranks divided(*checkpoint, 2);
  expect_same(divided, whole, [](std::span<const float> a, std::span<const float> b) {
    return all_close(a, b, 1e-4);
  });
  EXPECT_EQ(divided.model().kernels().find("tensor parallel over 2"), 0u);
}

TEST(TensorParallel, RanksHoldTheirPartsOnly) {
  if (on_gpus()) GTEST_SKIP() << "of ranks on the CPU";
  const TemporaryDirectory scratch;
  write_tiny_compressed_model(scratch / "m", "mxfp4", ActivationFormat::kNone, 32);
  const auto checkpoint = Checkpoint::open(scratch / "m");
  OwnedExec owned(2);
  const auto whole = load_cpu_model(*checkpoint, {}, owned.exec);
  const auto collectives = make_thread_collectives(2);
  const auto shard = sharded_checkpoint(*checkpoint, {1, 2});
  const auto part = load_cpu_model(*shard, {}, owned.exec, collectives[1].get());
  // Panels of 16 rows are padded.
  EXPECT_NEAR(static_cast<double>(part->weight_bytes()),
              static_cast<double>(whole->weight_bytes()) / 2,
              0.06 * static_cast<double>(whole->weight_bytes()));
  EXPECT_EQ(part->make_cache(KvFormat::kBF16, 64, 64)->bytes_per_block(),
            whole->make_cache(KvFormat::kBF16, 64, 64)->bytes_per_block() / 2);
}

TEST(TensorParallel, WhatCannotBeSplitIsOneError) {
  const TemporaryDirectory scratch;
  write_tiny_compressed_model(scratch / "m", "mxfp4", ActivationFormat::kNone, 64);
  const auto checkpoint = Checkpoint::open(scratch / "m");
  for (const auto& [size, part] :
       {std::pair{3, "--tensor-parallel can be 1, 2, 4"}, {2, "a rotated block of 64"}}) {
    try {
      Ranks ranks(*checkpoint, size);
      FAIL() << size << " ranks";
    } catch (const Error& error) {
      if (on_gpus() && error.code() == ErrorCode::kDevice) continue;  // too few
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

// A rank that fails in the step number fails_at.
class FailingModel final : public Model {
 public:
  FailingModel(std::unique_ptr<Model> model, int fails_at)
      : model_(std::move(model)), steps_left_(fails_at) {}
  const ModelConfig& config() const override { return model_->config(); }
  int64_t weight_bytes() const override { return model_->weight_bytes(); }
  std::string kernels() const override { return model_->kernels(); }
  void set_profile(StepProfile*) override {}
  void forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
               Exec& exec) override {
    if (steps_left_-- == 0) fail(ErrorCode::kOutOfMemory, "no room");
    model_->forward(batch, cache, logits, hidden, exec);
  }

 private:
  std::unique_ptr<Model> model_;
  int steps_left_;
};

TEST(TensorParallel, AFailedRankEndsTheStepOnAll) {
  if (on_gpus()) GTEST_SKIP() << "of ranks on the CPU";
  const TemporaryDirectory scratch;
  write_random_model(scratch.path(), kQwen2Config, 1);
  const auto checkpoint = Checkpoint::open(scratch.path());
  for (int failing = 0; failing < 2; ++failing) {
    SCOPED_TRACE(failing);
    OwnedExec owned(2);
    const auto load = [&](Collective& collective, Exec& exec) -> std::unique_ptr<Model> {
      const auto shard = sharded_checkpoint(*checkpoint, {collective.rank(), collective.size()});
      auto model = load_cpu_model(*shard, {}, exec, &collective);
      if (collective.rank() != failing) return model;
      return std::make_unique<FailingModel>(std::move(model), 1);
    };
    const auto model = make_tensor_parallel_model(checkpoint->config(), make_thread_collectives(2),
                                                  load, owned.exec);
    const auto cache = model->make_cache(KvFormat::kF32, 64, 64);
    KvSequence sequence = cache->new_sequence();
    std::vector<float> logits(101);
    const auto step = [&] {
      const int32_t token = 7, row = 0;
      const int64_t position = sequence.num_tokens;
      ASSERT_TRUE(cache->reserve(sequence, 1));
      const KvRows rows{.sequence = &sequence, .row_begin = 0, .num_rows = 1};
      model->forward({.token_ids = {&token, 1},
                      .positions = {&position, 1},
                      .sequences = {&rows, 1},
                      .logit_rows = {&row, 1}},
                     *cache, logits.data(), nullptr, owned.exec);
    };
    step();
    EXPECT_EQ(sequence.num_tokens, 1);
    try {
      step();
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
      EXPECT_EQ(std::string(error.what()), "rank " + std::to_string(failing) + " of 2: no room");
    }
    EXPECT_EQ(sequence.num_tokens, 1);
    // The ranks no longer agree on what is in their caches.
    EXPECT_THROW(step(), Error);
    EXPECT_EQ(sequence.num_tokens, 1);
    cache->release(sequence);
  }
}

TEST(TensorParallel, ARankThatCannotLoadEndsLoading) {
  if (on_gpus()) GTEST_SKIP() << "of ranks on the CPU";
  OwnedExec owned(2);
  const auto load = [](Collective& collective, Exec&) -> std::unique_ptr<Model> {
    if (collective.rank() == 1) fail(ErrorCode::kOutOfMemory, "no room");
    return nullptr;
  };
  EXPECT_THROW(make_tensor_parallel_model({}, make_thread_collectives(2), load, owned.exec), Error);
}

TEST(TensorParallel, CodedAndParkedCachesAreRefused) {
  if (on_gpus()) GTEST_SKIP() << "of ranks on the CPU";
  const TemporaryDirectory scratch;
  write_random_model(scratch.path(), kQwen2Config, 1);
  const auto checkpoint = Checkpoint::open(scratch.path());
  Ranks ranks(*checkpoint, 2);
  EXPECT_THROW(ranks.model().kv_ropes(64), Error);
  EXPECT_EQ(ranks.cache().live_blocks(), nullptr);
}

}  // namespace
}  // namespace lathe
