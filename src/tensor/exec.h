// What a kernel runs with: threads and scratch memory. Passed down as a parameter, so that two
// engines can live in one process.
#pragma once
#include <cstdint>

#include "base/thread_pool.h"
#include "tensor/buffer.h"

namespace lathe {

// A stack of scratch memory: allocations live until the Scope they were made in ends. Grows while
// warming up (a too small arena takes extra blocks, which the layers of a model use one after the
// other, and is rebuilt at the next empty point), then never allocates again.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  class Scope {
   public:
    explicit Scope(Workspace& workspace) : workspace_(workspace), mark_(workspace.used_) {}
    ~Scope() { workspace_.release_to(mark_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Workspace& workspace_;
    int64_t mark_;
  };

  // 64-byte aligned, uninitialised, valid until the innermost Scope ends.
  std::byte* allocate(int64_t num_bytes);
  template <typename T>
  T* allocate_as(int64_t count) {
    return reinterpret_cast<T*>(allocate(count * static_cast<int64_t>(sizeof(T))));
  }
  int64_t capacity() const { return arena_.size(); }
  int64_t high_water() const { return high_water_; }

 private:
  void release_to(int64_t mark);
  void delete_blocks();
  struct Overflow;
  Buffer arena_;
  Overflow* overflow_ = nullptr;  // extra blocks in use while the arena is too small, latest first
  Overflow* spare_ = nullptr;     // and those whose scope has ended
  int64_t used_ = 0;
  int64_t high_water_ = 0;
};

struct Exec {
  ThreadPool& threads;
  Workspace& workspace;
  int cuda_device = -1;  // the GPU that models are loaded to; -1: the CPU computes

  bool on_cuda() const { return cuda_device >= 0; }
};

}  // namespace lathe
