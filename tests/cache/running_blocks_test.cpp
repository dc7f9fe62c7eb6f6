// KvCache::running_blocks() is a count that is kept: it must be what the block tables say.
#include <gtest/gtest.h>

#include <list>
#include <set>

#include "base/rng.h"
#include "cache/coded_pair.h"

namespace lathe {
namespace {

struct Held {
  KvSequence sequence;
  bool is_idle = false;
};

KvBlocks counted(const std::list<Held>& all) {
  std::set<BlockId> blocks;
  for (const Held& held : all) {
    if (held.is_idle) continue;
    blocks.insert(held.sequence.blocks.begin(), held.sequence.blocks.end());
    if (held.sequence.sink_block >= 0) blocks.insert(held.sequence.sink_block);
  }
  const auto coded = int64_t(std::distance(blocks.begin(), blocks.lower_bound(0)));
  return {.live = int64_t(blocks.size()) - coded, .coded = coded};
}

// Steps, forks, truncation, idling and release in random order; of a coded cache also parking and
// waking (by `coded`, the same cache).
void run_random(KvCache& cache, CodedKvCache* coded, const Rows& rows, const ModelConfig& config,
                uint64_t seed) {
  OwnedExec owned{1};
  const std::vector<float> q = normal_values(config.num_heads * config.head_dim, 99);
  Rng rng(seed);
  std::list<Held> all;
  bool some_idle = false, some_shared = false;
  for (int i = 0; i < 400; ++i) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", operation " << i);
    auto held = all.begin();
    if (!all.empty()) std::advance(held, int64_t(rng.below(all.size())));
    const uint64_t what = all.size() < 3 ? 0 : rng.below(8);
    if (what == 0 && all.size() < 12) {
      all.push_back({cache.new_sequence()});
      if (held != all.end() && rng.below(2) == 0) {
        const auto size = uint64_t(held->sequence.num_tokens) + 1;
        cache.fork(held->sequence, int64_t(rng.below(size)), all.back().sequence);
      }
    } else if (what == 1) {
      if (held->is_idle) cache.set_idle(held->sequence, false);
      cache.release(held->sequence);
      all.erase(held);
    } else if (what == 2) {
      held->is_idle = !held->is_idle;
      cache.set_idle(held->sequence, held->is_idle);
    } else if (!held->is_idle) {
      KvSequence& sequence = held->sequence;
      const int64_t num_rows = 1 + int64_t(rng.below(50));
      if (what == 3) {
        cache.truncate(sequence, int64_t(rng.below(uint64_t(sequence.num_tokens) + 1)));
      } else if (what == 4 && coded != nullptr) {
        coded->park(sequence, owned.exec);
      } else if (what == 5 && coded != nullptr) {
        coded->wake(sequence, owned.exec);
      } else if (sequence.num_tokens + num_rows < kMaxTokens && cache.reserve(sequence, num_rows)) {
        step(cache, sequence, rows, config, num_rows, q, owned.exec);
      }
    }
    ASSERT_EQ(cache.running_blocks(), counted(all));
    some_idle = some_idle ||
                cache.running_blocks().live + cache.free_blocks().live < cache.all_blocks().live;
    int64_t live = 0;
    for (const Held& other : all) {
      for (const BlockId id : other.sequence.blocks) live += !other.is_idle && id >= 0;
    }
    some_shared = some_shared || live > cache.running_blocks().live;
  }
  EXPECT_TRUE(some_idle && some_shared);
  for (Held& held : all) {
    if (held.is_idle) cache.set_idle(held.sequence, false);
    cache.release(held.sequence);
  }
  EXPECT_EQ(cache.running_blocks(), KvBlocks{});
  EXPECT_EQ(cache.free_blocks(), cache.all_blocks());
}

TEST(RunningBlocks, AreWhatTheBlockTablesSay) {
  const ModelConfig config = small_config();
  const Rows rows(config);
  for (uint64_t seed = 0; seed < 3; ++seed) {
    for (const KvFormat format : {KvFormat::kF32, KvFormat::kHiggs4}) {  // without and with sinks
      const auto plain = make_kv_cache(config, format, 1500, kMaxTokens);
      run_random(*plain, nullptr, rows, config, seed);
    }
    Pair pair({.num_sinks = 4, .window = 32, .chunk_tokens = 32});
    run_random(pair.coded, &pair.coded, rows, config, seed);
  }
}

}  // namespace
}  // namespace lathe
