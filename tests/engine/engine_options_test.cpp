#include "engine/engine_options.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace lathe {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// A token takes 64 KiB: 16384 are a GiB.
ModelConfig config_of(int64_t context) {
  ModelConfig config;
  config.num_layers = 16;
  config.num_kv_heads = 8;
  config.head_dim = 128;
  config.max_position_embeddings = context;
  return config;
}

TEST(EngineOptions, ACacheThatNothingSaysTheSizeOf) {
  const auto tokens = [](int64_t context, int64_t free_mib, int64_t max_num_seqs) {
    return resolve({.max_num_seqs = max_num_seqs}, config_of(context),
                   {.free_bytes = free_mib * kMiB})
        .cache_tokens;
  };
  EXPECT_EQ(tokens(4096, 8192, 1), 4096);     // what can be used
  EXPECT_EQ(tokens(4096, 8192, 64), 16384);   // a GiB
  EXPECT_EQ(tokens(32768, 16384, 1), 32768);  // the model's context, more than a GiB
  EXPECT_EQ(tokens(32768, 4096, 1), 16384);   // at most a quarter of what is free
  EXPECT_EQ(tokens(32768, 0, 1), 16384);      // nothing is known: a GiB
  const EngineOptions resolved =
      resolve({.max_num_seqs = 1}, config_of(32768), {.free_bytes = 4096 * kMiB});
  EXPECT_EQ(resolved.max_sequence_tokens, 16384);
}

TEST(EngineOptions, ACacheForTheContextThatWasAskedFor) {
  const EngineOptions options = {.max_num_seqs = 1, .max_sequence_tokens = 30000};
  const EngineOptions resolved = resolve(options, config_of(32768), {.free_bytes = 4096 * kMiB});
  EXPECT_EQ(resolved.max_sequence_tokens, 30000);
  EXPECT_GE(resolved.cache_tokens, 30000);
  EXPECT_EQ(cache_bytes(resolved, config_of(32768)), blocks_for(30000) * kBlockSize * 65536);
  for (const EngineOptions& too_much :
       {options, EngineOptions{.max_num_seqs = 1, .cache_tokens = 30000}}) {
    try {
      resolve(too_much, config_of(32768), {.free_bytes = 1024 * kMiB});
      FAIL() << "memory does not hold it";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
      const std::string message = error.what();
      EXPECT_NE(message.find("30000 tokens takes 1876 MiB"), std::string::npos) << message;
      EXPECT_NE(message.find("--context"), std::string::npos) << message;
    }
  }
}

}  // namespace
}  // namespace lathe
