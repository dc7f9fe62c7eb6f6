#include "server/admission.h"

#include "server/api_error.h"

namespace lathe {

Admission::Ticket Admission::admit(int64_t count) {
  if (count > max_) {
    throw ApiError(400,
                   str("the request asks for ", count, " choices; at most ", max_,
                       " fit into the queue (--max-num-seqs, --max-queue)"),
                   "n");
  }
  const std::lock_guard lock(mutex_);
  if (open_ + count > max_) {
    throw ApiError(429,
                   str("the queue is full: ", open_, " choices are running or waiting, at most ",
                       max_, " may (--max-num-seqs, --max-queue); try again later"),
                   "", "queue_full");
  }
  open_ += count;
  return {this, count};
}

Admission::Ticket::~Ticket() {
  if (admission_ == nullptr) return;
  const std::lock_guard lock(admission_->mutex_);
  admission_->open_ -= count_;
}

int64_t Admission::num_open() const {
  const std::lock_guard lock(mutex_);
  return open_;
}

}  // namespace lathe
