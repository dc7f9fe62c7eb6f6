// Keys and values of finished sequences, kept until their room is needed, so that the next turn of
// a conversation or another request behind the same instructions computes only what is new. Least
// recently used goes first. Blocks are shared by reference (KvCache::fork), so an entry costs no
// memory beyond its own blocks, and evicting it takes nothing from sequences that share it.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cache/kv_cache.h"

namespace lathe {

// Length of the common beginning.
int64_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b);

class PrefixCache {
 public:
  // Below this, sharing saves less than a step's overhead.
  static constexpr int64_t kMinTokens = 16;
  // Entries are compared with each new prompt one by one.
  static constexpr std::size_t kMaxEntries = 256;

  explicit PrefixCache(KvCache& cache) : cache_(cache) { entries_.reserve(kMaxEntries); }
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // Takes over the blocks of a sequence; kv.num_tokens of its tokens are in them. Entries that are
  // a beginning of it go.
  void add(std::vector<int32_t> tokens, KvSequence kv);

  // The entry that shares most with `tokens`; counts as a use when it shares kMinTokens or more.
  struct Match {
    const KvSequence* kv = nullptr;
    int64_t num_tokens = 0;
  };
  Match find(std::span<const int32_t> tokens);

  // False when there is nothing left to evict. Does not allocate.
  bool evict_oldest();
  int64_t num_entries() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Entry {
    std::vector<int32_t> tokens;
    KvSequence kv;
    int64_t last_use = 0;
  };
  void erase(std::size_t idx);

  KvCache& cache_;
  std::vector<Entry> entries_;
  int64_t clock_ = 0;
};

}  // namespace lathe
