// A fork-join pool for loops of some microseconds and more.
//
// Chunks are claimed one by one (dynamic), so that a core which another process holds delays the
// loop by one chunk, not by its whole share: a worker that never wakes up claims nothing and nobody
// waits for it. Workers spin for a while after a loop, since the next one of a forward pass follows
// within microseconds, then park.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace lathe {

class ThreadPool {
 public:
  // num_threads counts the calling thread: 1 starts none. 0 takes the machine's core count (what
  // the process may run on).
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, thread_idx) for consecutive pieces of [0, n), each at most `grain` long
  // (grain >= 1), and returns when all are done. thread_idx is in [0, num_threads()), so it can
  // name a scratch area. The first exception of a piece is rethrown here after the loop has ended;
  // the pieces not yet started are then skipped. A call from inside a body runs in that thread
  // alone, with its thread_idx. Calls from several threads take turns. Does not allocate.
  template <typename Body>
  void parallel_for(int64_t n, int64_t grain, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(n, grain, const_cast<std::remove_const_t<Plain>*>(&body),
        [](void* context, int64_t begin, int64_t end, int thread_idx) {
          (*static_cast<Plain*>(context))(begin, end, thread_idx);
        });
  }

 private:
  using BodyPointer = void (*)(void* context, int64_t begin, int64_t end, int thread_idx);
  void run(int64_t n, int64_t grain, void* context, BodyPointer body);
  void work_on_current_loop(int thread_idx);
  void worker_main(int thread_idx);

  std::vector<std::thread> workers_;
  std::mutex callers_;  // one loop at a time

  // The loop in progress. ticket_ is generation << 32 | next chunk. A claim is a compare-exchange
  // on it, so a worker that wakes up late cannot claim a chunk of a loop it has not seen; while the
  // fields below are being rewritten, the chunk part holds kClosed and no claim succeeds.
  static constexpr uint64_t kClosed = 0xffffffff;
  alignas(64) std::atomic<uint64_t> ticket_{kClosed};
  alignas(64) std::atomic<int64_t> chunks_left_{0};
  alignas(64) std::atomic<int64_t> num_chunks_{0};
  std::atomic<int64_t> n_{0};
  std::atomic<int64_t> grain_{1};
  std::atomic<void*> context_{nullptr};
  std::atomic<BodyPointer> body_{nullptr};
  std::atomic<bool> failed_{false};
  std::exception_ptr first_exception_;
  std::mutex exception_mutex_;

  std::atomic<uint32_t> wake_{0};  // workers park on this
  std::atomic<int> parked_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace lathe
