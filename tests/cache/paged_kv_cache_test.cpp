#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "cache/kv_cache.h"
#include "cache/live_blocks.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 24;
  return config;
}

// Keys and values that say where they belong: layer, position and dimension, exact in bf16.
float key_of(int64_t layer, int64_t position, int64_t dim) {
  return float_from_bf16(
      bf16_from_float(static_cast<float>(1 + (position * 37 + dim * 5 + layer * 11) % 251)));
}

class Writer {
 public:
  Writer(KvCache& cache, const ModelConfig& config) : cache_(cache), config_(config) {}

  // Appends num_rows tokens to each sequence. Its content is key_of with `salt` on the layer.
  bool append(std::vector<KvSequence*> sequences, int64_t num_rows, int64_t salt = 0) {
    std::vector<KvRows> rows;
    for (KvSequence* sequence : sequences) {
      if (!cache_.reserve(*sequence, num_rows)) return false;
      rows.push_back({sequence, static_cast<int64_t>(rows.size()) * num_rows, num_rows});
    }
    cache_.begin_step(rows, owned_.exec);
    const int64_t stride = config_.kv_size() + 3;
    std::vector<float> k(std::size_t(int64_t(rows.size()) * num_rows * stride));
    std::vector<float> v(k.size());
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (const KvRows& run : rows) {
        for (int64_t i = 0; i < num_rows; ++i) {
          for (int64_t j = 0; j < config_.kv_size(); ++j) {
            const auto at = std::size_t((run.row_begin + i) * stride + j);
            k[at] = key_of(layer + salt, run.sequence->num_tokens + i, j);
            v[at] = -k[at];
          }
        }
      }
      cache_.append(layer, nullptr, k.data(), v.data(), stride, owned_.exec);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        last_views_ = cache_.views(layer, int64_t(i));
        EXPECT_GE(int64_t(last_views_.size()) * kBlockSize,
                  rows[i].sequence->num_tokens + num_rows);
      }
    }
    cache_.commit();
    return true;
  }

  // Reads a sequence back through views of an empty step.
  void expect_content(KvSequence& sequence, int64_t salt_from = INT64_MAX, int64_t salt = 0) {
    const KvRows rows{&sequence, 0, 0};
    const LiveBlockShape shape{cache_.element(), config_.num_layers, config_.num_kv_heads,
                               config_.head_dim};
    cache_.begin_step({&rows, 1}, owned_.exec);
    std::vector<float> key(std::size_t(config_.kv_size()));
    std::vector<float> value(key.size());
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      cache_.append(layer, nullptr, nullptr, nullptr, 0, owned_.exec);
      const auto views = cache_.views(layer, 0);
      for (int64_t t = 0; t < sequence.num_tokens; ++t) {
        const KvBlockView& view = views[std::size_t(t / kBlockSize)];
        load_key(shape, static_cast<const std::byte*>(view.keys), t % kBlockSize, key.data());
        load_value(shape, static_cast<const std::byte*>(view.values), t % kBlockSize, value.data());
        for (int64_t j = 0; j < config_.kv_size(); ++j) {
          const float expected = key_of(layer + (t >= salt_from ? salt : 0), t, j);
          ASSERT_EQ(key[std::size_t(j)], expected) << "layer " << layer << " position " << t;
          ASSERT_EQ(value[std::size_t(j)], -expected) << "layer " << layer << " position " << t;
        }
      }
    }
    cache_.commit();
  }

 private:
  KvCache& cache_;
  ModelConfig config_;
  OwnedExec owned_{2};
  std::span<const KvBlockView> last_views_;
};

TEST(PagedKvCache, GivesBackWhatWasAppendedInChunksOfAnyLength) {
  const ModelConfig config = small_config();
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
    const auto cache = make_kv_cache(config, format, 1000, 500);
    Writer writer(*cache, config);
    KvSequence a = cache->new_sequence();
    KvSequence b = cache->new_sequence();
    for (const int64_t num_rows : {1, 30, 1, 1, 64, 100, 31}) {
      ASSERT_TRUE(writer.append({&a, &b}, num_rows));
      ASSERT_TRUE(writer.append({&b}, 1));
    }
    EXPECT_EQ(a.num_tokens, 228);
    EXPECT_EQ(b.num_tokens, 235);
    writer.expect_content(a);
    writer.expect_content(b);
  }
}

// Every live format: what is read back is what one token's codes decode to, whatever was appended
// beside it.
TEST(PagedKvCache, FormatsDecodeToWhatTheirCodesSay) {
  ModelConfig config = small_config();
  config.head_dim = 64;
  for (const char* name : {"fp8", "int8", "q4", "higgs4", "higgs3", "higgs2"}) {
    SCOPED_TRACE(name);
    const KvFormat format = kv_format_from_name(name);
    EXPECT_EQ(kv_format_name(format), name);
    const auto cache = make_kv_cache(config, format, 400, 200);
    EXPECT_EQ(cache->bytes_per_block(), kBlockSize * kv_token_bytes(format, config));
    const LiveBlockShape shape{cache->element(), config.num_layers, config.num_kv_heads,
                               config.head_dim};
    OwnedExec owned(2);
    KvSequence sequence = cache->new_sequence();
    const int64_t size = config.kv_size();
    const std::vector<float> k = normal_values(70 * size, 1), v = normal_values(70 * size, 2);
    int64_t done = 0;
    for (const int64_t num_rows : {1, 40, 1, 28}) {
      ASSERT_TRUE(cache->reserve(sequence, num_rows));
      const KvRows rows{&sequence, 0, num_rows};
      cache->begin_step({&rows, 1}, owned.exec);
      for (int64_t layer = 0; layer < config.num_layers; ++layer) {
        cache->append(layer, nullptr, k.data() + done * size, v.data() + done * size, size,
                      owned.exec);
      }
      cache->commit();
      done += num_rows;
    }
    const KvRows none{&sequence, 0, 0};
    cache->begin_step({&none, 1}, owned.exec);
    Buffer alone(shape.plane_bytes());
    std::vector<float> expected(std::size_t(size), 0.0f), actual(expected);
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      cache->append(layer, nullptr, nullptr, nullptr, 0, owned.exec);
      const auto views = cache->views(layer, 0);
      for (int64_t t = 0; t < done; ++t) {
        const KvBlockView& view = views[std::size_t(t / kBlockSize)];
        store_key(shape, k.data() + t * size, t % kBlockSize, alone.data());
        load_key(shape, alone.data(), t % kBlockSize, expected.data());
        load_key(shape, static_cast<const std::byte*>(view.keys), t % kBlockSize, actual.data());
        ASSERT_TRUE(same_bits(actual, expected)) << "key " << t;
        store_value(shape, v.data() + t * size, t % kBlockSize, alone.data());
        load_value(shape, alone.data(), t % kBlockSize, expected.data());
        load_value(shape, static_cast<const std::byte*>(view.values), t % kBlockSize,
                   actual.data());
        ASSERT_TRUE(same_bits(actual, expected)) << "value " << t;
      }
    }
    cache->commit();
  }
}

// Exact rows of the first tokens of a sequence, as its step sees them, beside any codes.
void expect_sinks(KvCache& cache, const ModelConfig& config, KvSequence& sequence,
                  const std::vector<int64_t>& salts) {
  const KvRows rows{&sequence, 0, 0};
  OwnedExec owned(1);
  const LiveBlockShape shape{cache.element(), config.num_layers, config.num_kv_heads,
                             config.head_dim};
  cache.begin_step({&rows, 1}, owned.exec);
  std::vector<float> key(std::size_t(config.kv_size())), value(key.size());
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    cache.append(layer, nullptr, nullptr, nullptr, 0, owned.exec);
    const KvBlockView sinks = cache.sinks(layer, 0);
    for (std::size_t t = 0; t < salts.size(); ++t) {
      load_sink(shape, static_cast<const std::byte*>(sinks.keys), int64_t(t), key.data());
      load_sink(shape, static_cast<const std::byte*>(sinks.values), int64_t(t), value.data());
      // Rotated numbers are off by 2^-9 each, so all of a head together by 2^-9 of its norm, which
      // is below 4 * 252; where nothing is rotated the numbers are exact.
      const float most = kv_is_rotated(shape.element) ? 2 : 0;
      for (int64_t j = 0; j < config.kv_size(); ++j) {
        const float expected = key_of(layer + salts[t], int64_t(t), j);
        ASSERT_NEAR(key[std::size_t(j)], expected, most) << "layer " << layer << " token " << t;
        ASSERT_NEAR(value[std::size_t(j)], -expected, most) << "layer " << layer << " token " << t;
      }
    }
  }
  cache.commit();
}

TEST(PagedKvCache, SinksAreExactSharedAndCopiedBeforeTheyAreWritten) {
  ModelConfig config = small_config();
  config.head_dim = 16;
  for (const char* name : {"int8", "q4", "higgs4", "higgs3", "higgs2"}) {
    SCOPED_TRACE(name);
    const auto cache = make_kv_cache(config, kv_format_from_name(name), 320, 160);
    ASSERT_EQ(cache->num_blocks(), 12);  // 10, and one for each of two sequences
    Writer writer(*cache, config);
    KvSequence a = cache->new_sequence();
    EXPECT_EQ(cache->blocks_needed(a, 33, 33).live, 3);
    for (const int64_t num_rows : {1, 2, 40}) ASSERT_TRUE(writer.append({&a}, num_rows));
    EXPECT_EQ(cache->num_free_blocks(), 9);
    expect_sinks(*cache, config, a, {0, 0, 0, 0});
    EXPECT_EQ(cache->blocks_needed(a, 64, 64).live, 1);  // the copy of a block that is not full

    // Behind the sinks only the block that is written to is copied.
    KvSequence b = cache->new_sequence();
    cache->fork(a, 40, b);
    EXPECT_EQ(cache->num_free_blocks(), 9);
    ASSERT_TRUE(writer.append({&b}, 1, /*salt=*/3));
    EXPECT_EQ(cache->num_free_blocks(), 8);
    EXPECT_EQ(b.sink_block, a.sink_block);
    expect_sinks(*cache, config, b, {0, 0, 0, 0});
    cache->release(b);
    EXPECT_EQ(b.sink_block, -1);

    // Within them the sinks are, too.
    cache->fork(a, 2, b);
    EXPECT_EQ(cache->blocks_needed(b, 10, 10).live, 2);
    ASSERT_TRUE(writer.append({&b}, 5, /*salt=*/3));
    EXPECT_EQ(cache->num_free_blocks(), 7);
    EXPECT_NE(b.sink_block, a.sink_block);
    expect_sinks(*cache, config, b, {0, 0, 3, 3});
    expect_sinks(*cache, config, a, {0, 0, 0, 0});

    // Tokens that were thrown away are written anew.
    cache->truncate(b, 3);
    ASSERT_TRUE(writer.append({&b}, 4, /*salt=*/5));
    expect_sinks(*cache, config, b, {0, 0, 3, 5});
    cache->release(a);
    cache->release(b);
    EXPECT_EQ(cache->num_free_blocks(), cache->num_blocks());

    // Two of the longest fit, and nothing more.
    ASSERT_TRUE(writer.append({&a, &b}, 160));
    EXPECT_EQ(cache->num_free_blocks(), 0);
    KvSequence c = cache->new_sequence();
    EXPECT_FALSE(cache->reserve(c, 1));
    EXPECT_EQ(c.sink_block, -1);
    cache->truncate(b, 128);
    EXPECT_FALSE(cache->reserve(c, 1));  // a block for the token, none for the sinks
    EXPECT_TRUE(c.blocks.empty());
    cache->truncate(b, 96);
    EXPECT_TRUE(cache->reserve(c, 1));
  }
}

TEST(PagedKvCache, ExhaustionLeavesTheSequenceAsItWas) {
  const ModelConfig config = small_config();
  const auto cache = make_kv_cache(config, KvFormat::kBF16, 100, 1000);  // 4 blocks
  EXPECT_EQ(cache->num_blocks(), 4);
  Writer writer(*cache, config);
  KvSequence a = cache->new_sequence();
  KvSequence b = cache->new_sequence();
  ASSERT_TRUE(writer.append({&a}, 65));  // 3 blocks
  EXPECT_EQ(cache->num_free_blocks(), 1);
  EXPECT_FALSE(cache->reserve(b, 33));
  EXPECT_TRUE(b.blocks.empty());
  EXPECT_EQ(cache->num_free_blocks(), 1);
  EXPECT_TRUE(cache->reserve(b, 32));
  EXPECT_FALSE(cache->reserve(a, 32));
  EXPECT_TRUE(cache->reserve(a, 31));
  writer.expect_content(a);
  cache->release(b);
  EXPECT_TRUE(cache->reserve(a, 32));
  cache->release(a);
  EXPECT_EQ(cache->num_free_blocks(), 4);
  EXPECT_EQ(a.num_tokens, 0);
}

TEST(PagedKvCache, TruncateDropsTokensAndFreesBlocks) {
  const ModelConfig config = small_config();
  const auto cache = make_kv_cache(config, KvFormat::kF32, 320, 320);
  Writer writer(*cache, config);
  KvSequence a = cache->new_sequence();
  ASSERT_TRUE(writer.append({&a}, 100));
  ASSERT_TRUE(cache->reserve(a, 200));
  EXPECT_EQ(cache->num_free_blocks(), 0);
  cache->truncate(a, 65);
  EXPECT_EQ(cache->num_free_blocks(), 7);
  ASSERT_TRUE(writer.append({&a}, 20, /*salt=*/5));
  writer.expect_content(a, /*salt_from=*/65, /*salt=*/5);
  cache->truncate(a, 64);
  EXPECT_EQ(a.blocks.size(), 2u);
  cache->truncate(a, 0);
  EXPECT_EQ(cache->num_free_blocks(), 10);
}

TEST(PagedKvCache, AForkSharesBlocksUntilItWrites) {
  const ModelConfig config = small_config();
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
    const auto cache = make_kv_cache(config, format, 320, 320);
    Writer writer(*cache, config);
    KvSequence a = cache->new_sequence();
    ASSERT_TRUE(writer.append({&a}, 80));
    KvSequence b = cache->new_sequence();
    cache->fork(a, 75, b);
    EXPECT_EQ(cache->num_free_blocks(), 7);
    EXPECT_EQ(b.num_tokens, 75);
    // Both write behind their common part: the third block is copied once, the others stay shared.
    ASSERT_TRUE(writer.append({&b}, 10, /*salt=*/3));
    EXPECT_EQ(cache->num_free_blocks(), 6);
    ASSERT_TRUE(writer.append({&a}, 10));
    EXPECT_EQ(cache->num_free_blocks(), 6);
    EXPECT_EQ(a.blocks[1], b.blocks[1]);
    EXPECT_NE(a.blocks[2], b.blocks[2]);
    writer.expect_content(a);
    writer.expect_content(b, /*salt_from=*/75, /*salt=*/3);
    cache->release(a);
    writer.expect_content(b, /*salt_from=*/75, /*salt=*/3);
    cache->release(b);
    EXPECT_EQ(cache->num_free_blocks(), 10);
  }
}

TEST(PagedKvCache, CopyOnWriteNeedsAFreeBlock) {
  const ModelConfig config = small_config();
  const auto cache = make_kv_cache(config, KvFormat::kF32, 64, 320);
  Writer writer(*cache, config);
  KvSequence a = cache->new_sequence();
  ASSERT_TRUE(writer.append({&a}, 40));
  KvSequence b = cache->new_sequence();
  cache->fork(a, 40, b);
  EXPECT_FALSE(cache->reserve(b, 1));
  EXPECT_EQ(b.blocks, a.blocks);
  cache->release(a);
  EXPECT_TRUE(cache->reserve(b, 1));
  writer.expect_content(b);
}

TEST(PagedKvCache, RefusesWhatCannotBe) {
  ModelConfig config = small_config();
  const auto code = [](auto body) {
    try {
      body();
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code([] { kv_format_from_name("int3"); }), ErrorCode::kUnsupported);
  EXPECT_EQ(code([&] { make_kv_cache(config, KvFormat::kF32, 0, 10); }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([&] { make_kv_cache(config, KvFormat::kF32, int64_t{1} << 45, 10); }),
            ErrorCode::kOutOfMemory);
  const auto cache = make_kv_cache(config, KvFormat::kF32, 100, 50);
  KvSequence sequence = cache->new_sequence();
  EXPECT_EQ(code([&] { cache->reserve(sequence, 51); }), ErrorCode::kInvalidArgument);
  config.head_dim = 12;
  EXPECT_EQ(code([&] { make_kv_cache(config, KvFormat::kInt8, 100, 50); }),
            ErrorCode::kUnsupported);
  config.head_dim = 21;
  EXPECT_EQ(code([&] { make_kv_cache(config, KvFormat::kF32, 100, 50); }), ErrorCode::kUnsupported);
}

TEST(PagedKvCacheDeathTest, AStepNeedsItsReservation) {
  const ModelConfig config = small_config();
  const auto cache = make_kv_cache(config, KvFormat::kF32, 100, 50);
  KvSequence sequence = cache->new_sequence();
  const KvRows rows{&sequence, 0, 1};
  OwnedExec owned(1);
  EXPECT_DEATH(cache->begin_step({&rows, 1}, owned.exec), "blocks");
}

}  // namespace
}  // namespace lathe
