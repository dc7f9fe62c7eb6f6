// Divergence of two caches of one model on a GPU: both leave their logits in the same place.
#include <gtest/gtest.h>

#include "eval/perplexity.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

// Three windows of tokens that look random.
std::vector<std::vector<int32_t>> windows(int64_t vocab_size) {
  std::vector<std::vector<int32_t>> all(3);
  for (int64_t i = 0; i < 360; ++i) {
    all[static_cast<std::size_t>(i / 120)].push_back(
        static_cast<int32_t>((17 + 31 * i + i * i % 13) % vocab_size));
  }
  return all;
}

DivergenceResult divergence(const Checkpoint& checkpoint, KvFormat cache, int device) {
  OwnedExec machine(2);
  machine.exec.cuda_device = device;
  const auto model = Model::load(checkpoint, {.dense_dtype = DType::kF32}, machine.exec);
  return measure_divergence(*model, KvFormat::kBF16, *model, cache,
                            windows(model->config().vocab_size), machine.exec);
}

TEST(DivergenceCuda, OfTwoCachesOfOneModelIsThatOfTheCpu) {
  LATHE_NEEDS_GPU();
  const auto checkpoint = Checkpoint::open(golden_path("tiny/qwen2-tied-mqa"));
  EXPECT_EQ(divergence(*checkpoint, KvFormat::kBF16, 0).mean_kl, 0);  // the same bits
  const DivergenceResult cpu = divergence(*checkpoint, KvFormat::kFp8, -1);
  const DivergenceResult gpu = divergence(*checkpoint, KvFormat::kFp8, 0);
  EXPECT_GT(cpu.mean_kl, 1e-9);  // fp32 logits tell 1e-14 apart
  // Other roundings of the same cache: the mean over 357 tokens of what FP8 costs stays.
  EXPECT_NEAR(gpu.mean_kl, cpu.mean_kl, 0.2 * cpu.mean_kl);
  EXPECT_NEAR(gpu.reference.perplexity, cpu.reference.perplexity, 0.01 * cpu.reference.perplexity);
}

}  // namespace
}  // namespace lathe
