// How many blocks of a cache sequences hold, of either kind, a block that several share counted
// once. Room for the marks is made once, so that counting between steps allocates nothing.
#pragma once
#include <cstdint>
#include <vector>

#include "cache/kv_cache.h"

namespace lathe {

class KvBlockCount {
 public:
  explicit KvBlockCount(const KvCache& cache);

  void clear();
  void add(const KvSequence& sequence);  // of that cache
  const KvBlocks& total() const { return total_; }

 private:
  // [block], the round in which it was counted last.
  std::vector<uint32_t> live_, coded_;
  uint32_t round_ = 0;
  KvBlocks total_;
};

}  // namespace lathe
