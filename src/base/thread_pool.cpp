#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"

namespace lathe {
namespace {

// Long enough to bridge the gaps inside a forward pass (a few microseconds), short enough not to
// burn a core that somebody else could use.
constexpr auto kSpinTime = std::chrono::microseconds(100);

thread_local const ThreadPool* current_pool = nullptr;  // set while this thread is in a body
thread_local int current_thread_idx = 0;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Spins until done() or the time is up, giving the core away now and then: on a machine with fewer
// free cores than threads the thread we wait for may need this very core.
template <typename Done>
bool spin_until(Done done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  for (int round = 1;; ++round) {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause_cpu();
    }
    if (std::chrono::steady_clock::now() > deadline) return done();
    if (round % 16 == 0) std::this_thread::yield();
  }
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads <= 0) num_threads = usable_cores();
  workers_.reserve(static_cast<std::size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) {
    workers_.emplace_back([this, i] { worker_main(i); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t n, int64_t grain, void* context, BodyPointer body) {
  LATHE_CHECK(grain >= 1);
  if (n <= 0) return;
  if (current_pool == this) {  // nested: this thread alone
    body(context, 0, n, current_thread_idx);
    return;
  }
  int64_t num_chunks = (n - 1) / grain + 1;
  if (num_chunks >= static_cast<int64_t>(kClosed)) {  // chunk numbers are 32 bits
    grain = n / (int64_t{1} << 20) + 1;
    num_chunks = (n - 1) / grain + 1;
  }
  const std::scoped_lock lock(callers_);
  if (workers_.empty() || num_chunks == 1) {
    const auto* const outer_pool = current_pool;
    const int outer_idx = current_thread_idx;
    current_pool = this;
    current_thread_idx = 0;
    struct Restore {
      const ThreadPool* pool;
      int idx;
      ~Restore() {
        current_pool = pool;
        current_thread_idx = idx;
      }
    } restore{outer_pool, outer_idx};
    for (int64_t begin = 0; begin < n; begin += grain) {
      body(context, begin, std::min(begin + grain, n), 0);
    }
    return;
  }

  const uint64_t generation = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  n_.store(n, std::memory_order_relaxed);
  grain_.store(grain, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  body_.store(body, std::memory_order_relaxed);
  num_chunks_.store(num_chunks, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  chunks_left_.store(num_chunks, std::memory_order_relaxed);
  ticket_.store(generation << 32, std::memory_order_seq_cst);
  wake_.fetch_add(1, std::memory_order_seq_cst);
  if (parked_.load(std::memory_order_seq_cst) > 0) wake_.notify_all();

  work_on_current_loop(0);
  const auto all_done = [&] { return chunks_left_.load(std::memory_order_acquire) == 0; };
  while (!spin_until(all_done)) {
    const int64_t left = chunks_left_.load(std::memory_order_acquire);
    if (left != 0) chunks_left_.wait(left, std::memory_order_acquire);
  }
  ticket_.store(generation << 32 | kClosed, std::memory_order_release);
  if (failed_.load(std::memory_order_relaxed)) {
    std::exception_ptr exception;
    {
      const std::scoped_lock exception_lock(exception_mutex_);
      std::swap(exception, first_exception_);
    }
    std::rethrow_exception(exception);
  }
}

void ThreadPool::work_on_current_loop(int thread_idx) {
  const auto* const outer_pool = current_pool;
  const int outer_idx = current_thread_idx;
  current_pool = this;
  current_thread_idx = thread_idx;
  for (;;) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    const int64_t chunk = static_cast<int64_t>(ticket & kClosed);
    const int64_t num_chunks = num_chunks_.load(std::memory_order_relaxed);
    const int64_t n = n_.load(std::memory_order_relaxed);
    const int64_t grain = grain_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    const BodyPointer body = body_.load(std::memory_order_relaxed);
    if (chunk >= num_chunks || (ticket & kClosed) == kClosed) break;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    // The claim succeeded, so the loop is not over and the fields read above belong to it.
    if (!failed_.load(std::memory_order_relaxed)) {
      try {
        body(context, chunk * grain, std::min((chunk + 1) * grain, n), thread_idx);
      } catch (...) {
        const std::scoped_lock lock(exception_mutex_);
        if (!first_exception_) first_exception_ = std::current_exception();
        failed_.store(true, std::memory_order_relaxed);
      }
    }
    if (chunks_left_.fetch_sub(1, std::memory_order_acq_rel) == 1) chunks_left_.notify_all();
  }
  current_pool = outer_pool;
  current_thread_idx = outer_idx;
}

void ThreadPool::worker_main(int thread_idx) {
  uint32_t seen = 0;
  while (!stopping_.load()) {
    const auto something_new = [&] { return wake_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(something_new)) {
      parked_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(seen, std::memory_order_seq_cst);
      parked_.fetch_sub(1, std::memory_order_seq_cst);
    }
    seen = wake_.load(std::memory_order_acquire);
    work_on_current_loop(thread_idx);
  }
}

}  // namespace lathe
