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

// A draft model of a quarter of the bytes: 13107.2 tokens of both are a GiB.
TEST(EngineOptions, ADraftModelsCacheCounts) {
  const auto resolved = [](const EngineOptions& options, int64_t free_mib, int64_t draft_bytes) {
    return resolve(options, config_of(32768),
                   {.free_bytes = free_mib * kMiB, .draft_token_bytes = draft_bytes});
  };
  EXPECT_EQ(resolved({.max_num_seqs = 1}, 4096, 0).cache_tokens, 16384);
  EXPECT_EQ(resolved({.max_num_seqs = 1}, 4096, 16384).cache_tokens, 13107);
  EXPECT_EQ(resolved({.max_num_seqs = 1}, 16384, 16384).cache_tokens, 32768);  // the whole context
  // 30000 tokens: 1876 MiB, with the draft's 2345.
  const EngineOptions asked = {.max_num_seqs = 1, .max_sequence_tokens = 30000};
  EXPECT_EQ(resolved(asked, 2000, 0).cache_tokens, 30000);
  EXPECT_EQ(resolved(asked, 2400, 16384).cache_tokens, 30000);
  try {
    resolved(asked, 2300, 16384);
    FAIL() << "memory does not hold both";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_NE(std::string(error.what()).find("2345 MiB with the draft model's, and 2300 MiB"),
              std::string::npos)
        << error.what();
  }
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
