#include "base/rank_threads.h"

#include <utility>

#include "base/error.h"

namespace lathe {
namespace {

constexpr int kSpins = 4000;  // tens of microseconds

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// True when done() was within a moment.
template <typename Done>
bool spin_until(const Done& done) {
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return true;
    pause();
  }
  return false;
}

}  // namespace

RankThreads::RankThreads(int size) {
  for (int rank = 1; rank < size; ++rank) {
    workers_.emplace_back([this, rank] { worker_main(rank); });
  }
}

RankThreads::~RankThreads() {
  stops_ = true;
  ++generation_;
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void RankThreads::worker_main(int rank) {
  for (uint32_t seen = 0;; ++seen) {
    if (!spin_until([&] { return generation_.load() != seen; })) generation_.wait(seen);
    if (stops_) return;
    job_(context_, rank);
    if (num_running_.fetch_sub(1) == 1) num_running_.notify_one();
  }
}

void RankThreads::run_job(void* context, JobPointer job) {
  context_ = context;
  job_ = job;
  num_running_ = static_cast<uint32_t>(workers_.size());
  ++generation_;
  generation_.notify_all();
  job(context, 0);
  while (const uint32_t running = num_running_.load()) {
    if (!spin_until([&] { return num_running_.load() != running; })) num_running_.wait(running);
  }
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
}

bool RankThreads::keep_failure(std::exception_ptr failure) {
  const std::lock_guard lock(failure_mutex_);
  if (failure_ != nullptr) return false;
  failure_ = std::move(failure);
  return true;
}

bool Rendezvous::wait(bool agrees) {
  const auto check = [&] {
    if (aborted_) fail(ErrorCode::kCanceled, "another rank has failed");
  };
  std::unique_lock lock(mutex_);
  check();
  const uint64_t meeting = meetings_;
  all_agree_ = all_agree_ && agrees;
  if (++num_here_ == size_) {
    agreed_ = std::exchange(all_agree_, true);
    num_here_ = 0;
    ++meetings_;
    all_here_.notify_all();
    return agreed_;
  }
  lock.unlock();
  const auto is_over = [&] { return meetings_ != meeting || aborted_; };
  spin_until(is_over);
  lock.lock();
  all_here_.wait(lock, is_over);
  if (meetings_ == meeting) check();
  // Nobody can end the next meeting before this rank has come to it.
  return agreed_;
}

void Rendezvous::abort() noexcept {
  {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
  }
  all_here_.notify_all();
}

}  // namespace lathe
