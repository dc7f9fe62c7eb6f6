#include "cache/kv_block_count.h"

#include <algorithm>

namespace lathe {

KvBlockCount::KvBlockCount(const KvCache& cache)
    : live_(static_cast<std::size_t>(cache.all_blocks().live)),
      coded_(static_cast<std::size_t>(cache.all_blocks().coded)) {
  clear();
}

void KvBlockCount::clear() {
  total_ = {};
  if (++round_ != 0) return;
  // After 2^32 rounds old marks would look new.
  std::fill(live_.begin(), live_.end(), 0);
  std::fill(coded_.begin(), coded_.end(), 0);
  round_ = 1;
}

void KvBlockCount::add(const KvSequence& sequence) {
  const auto count = [&](BlockId id) {
    uint32_t& mark =
        id < 0 ? coded_[static_cast<std::size_t>(~id)] : live_[static_cast<std::size_t>(id)];
    if (mark == round_) return;
    mark = round_;
    ++(id < 0 ? total_.coded : total_.live);
  };
  for (const BlockId id : sequence.blocks) count(id);
  if (sequence.sink_block >= 0) count(sequence.sink_block);
}

}  // namespace lathe
