#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>

#include "support/kernel_cases.h"

namespace lathe {
namespace {

class PrefixCacheTest : public testing::Test {
 protected:
  PrefixCacheTest() {
    ModelConfig config;
    config.num_layers = 1;
    config.num_heads = config.num_kv_heads = 1;
    config.head_dim = 8;
    cache_ = make_kv_cache(config, KvFormat::kF32, 32 * kBlockSize, 1024);
  }

  // A sequence with `size` committed tokens and room for one more block.
  KvSequence sequence(int64_t size) {
    KvSequence kv = cache_->new_sequence();
    EXPECT_TRUE(cache_->reserve(kv, size));
    const KvRows rows{&kv, 0, size};
    cache_->begin_step({&rows, 1}, owned_.exec);
    const std::vector<float> zeros(static_cast<std::size_t>(size * 8));
    cache_->append(0, zeros.data(), zeros.data(), zeros.data(), 8, owned_.exec);
    cache_->commit();
    EXPECT_TRUE(cache_->reserve(kv, kBlockSize));
    return kv;
  }
  // first, first + 1, ...
  static std::vector<int32_t> tokens(int64_t size, int32_t first) {
    std::vector<int32_t> ids(static_cast<std::size_t>(size));
    std::iota(ids.begin(), ids.end(), first);
    return ids;
  }

  OwnedExec owned_{1};
  std::unique_ptr<KvCache> cache_;
};

TEST_F(PrefixCacheTest, FindsTheLongestCommonBeginning) {
  PrefixCache prefixes(*cache_);
  std::vector<int32_t> other = tokens(60, 0);
  other[40] = 7;
  prefixes.add(tokens(100, 0), sequence(100));
  prefixes.add(other, sequence(60));
  prefixes.add(tokens(50, 1000), sequence(50));
  EXPECT_EQ(prefixes.num_entries(), 3);
  EXPECT_EQ(prefixes.find(tokens(200, 0)).num_tokens, 100);
  EXPECT_EQ(prefixes.find(tokens(70, 0)).num_tokens, 70);
  EXPECT_EQ(prefixes.find(other).num_tokens, 60);
  EXPECT_EQ(prefixes.find(tokens(30, 1000)).num_tokens, 30);
  EXPECT_EQ(prefixes.find(tokens(15, 1000)).kv, nullptr);  // too short to be worth it
  EXPECT_EQ(prefixes.find(tokens(50, 1001)).kv, nullptr);
  EXPECT_EQ(prefixes.find({}).kv, nullptr);
}

TEST_F(PrefixCacheTest, ALongerSequenceReplacesItsBeginning) {
  PrefixCache prefixes(*cache_);
  prefixes.add(tokens(40, 0), sequence(40));
  prefixes.add(tokens(90, 0), sequence(90));
  EXPECT_EQ(prefixes.num_entries(), 1);
  EXPECT_EQ(prefixes.find(tokens(90, 0)).num_tokens, 90);
}

TEST_F(PrefixCacheTest, OnlyComputedTokensCount) {
  PrefixCache prefixes(*cache_);
  prefixes.add(tokens(41, 0), sequence(40));  // the last token was chosen, not computed
  EXPECT_EQ(prefixes.find(tokens(41, 0)).num_tokens, 40);
  prefixes.add(tokens(12, 500), sequence(8));
  EXPECT_EQ(prefixes.num_entries(), 1);
}

TEST_F(PrefixCacheTest, TheLeastRecentlyUsedGoesFirst) {
  PrefixCache prefixes(*cache_);
  prefixes.add(tokens(40, 0), sequence(40));
  prefixes.add(tokens(40, 1000), sequence(40));
  prefixes.add(tokens(40, 2000), sequence(40));
  prefixes.find(tokens(40, 0));
  EXPECT_TRUE(prefixes.evict_oldest());
  EXPECT_EQ(prefixes.find(tokens(40, 1000)).kv, nullptr);
  EXPECT_EQ(prefixes.find(tokens(40, 0)).num_tokens, 40);
  EXPECT_TRUE(prefixes.evict_oldest());
  EXPECT_EQ(prefixes.find(tokens(40, 2000)).kv, nullptr);
  EXPECT_TRUE(prefixes.evict_oldest());
  EXPECT_FALSE(prefixes.evict_oldest());
  EXPECT_EQ(cache_->num_free_blocks(), cache_->num_blocks());
}

TEST_F(PrefixCacheTest, GivesAllBlocksBack) {
  {
    PrefixCache prefixes(*cache_);
    KvSequence shared = cache_->new_sequence();
    prefixes.add(tokens(100, 0), sequence(100));
    cache_->fork(*prefixes.find(tokens(70, 0)).kv, 70, shared);
    EXPECT_TRUE(prefixes.evict_oldest());
    EXPECT_LT(cache_->num_free_blocks(), cache_->num_blocks());  // the fork holds three
    cache_->release(shared);
    EXPECT_EQ(cache_->num_free_blocks(), cache_->num_blocks());
    prefixes.add(tokens(100, 0), sequence(100));
  }
  EXPECT_EQ(cache_->num_free_blocks(), cache_->num_blocks());
}

}  // namespace
}  // namespace lathe
