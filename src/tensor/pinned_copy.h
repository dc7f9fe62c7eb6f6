// Much memory from the GPU to ordinary memory of the host, through two pieces of pinned memory: the
// GPU fills one while threads empty the other. A copy straight into ordinary memory goes through a
// small buffer of the driver, by one thread: some 7 GB/s where the bus has 50.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/thread_pool.h"
#include "tensor/cuda_stream.h"

namespace lathe {

class PinnedCopy {
 public:
  static constexpr int64_t kMaxPieceBytes = int64_t{32} << 20;

  PinnedCopy() = default;
  ~PinnedCopy();
  PinnedCopy(const PinnedCopy&) = delete;
  PinnedCopy& operator=(const PinnedCopy&) = delete;

  // Behind what `stream` has been given so far; done at return. Allocates only where it has never
  // copied as much. Of the device that is current. Throws kDevice and kOutOfMemory.
  void to_host(void* to, const void* from, int64_t num_bytes, CudaStream stream,
               ThreadPool& threads);

 private:
  void reserve(int64_t piece_bytes);

  std::byte* pieces_ = nullptr;  // pinned, 2 * piece_bytes_
  int64_t piece_bytes_ = 0;
  void* filled_[2] = {};  // events
};

}  // namespace lathe
