// After warm-up a step of the caches and of attention allocates nothing.
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "cache/coded_kv_cache.h"
#include "cache/layer_difference_codec.h"
#include "support/all_close.h"
#include "support/counting_allocator.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  return config;
}

class Steps {
 public:
  explicit Steps(KvCache& cache) : cache_(cache) {
    for (KvSequence& sequence : sequences_) sequence = cache.new_sequence();
  }

  // One step that appends num_rows rows to both sequences and attends at every layer.
  void run(int64_t num_rows) {
    for (std::size_t i = 0; i < 2; ++i) {
      ASSERT_TRUE(cache_.reserve(sequences_[i], num_rows));
      rows_[i] = {&sequences_[i], static_cast<int64_t>(i) * num_rows, num_rows};
    }
    cache_.begin_step(rows_, owned_.exec);
    for (int64_t layer = 0; layer < 2; ++layer) {
      cache_.append(layer, values_.data(), values_.data(), values_.data(), 32, owned_.exec);
      for (std::size_t i = 0; i < 2; ++i) {
        segments_[i] = {rows_[i].row_begin, num_rows, sequences_[i].num_tokens,
                        cache_.views(layer, int64_t(i)).data()};
      }
      attention({.q = values_.data(),
                 .out = out_.data(),
                 .segments = segments_,
                 .element = cache_.element(),
                 .num_heads = 4,
                 .num_kv_heads = 2,
                 .head_dim = 16,
                 .scale = 0.25f},
                owned_.exec);
    }
    cache_.commit();
  }
  void drop_last(int64_t num_tokens) {
    for (KvSequence& sequence : sequences_) {
      cache_.truncate(sequence, sequence.num_tokens - num_tokens);
    }
  }
  void release() {
    for (KvSequence& sequence : sequences_) cache_.release(sequence);
  }
  Exec& exec() { return owned_.exec; }

 private:
  KvCache& cache_;
  OwnedExec owned_{2};
  std::array<KvSequence, 2> sequences_;
  std::array<KvRows, 2> rows_;
  std::array<AttentionSegment, 2> segments_;
  std::vector<float> values_ = normal_values(2 * 64 * 64, 1);
  std::vector<float> out_ = std::vector<float>(2 * 64 * 64);
};

void conversation(Steps& steps) {
  steps.run(64);
  for (int i = 0; i < 300; ++i) {
    steps.run(1 + i % 3);
    if (i % 7 == 0) steps.drop_last(1);
  }
  steps.release();
}

TEST(Allocation, ThePlainCacheAndAttentionAllocateNothingAfterWarmUp) {
  if (!counting_allocator_available()) GTEST_SKIP() << "a sanitizer has its own allocator";
  for (const char* format : {"bf16", "fp8", "int8", "q4", "higgs4", "higgs3"}) {
    SCOPED_TRACE(format);
    const auto cache = make_kv_cache(small_config(), kv_format_from_name(format), 4096, 1024);
    Steps steps(*cache);
    conversation(steps);
    const int64_t before = num_allocations();
    conversation(steps);
    EXPECT_EQ(num_allocations(), before);
    const std::vector<int> one(1);  // the counter works
    EXPECT_EQ(num_allocations(), before + 1);
  }
}

TEST(Allocation, TheCodedCacheAllocatesNothingAfterWarmUp) {
  if (!counting_allocator_available()) GTEST_SKIP() << "a sanitizer has its own allocator";
  const ModelConfig config = small_config();
  const LayerDifferenceCodec codec(2, 32, {.num_sinks = 4, .window = 32, .chunk_tokens = 32});
  const std::vector<float> tables(1024 * 8, 0.5f);
  const KvRope rope{tables.data(), tables.data(), 1024, 16};
  CodedKvCache cache(config, codec, {rope, rope},
                     {.live_tokens = 4096, .coded_tokens = 4096, .max_sequence_tokens = 1024});
  Steps steps(cache);
  conversation(steps);
  const int64_t before = num_allocations();
  conversation(steps);
  EXPECT_EQ(num_allocations(), before);
}

}  // namespace
}  // namespace lathe
