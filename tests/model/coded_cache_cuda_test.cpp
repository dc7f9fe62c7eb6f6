// Models on a GPU whose older tokens are codes, beside the same on the CPU: prompts in pieces, then
// single rows of two sequences, which are captured in graphs while blocks become codes.
#include <gtest/gtest.h>

#include <cmath>

#include "cache/coded_kv_cache.h"
#include "cache/predictive_codec.h"
#include "formats/kv_codec_examples.h"
#include "model/model.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

constexpr int64_t kPrompt = 150, kSteps = 90, kMost = 320;

int32_t token(int64_t sequence, int64_t position, int64_t vocab_size) {
  return static_cast<int32_t>((position * 37 + sequence * 101 + position / 7) % vocab_size);
}

// Logits of every single-row step of both sequences. file null: a live cache.
std::vector<float> run(const std::string& path, bool on_gpu, bool is_bf16,
                       const KvCodecFile* file) {
  OwnedExec owned(2);
  owned.exec.cuda_device = on_gpu ? 0 : -1;
  const auto checkpoint = Checkpoint::open(path);
  const ModelOptions options = is_bf16 ? ModelOptions{.max_sequence_tokens = kMost}
                                       : ModelOptions{.dense_dtype = DType::kF32,
                                                      .compute = ComputeType::kF32,
                                                      .max_sequence_tokens = kMost};
  const auto model = Model::load(*checkpoint, options, owned.exec);
  const KvFormat format = is_bf16 ? KvFormat::kBF16 : KvFormat::kF32;
  std::unique_ptr<KvCodec> codec;
  std::unique_ptr<KvCache> cache;
  if (file == nullptr) {
    cache = model->make_cache(format, 2 * kMost, kMost);
  } else {
    codec = make_kv_codec(*file, model->config());
    cache = model->make_coded_cache(*codec, {.live_format = format,
                                             .live_tokens = 2 * kMost,
                                             .coded_tokens = 2 * kMost,
                                             .max_sequence_tokens = kMost,
                                             .file = file});
  }
  const int64_t vocab_size = model->config().vocab_size;
  KvSequence sequences[] = {cache->new_sequence(), cache->new_sequence()};
  const auto step = [&](std::vector<std::pair<int64_t, int64_t>> rows_of, float* logits) {
    std::vector<int32_t> ids, logit_rows;
    std::vector<int64_t> positions;
    std::vector<KvRows> rows;
    for (const auto& [s, count] : rows_of) {
      KvSequence& sequence = sequences[s];
      EXPECT_TRUE(cache->reserve(sequence, count));
      rows.push_back({&sequence, static_cast<int64_t>(ids.size()), count});
      for (int64_t i = 0; i < count; ++i) {
        positions.push_back(sequence.num_tokens + i);
        ids.push_back(token(s, positions.back(), vocab_size));
      }
      if (logits != nullptr) logit_rows.push_back(static_cast<int32_t>(ids.size() - 1));
    }
    model->forward(
        {.token_ids = ids, .positions = positions, .sequences = rows, .logit_rows = logit_rows},
        *cache, logits, nullptr, owned.exec);
  };
  step({{0, 100}}, nullptr);
  step({{0, kPrompt - 100}, {1, 70}}, nullptr);
  std::vector<float> logits(static_cast<std::size_t>(kSteps * 2 * vocab_size));
  for (int64_t i = 0; i < kSteps; ++i) {
    step({{0, 1}, {1, 1}}, logits.data() + i * 2 * vocab_size);
  }
  return logits;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(double{a[i]} - double{b[i]}, 2);
  return std::sqrt(sum);
}

class CodedCacheCuda : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { LATHE_NEEDS_GPU(); }
};

TEST_P(CodedCacheCuda, ModelsSeeWhatTheySeeOnTheCpu) {
  const auto directory = shared_path("golden/tiny/" + std::string(GetParam()));
  LATHE_SKIP_WITHOUT(directory, GetParam());
  const ModelConfig config = Checkpoint::open(*directory)->config();
  const auto plain = run(*directory, false, false, nullptr);
  const auto plain_bf16 = run(*directory, true, true, nullptr);
  for (const char* variant : {"mean", "dense", "latent"}) {
    SCOPED_TRACE(variant);
    KvCodecFile file =
        random_codec(variant, config.num_layers, {config.num_kv_heads, config.head_dim}, 2);
    file.window = 32;
    file.chunk_tokens = 32;
    const auto on_cpu = run(*directory, false, false, &file);
    const auto on_gpu = run(*directory, true, false, &file);
    const double cost = distance(on_cpu, plain);
    EXPECT_GT(cost, 0);
    // Without products nearly all codes are the same; with them, those of the upper layers are
    // others, which cost as much: independent errors of one size are sqrt(2) of it apart.
    EXPECT_LE(distance(on_gpu, on_cpu), (std::string(variant) == "mean" ? 0.1 : 1.5) * cost);
    EXPECT_LE(distance(on_gpu, plain), 1.25 * cost);
    EXPECT_GE(distance(on_gpu, plain), 0.75 * cost);
    // In bf16 what codes cost is the same; other roundings come on top.
    const auto in_bf16 = run(*directory, true, true, &file);
    EXPECT_LE(distance(in_bf16, plain_bf16), 1.25 * cost + distance(plain_bf16, plain));
  }
}

// A step of single rows reads codes as they lie where it can, and does not where values are also
// predicted from keys, if only by zeros: the same numbers, made in two ways.
TEST(CodedCacheCudaLatents, CodesAreReadAsTheyLie) {
  LATHE_NEEDS_GPU();
  const auto path = model_path("smollm2");
  LATHE_SKIP_WITHOUT(path, "smollm2");
  const ModelConfig config = Checkpoint::open(*path)->config();
  KvCodecFile file =
      random_codec("latent-alone", config.num_layers, {config.num_kv_heads, config.head_dim}, 2);
  file.window = 32;
  file.chunk_tokens = 32;
  KvCodecFile with_keys = file;
  const int64_t d = file.shape.width(), rank = file.latents.front().rank;
  for (std::size_t l = 0; l < with_keys.values.size(); ++l) {
    KvPredictor& predictor = with_keys.values[l].predictor;
    predictor.inputs.insert(predictor.inputs.begin(),
                            {KvPredictorInput::Kind::kKeys, static_cast<int64_t>(l)});
    std::vector<float> w1(static_cast<std::size_t>(d * (d + rank)), 0.0f);
    for (int64_t row = 0; row < d; ++row) {
      std::copy_n(predictor.w1.data() + row * rank, rank, w1.data() + row * (d + rank) + d);
    }
    predictor.w1 = std::move(w1);
  }
  // The first step: later ones have other tokens' rows in their caches, and the errors of made-up
  // codes are large enough to go their own ways.
  const auto first_step = [&](const KvCodecFile* codec) {
    auto logits = run(*path, true, true, codec);
    logits.resize(static_cast<std::size_t>(2 * config.vocab_size));
    return logits;
  };
  const auto exact = first_step(nullptr), rebuilt = first_step(&with_keys),
             as_they_lie = first_step(&file);
  const double cost = distance(rebuilt, exact);
  EXPECT_GT(cost, 0);
  EXPECT_NE(rebuilt, as_they_lie) << "the same kernels";
  // Keys and values are off by 2^-8 of themselves either way, codes of two bits by a third of a
  // residual as large. (An H200: 0.104.)
  EXPECT_LE(distance(as_they_lie, rebuilt), 0.15 * cost);
}

// MQA with biases; rotations scaled; q/k norms; partial rotation with an attention factor; sliding
// layers among others, with rotations of their own.
INSTANTIATE_TEST_SUITE_P(Models, CodedCacheCuda,
                         testing::Values("qwen2-tied-mqa", "llama-rope-llama3", "qwen3-sharded",
                                         "phi3-partial-longrope", "gemma3-sliding-global"));

}  // namespace
}  // namespace lathe
