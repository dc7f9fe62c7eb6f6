// What a step needs to know on the GPU, gathered in pinned host memory and sent in one copy.
#pragma once
#include <cstdint>
#include <vector>

#include "cache/cuda_kv_layers.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda_context.h"
#include "model/model.h"

namespace lathe {

// The sizes that a step's launches, and so a CUDA graph, depend on.
struct StepShape {
  int64_t num_rows = 0;
  int64_t num_sequences = 0;
  int64_t num_logits = 0;
  int64_t max_rows_per_sequence = 0;
  bool only_long_runs = false;  // CudaBatch::only_long_runs
  int64_t max_context = 0;

  bool operator==(const StepShape&) const = default;
  int64_t table_stride() const { return blocks_for(max_context); }
};

// The sizes of a batch as it is, without padding.
StepShape shape_of(const ForwardBatch& batch);

class StepBuffers {
 public:
  StepBuffers() = default;
  ~StepBuffers();
  StepBuffers(const StepBuffers&) = delete;
  StepBuffers& operator=(const StepBuffers&) = delete;

  // The rows of `batch`, padded to `shape` (which is at least as large in every size), on their way
  // to the device. Padding rows have token 0, no sequence and position -1; padding logit rows are
  // row 0. Block tables are what `cache` makes of the sequences' blocks (a coded one
  // knows when its step has begun); blocks of sinks, of no use to it, go as they are. Waits until
  // the copy before this one has left the host's memory.
  void send(const ForwardBatch& batch, const StepShape& shape, const CudaKvLayers& cache,
            CudaStream stream);

  // Device memory, valid until a larger shape is sent (generation() changes then).
  CudaBatch batch() const;
  const int32_t* token_ids() const { return device_.as<int32_t>() + offsets_.token_ids; }
  const int32_t* logit_rows() const { return device_.as<int32_t>() + offsets_.logit_rows; }
  int64_t generation() const { return generation_; }

 private:
  struct Offsets {  // in int32
    int64_t token_ids = 0, positions = 0, row_sequence = 0, query_begin = 0, logit_rows = 0,
            tables = 0, sink_blocks = 0, end = 0;
  };
  static Offsets layout(const StepShape& shape);

  StepShape shape_;
  Offsets offsets_;
  DeviceBuffer device_;
  int32_t* host_ = nullptr;  // pinned
  int64_t host_size_ = 0;    // in int32
  void* sent_ = nullptr;     // cudaEvent_t behind the last copy
  int64_t generation_ = 0;
  std::vector<int32_t> long_runs_;  // CudaBatch::long_runs
};

}  // namespace lathe
