// Threads that each do their part of one job at the same time: ranks. Unlike the pieces of
// ThreadPool::parallel_for(), which one thread may do one after the other, ranks wait for one
// another inside the job, so each has a thread of its own, always the same one.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace lathe {

class RankThreads {
 public:
  // Rank 0 is the thread that calls run(); size - 1 are started.
  explicit RankThreads(int size);
  ~RankThreads();
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(rank) on all ranks at once; returns when all have ended. When bodies throw, the
  // first to do so is rethrown here; on_failure(), which must not throw, is called once then, by
  // the rank that failed and before the others are waited for: it wakes those that wait for that
  // rank. Used by one thread at a time.
  template <typename Body, typename OnFailure>
  void run(Body&& body, OnFailure&& on_failure) {
    auto job = [&](int rank) {
      try {
        body(rank);
      } catch (...) {
        if (keep_failure(std::current_exception())) on_failure();
      }
    };
    using Job = decltype(job);
    run_job(&job, [](void* context, int rank) { (*static_cast<Job*>(context))(rank); });
  }

 private:
  using JobPointer = void (*)(void* context, int rank);
  void run_job(void* context, JobPointer job);
  bool keep_failure(std::exception_ptr failure);  // true: it is the first
  void worker_main(int rank);

  std::vector<std::thread> workers_;
  void* context_ = nullptr;
  JobPointer job_ = nullptr;
  std::atomic<uint32_t> generation_{0};  // one more for each job
  std::atomic<uint32_t> num_running_{0};
  std::atomic<bool> stops_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

// Where ranks wait for one another. Spins for a moment before it sleeps: those who meet here have
// mostly come the same way.
class Rendezvous {
 public:
  explicit Rendezvous(int size) : size_(size) {}
  // Returns when all ranks have come: whether all of them said true. Throws kCanceled from abort()
  // on.
  bool wait(bool agrees = true);
  // For good: who waits, and who comes later, gets the error.
  void abort() noexcept;

 private:
  const int size_;
  std::mutex mutex_;
  std::condition_variable all_here_;
  int num_here_ = 0;
  bool all_agree_ = true;  // of those who are here
  bool agreed_ = true;     // of the meeting before
  std::atomic<uint64_t> meetings_{0};
  std::atomic<bool> aborted_{false};
};

}  // namespace lathe
