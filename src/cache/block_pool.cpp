#include "cache/block_pool.h"

#include <limits>

#include "base/check.h"

namespace lathe {

BlockPool::BlockPool(int64_t num_blocks)
    : references_(static_cast<std::size_t>(num_blocks)),
      idle_references_(static_cast<std::size_t>(num_blocks)) {
  LATHE_CHECK(num_blocks <= std::numeric_limits<BlockId>::max());
  free_.reserve(references_.size());
  for (int64_t block = num_blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<BlockId>(block));
  }
}

std::optional<BlockId> BlockPool::allocate() {
  if (free_.empty()) return std::nullopt;
  const BlockId block = free_.back();
  free_.pop_back();
  references_[static_cast<std::size_t>(block)] = 1;
  return block;
}

void BlockPool::add_reference(BlockId block) {
  LATHE_CHECK(num_references(block) > 0);
  if (is_idle(block)) --num_idle_;
  ++references_[static_cast<std::size_t>(block)];
}

bool BlockPool::release(BlockId block) {
  LATHE_CHECK(num_references(block) > idle_references_[static_cast<std::size_t>(block)]);
  if (--references_[static_cast<std::size_t>(block)] > 0) {
    if (is_idle(block)) ++num_idle_;
    return false;
  }
  free_.push_back(block);
  return true;
}

void BlockPool::set_idle(BlockId block, bool idle) {
  int32_t& count = idle_references_[static_cast<std::size_t>(block)];
  LATHE_CHECK(idle ? count < num_references(block) : count > 0);
  if (is_idle(block)) --num_idle_;
  count += idle ? 1 : -1;
  if (is_idle(block)) ++num_idle_;
}

bool BlockPool::is_idle(BlockId block) const {
  const auto i = static_cast<std::size_t>(block);
  return references_[i] > 0 && references_[i] == idle_references_[i];
}

int32_t BlockPool::num_references(BlockId block) const {
  LATHE_CHECK(block >= 0 && block < num_blocks());
  return references_[static_cast<std::size_t>(block)];
}

}  // namespace lathe
