#include "tensor/pinned_copy.h"

#include <algorithm>
#include <cstring>

#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int64_t kGrain = int64_t{256} << 10;  // bytes that one thread empties at a time

cudaEvent_t event(void* handle) { return static_cast<cudaEvent_t>(handle); }

}  // namespace

PinnedCopy::~PinnedCopy() {
  for (void* filled : filled_) {
    if (filled != nullptr) cudaEventDestroy(event(filled));
  }
  if (pieces_ != nullptr) cudaFreeHost(pieces_);
}

// Nothing is being copied: to_host() waits for all of its copies.
void PinnedCopy::reserve(int64_t piece_bytes) {
  for (void*& filled : filled_) {
    if (filled != nullptr) continue;
    cudaEvent_t made = nullptr;
    cuda_check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "making an event");
    filled = made;
  }
  if (piece_bytes <= piece_bytes_) return;
  if (pieces_ != nullptr) cudaFreeHost(pieces_);
  pieces_ = nullptr;
  piece_bytes_ = 0;
  cuda_check(cudaHostAlloc(reinterpret_cast<void**>(&pieces_),
                           2 * static_cast<std::size_t>(piece_bytes), cudaHostAllocDefault),
             "allocating pinned memory");
  piece_bytes_ = piece_bytes;
}

void PinnedCopy::to_host(void* to, const void* from, int64_t num_bytes, CudaStream stream,
                         ThreadPool& threads) {
  if (num_bytes <= 0) return;
  reserve(std::min(num_bytes, kMaxPieceBytes));
  const int64_t num_pieces = (num_bytes + piece_bytes_ - 1) / piece_bytes_;
  const auto size_of = [&](int64_t i) {
    return std::min(piece_bytes_, num_bytes - i * piece_bytes_);
  };
  const auto fill = [&](int64_t i) {
    cuda_check(
        cudaMemcpyAsync(pieces_ + i % 2 * piece_bytes_,
                        static_cast<const std::byte*>(from) + i * piece_bytes_,
                        static_cast<std::size_t>(size_of(i)), cudaMemcpyDeviceToHost, stream),
        "copying results from the GPU");
    cuda_check(cudaEventRecord(event(filled_[i % 2]), stream), "recording an event");
  };
  try {
    fill(0);
    for (int64_t i = 0; i < num_pieces; ++i) {
      if (i + 1 < num_pieces) fill(i + 1);  // the piece that was emptied in the round before
      cuda_check(cudaEventSynchronize(event(filled_[i % 2])), "waiting for the GPU");
      const std::byte* piece = pieces_ + i % 2 * piece_bytes_;
      std::byte* place = static_cast<std::byte*>(to) + i * piece_bytes_;
      threads.parallel_for(size_of(i), kGrain, [&](int64_t begin, int64_t end, int) {
        std::memcpy(place + begin, piece + begin, static_cast<std::size_t>(end - begin));
      });
    }
  } catch (...) {
    cudaStreamSynchronize(stream);  // a copy may still be on its way into the pieces
    throw;
  }
}

}  // namespace lathe
