#include "tensor/exec.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lathe {

struct Workspace::Overflow {
  Buffer buffer;
  Overflow* next;
};

Workspace::~Workspace() {
  while (overflow_ != nullptr) delete std::exchange(overflow_, overflow_->next);
}

std::byte* Workspace::allocate(int64_t num_bytes) {
  LATHE_CHECK(num_bytes >= 0);
  const int64_t padded = (num_bytes + 63) / 64 * 64;
  const int64_t offset = used_;
  used_ += padded;
  high_water_ = std::max(high_water_, used_);
  if (used_ <= arena_.size()) return arena_.data() + offset;
  overflow_ = new Overflow{Buffer(std::max<int64_t>(padded, 64)), overflow_};
  return overflow_->buffer.data();
}

void Workspace::release_to(int64_t mark) {
  used_ = mark;
  if (used_ > 0 || overflow_ == nullptr) return;
  while (overflow_ != nullptr) delete std::exchange(overflow_, overflow_->next);
  arena_ = Buffer(high_water_ + high_water_ / 4);
}

}  // namespace lathe
