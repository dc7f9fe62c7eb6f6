// A collective whose sums are timed on the GPU, by events around each. They become part of a CUDA
// graph that is captured meanwhile, and its replays are timed too.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/collective/collective.h"

namespace lathe {

class TimedCollective final : public Collective {
 public:
  // `timed` must outlive it.
  explicit TimedCollective(Collective& timed) : timed_(timed) {}
  ~TimedCollective() override;

  int rank() const override { return timed_.rank(); }
  int size() const override { return timed_.size(); }
  void all_reduce_sum(void* values, int64_t count, DType dtype, CudaStream stream) override;
  void send(const float* values, int64_t count, CudaStream stream) override {
    timed_.send(values, count, stream);
  }
  void receive(std::span<const Part> parts, CudaStream stream) override {
    timed_.receive(parts, stream);
  }
  bool agree(bool mine) override { return timed_.agree(mine); }
  void abort() noexcept override { timed_.abort(); }

  // The sums enqueued or captured from here on are a step's.
  void begin_step() { num_used_ = 0; }
  // Of the step that was enqueued, captured or replayed last; the stream must be synchronized.
  int64_t nanoseconds() const;

 private:
  void record(CudaStream stream);

  Collective& timed_;
  std::vector<void*> events_;  // cudaEvent_t: begin and end of each sum
  std::size_t num_used_ = 0;
};

}  // namespace lathe
