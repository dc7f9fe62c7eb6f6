#include "model/step_buffers.h"

#include <algorithm>

#include "base/check.h"
#include "tensor/cuda_check.h"

namespace lathe {

StepShape shape_of(const ForwardBatch& batch) {
  StepShape shape = {.num_rows = static_cast<int64_t>(batch.token_ids.size()),
                     .num_sequences = static_cast<int64_t>(batch.sequences.size()),
                     .num_logits = static_cast<int64_t>(batch.logit_rows.size())};
  shape.only_long_runs = !batch.sequences.empty();
  for (const KvRows& rows : batch.sequences) {
    shape.only_long_runs = shape.only_long_runs && rows.num_rows > kAttentionDecodeRows;
    shape.max_rows_per_sequence = std::max(shape.max_rows_per_sequence, rows.num_rows);
    shape.max_context = std::max(shape.max_context, rows.sequence->num_tokens + rows.num_rows);
  }
  return shape;
}

StepBuffers::~StepBuffers() {
  if (sent_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(sent_));
  if (host_ != nullptr) cudaFreeHost(host_);
}

StepBuffers::Offsets StepBuffers::layout(const StepShape& shape) {
  Offsets offsets;
  int64_t end = 0;
  const auto take = [&end](int64_t count) {
    const int64_t begin = end;
    end += (count + 63) / 64 * 64;  // 256-byte aligned
    return begin;
  };
  offsets.token_ids = take(shape.num_rows);
  offsets.positions = take(shape.num_rows);
  offsets.row_sequence = take(shape.num_rows);
  offsets.query_begin = take(shape.num_sequences + 1);
  offsets.logit_rows = take(shape.num_logits);
  offsets.tables = take(shape.num_sequences * shape.table_stride());
  offsets.sink_blocks = take(shape.num_sequences);
  offsets.end = end;
  return offsets;
}

void StepBuffers::send(const ForwardBatch& batch, const StepShape& shape, const CudaKvLayers& cache,
                       CudaStream stream) {
  const auto num_rows = static_cast<int64_t>(batch.token_ids.size());
  const auto num_sequences = static_cast<int64_t>(batch.sequences.size());
  const auto num_logits = static_cast<int64_t>(batch.logit_rows.size());
  LATHE_CHECK(num_rows <= shape.num_rows && num_sequences <= shape.num_sequences &&
              num_logits <= shape.num_logits);
  shape_ = shape;
  offsets_ = layout(shape);
  if (sent_ == nullptr) {
    cudaEvent_t event = nullptr;
    cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    sent_ = event;
  }
  cuda_check(cudaEventSynchronize(static_cast<cudaEvent_t>(sent_)), "waiting for the GPU");
  if (offsets_.end > host_size_) {
    if (host_ != nullptr) cudaFreeHost(host_);
    host_ = nullptr;
    host_size_ = offsets_.end + offsets_.end / 2;
    cuda_check(
        cudaHostAlloc(reinterpret_cast<void**>(&host_),
                      static_cast<std::size_t>(host_size_) * sizeof(int32_t), cudaHostAllocDefault),
        "allocating pinned memory");
    device_ = DeviceBuffer();
    device_ = DeviceBuffer(host_size_ * static_cast<int64_t>(sizeof(int32_t)));
    ++generation_;
  }

  int32_t* token_ids = host_ + offsets_.token_ids;
  int32_t* positions = host_ + offsets_.positions;
  int32_t* row_sequence = host_ + offsets_.row_sequence;
  int32_t* query_begin = host_ + offsets_.query_begin;
  std::copy(batch.token_ids.begin(), batch.token_ids.end(), token_ids);
  std::fill(token_ids + num_rows, token_ids + shape.num_rows, 0);
  std::transform(batch.positions.begin(), batch.positions.end(), positions,
                 [](int64_t position) { return static_cast<int32_t>(position); });
  std::fill(positions + num_rows, positions + shape.num_rows, -1);
  std::fill(row_sequence, row_sequence + shape.num_rows, -1);
  long_runs_.clear();
  for (int64_t i = 0; i < num_sequences; ++i) {
    const KvRows& rows = batch.sequences[static_cast<std::size_t>(i)];
    if (rows.num_rows > kAttentionDecodeRows) long_runs_.push_back(static_cast<int32_t>(i));
    query_begin[i] = static_cast<int32_t>(rows.row_begin);
    std::fill_n(row_sequence + rows.row_begin, rows.num_rows, static_cast<int32_t>(i));
    const auto& blocks = rows.sequence->blocks;
    const int64_t used = blocks_for(rows.sequence->num_tokens + rows.num_rows);
    LATHE_CHECK(used <= static_cast<int64_t>(blocks.size()) && used <= shape.table_stride());
    std::transform(blocks.begin(), blocks.begin() + used,
                   host_ + offsets_.tables + i * shape.table_stride(),
                   [&](BlockId id) { return cache.table_entry(id); });
  }
  int32_t* sink_blocks = host_ + offsets_.sink_blocks;
  std::transform(batch.sequences.begin(), batch.sequences.end(), sink_blocks,
                 [](const KvRows& rows) { return rows.sequence->sink_block; });
  std::fill(sink_blocks + num_sequences, sink_blocks + shape.num_sequences, -1);
  for (int64_t i = num_sequences; i <= shape.num_sequences; ++i) {
    query_begin[i] = static_cast<int32_t>(num_rows);
  }
  int32_t* logit_rows = host_ + offsets_.logit_rows;
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), logit_rows);
  std::fill(logit_rows + num_logits, logit_rows + shape.num_logits, 0);

  cuda_check(cudaMemcpyAsync(device_.data(), host_,
                             static_cast<std::size_t>(offsets_.end) * sizeof(int32_t),
                             cudaMemcpyHostToDevice, stream),
             "sending a step to the GPU");
  cuda_check(cudaEventRecord(static_cast<cudaEvent_t>(sent_), stream), "recording an event");
}

CudaBatch StepBuffers::batch() const {
  const int32_t* base = device_.as<int32_t>();
  return {.positions = base + offsets_.positions,
          .row_sequence = base + offsets_.row_sequence,
          .query_begin = base + offsets_.query_begin,
          .block_tables = base + offsets_.tables,
          .table_stride = shape_.table_stride(),
          .sink_blocks = base + offsets_.sink_blocks,
          .num_rows = shape_.num_rows,
          .num_sequences = shape_.num_sequences,
          .only_long_runs = shape_.only_long_runs,
          .long_runs = long_runs_.data(),
          .num_long_runs = static_cast<int64_t>(long_runs_.size()),
          .max_rows_per_sequence = shape_.max_rows_per_sequence,
          .max_context = shape_.max_context};
}

}  // namespace lathe
