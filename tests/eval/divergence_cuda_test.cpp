// Divergence of two caches of one model on a GPU: both leave their logits in the same place.
#include <gtest/gtest.h>

#include "compress/random_model.h"
#include "eval/perplexity.h"
#include "support/cuda_cases.h"

namespace lathe {
namespace {

constexpr const char* kConfig = R"({"architectures": ["Qwen2ForCausalLM"],
  "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 307, "rms_norm_eps": 1e-6,
  "max_position_embeddings": 256, "hidden_act": "silu", "rope_theta": 10000.0,
  "tie_word_embeddings": true, "torch_dtype": "float32"})";

DivergenceResult divergence(const Checkpoint& checkpoint, KvFormat cache, int device) {
  OwnedExec machine(2);
  machine.exec.cuda_device = device;
  const auto model = Model::load(checkpoint, {.dense_dtype = DType::kF32}, machine.exec);
  return measure_divergence(*model, KvFormat::kBF16, *model, cache,
                            random_sequences(2, 200, 307, 4), machine.exec);
}

TEST(DivergenceCuda, OfTwoCachesOfOneModelIsThatOfTheCpu) {
  LATHE_NEEDS_GPU();
  const TemporaryDirectory temporary;
  write_random_model(temporary.path(), kConfig, 7);
  const auto checkpoint = Checkpoint::open(temporary.path());
  EXPECT_EQ(divergence(*checkpoint, KvFormat::kBF16, 0).mean_kl, 0);  // the same bits
  const DivergenceResult cpu = divergence(*checkpoint, KvFormat::kFp8, -1);
  const DivergenceResult gpu = divergence(*checkpoint, KvFormat::kFp8, 0);
  EXPECT_GT(cpu.mean_kl, 1e-5);
  // Other roundings of the same cache: the mean over 398 tokens of what FP8 costs stays.
  EXPECT_NEAR(gpu.mean_kl, cpu.mean_kl, 0.2 * cpu.mean_kl);
  EXPECT_NEAR(gpu.reference.perplexity, cpu.reference.perplexity, 0.01 * cpu.reference.perplexity);
}

}  // namespace
}  // namespace lathe
