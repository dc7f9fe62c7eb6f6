// Codes of keys that have large biases on a GPU: they are kept without them (kv_layout_cuda.h).
#include <gtest/gtest.h>

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

// Logits of a sequence that comes as a prompt, a few rows, then row by row, which are captured in
// graphs.
std::vector<float> logits_in_steps(const std::string& path, const std::vector<int32_t>& ids,
                                   KvFormat format) {
  OwnedExec owned(2);
  owned.exec.cuda_device = 0;
  const auto checkpoint = Checkpoint::open(path);
  const auto n = static_cast<int64_t>(ids.size());
  const auto model = Model::load(*checkpoint, {.max_sequence_tokens = n}, owned.exec);
  const auto cache = model->make_cache(format, n, n);
  KvSequence sequence = cache->new_sequence();
  const int64_t vocab_size = model->config().vocab_size;
  std::vector<float> logits(static_cast<std::size_t>(n * vocab_size));
  for (int64_t begin = 0; begin < n;) {
    const int64_t count = begin == 0 ? 90 : begin == 90 ? 12 : 1;
    EXPECT_TRUE(cache->reserve(sequence, count));
    const KvRows rows{.sequence = &sequence, .row_begin = 0, .num_rows = count};
    std::vector<int64_t> positions;
    std::vector<int32_t> logit_rows;
    for (int64_t i = 0; i < count; ++i) {
      positions.push_back(begin + i);
      logit_rows.push_back(static_cast<int32_t>(i));
    }
    model->forward({.token_ids = std::span(ids).subspan(static_cast<std::size_t>(begin),
                                                        static_cast<std::size_t>(count)),
                    .positions = positions,
                    .sequences = {&rows, 1},
                    .logit_rows = logit_rows},
                   *cache, logits.data() + begin * vocab_size, nullptr, owned.exec);
    begin += count;
  }
  cache->release(sequence);
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

}  // namespace
}  // namespace lathe
