#include "tensor/exec.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lathe {

struct Workspace::Overflow {
  Buffer buffer;
  int64_t begin;  // used_ in front of it
  Overflow* next;
};

Workspace::~Workspace() { delete_blocks(); }

void Workspace::delete_blocks() {
  while (overflow_ != nullptr) delete std::exchange(overflow_, overflow_->next);
  while (spare_ != nullptr) delete std::exchange(spare_, spare_->next);
}

std::byte* Workspace::allocate(int64_t num_bytes) {
  LATHE_CHECK(num_bytes >= 0);
  const int64_t padded = (num_bytes + 63) / 64 * 64;
  const int64_t offset = used_;
  used_ += padded;
  high_water_ = std::max(high_water_, used_);
  if (used_ <= arena_.size()) return arena_.data() + offset;
  // The smallest spare block that is large enough.
  Overflow** best = nullptr;
  for (Overflow** at = &spare_; *at != nullptr; at = &(*at)->next) {
    if ((*at)->buffer.size() < padded) continue;
    if (best == nullptr || (*at)->buffer.size() < (*best)->buffer.size()) best = at;
  }
  Overflow* block = nullptr;
  if (best != nullptr) {
    block = *best;
    *best = block->next;
  } else {
    block = new Overflow{Buffer(std::max<int64_t>(padded, 64)), 0, nullptr};
  }
  block->begin = offset;
  block->next = overflow_;
  overflow_ = block;
  return block->buffer.data();
}

void Workspace::release_to(int64_t mark) {
  used_ = mark;
  while (overflow_ != nullptr && overflow_->begin >= mark) {
    Overflow* block = std::exchange(overflow_, overflow_->next);
    block->next = spare_;
    spare_ = block;
  }
  if (used_ > 0 || spare_ == nullptr) return;
  delete_blocks();
  arena_ = Buffer(high_water_ + high_water_ / 4);
}

}  // namespace lathe
