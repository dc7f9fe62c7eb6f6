// What the ranks of one model exchange in a step: sums, and parts for rank 0. Between threads of
// one process: on the CPU by memory (thread_collective.h), on GPUs by NCCL (nccl_collective.h).
// Every rank makes the same calls in the same order, from a thread of its own.
#pragma once
#include <cstdint>
#include <span>

#include "tensor/cuda_stream.h"
#include "tensor/dtype.h"

namespace lathe {

// Memory, and the stream that the work is enqueued on, are those of the rank's device. All calls
// throw kCanceled once a rank has failed (abort()).
class Collective {
 public:
  virtual ~Collective() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // values[count] of every rank become their sum over the ranks, the same bits on all of them; a
  // sum does not depend on what else is in `values`. kF32, on GPUs kBF16 too.
  virtual void all_reduce_sum(void* values, int64_t count, DType dtype, CudaStream stream) = 0;

  // Numbers for rank 0: it calls receive() with room for parts[i] from rank i + 1, while the others
  // call send().
  struct Part {
    float* values;
    int64_t count;
  };
  virtual void send(const float* values, int64_t count, CudaStream stream) = 0;
  virtual void receive(std::span<const Part> parts, CudaStream stream) = 0;

  // Whether all ranks say true; waits for them on the host.
  virtual bool agree(bool mine) = 0;

  // Ends what the others wait for, and every call from now on. From any thread.
  virtual void abort() noexcept = 0;
};

}  // namespace lathe
