#include "model/timed_collective.h"

#include "tensor/cuda_check.h"

namespace lathe {

TimedCollective::~TimedCollective() {
  for (void* event : events_) cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

void TimedCollective::record(CudaStream stream) {
  if (num_used_ == events_.size()) {
    cudaEvent_t event = nullptr;
    cuda_check(cudaEventCreate(&event), "making an event");
    events_.push_back(event);
  }
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cuda_check(cudaStreamIsCapturing(stream, &capture), "asking whether a step is captured");
  cuda_check(
      cudaEventRecordWithFlags(static_cast<cudaEvent_t>(events_[num_used_++]), stream,
                               capture == cudaStreamCaptureStatusNone ? cudaEventRecordDefault
                                                                      : cudaEventRecordExternal),
      "recording an event");
}

void TimedCollective::all_reduce_sum(void* values, int64_t count, DType dtype, CudaStream stream) {
  record(stream);
  timed_.all_reduce_sum(values, count, dtype, stream);
  record(stream);
}

int64_t TimedCollective::nanoseconds() const {
  double milliseconds = 0;
  for (std::size_t i = 0; i + 1 < num_used_; i += 2) {
    float elapsed = 0;
    cuda_check(cudaEventElapsedTime(&elapsed, static_cast<cudaEvent_t>(events_[i]),
                                    static_cast<cudaEvent_t>(events_[i + 1])),
               "reading an event");
    milliseconds += double{elapsed};
  }
  return static_cast<int64_t>(1e6 * milliseconds);
}

}  // namespace lathe
