// Parking of a cache in a GPU's memory: encoded and rebuilt there, kept by the caller in the
// host's. Pieces have the layout of piece_parker.h, and their codes mean the same; their
// predictions are rounded otherwise (kernels/kv_rows/kv_rows_cuda.h), so a machine's pieces are for
// its kind.
//
// Some thousand rows at a time, a layer after the other: each predictor is one product for all of
// them, each plane one more kernel that goes from codes to live blocks. Meanwhile the next pieces
// are on their way.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/cuda_kv_cache.h"
#include "cache/cuda_kv_coder.h"
#include "cache/piece_parker.h"
#include "formats/kv_codec_file.h"
#include "kernels/cuda_context.h"
#include "tensor/device_buffer.h"

namespace lathe {

class CudaKvParker final : public PieceParker {
 public:
  // rope: per layer. All are borrowed but the file, which must have been validated. Takes memory on
  // the GPU: the predictors in fp32, and what a run of pieces needs (memory_bytes()). Throws
  // kUnsupported for uniform codes, kOutOfMemory.
  CudaKvParker(CudaKvCache& cache, const KvCodecFile& file, std::vector<KvRopeCuda> rope,
               CudaContext& context);
  ~CudaKvParker() override;

  int64_t piece_tokens() const override { return piece_blocks_ * kBlockSize; }
  int64_t window() const override { return window_; }
  int64_t piece_bytes(int64_t piece_idx) const override;
  int64_t live_bytes() const override { return piece_blocks_ * cache_.bytes_per_block(); }
  int64_t memory_bytes() const;

  void park(const KvSequence& sequence, int64_t begin, int64_t count, Exec& exec,
            const std::function<void(int64_t, std::span<const std::byte>)>& done) override;
  void wake(std::span<const std::vector<std::byte>> pieces, int64_t begin,
            const KvSequence& sequence, Exec& exec) override;

 private:
  struct Staging;

  int64_t num_sinks(int64_t piece_idx) const;
  int64_t sink_row_bytes() const;
  int64_t code_bytes() const { return piece_blocks_ * block_bytes_; }  // of a piece
  CudaKvCoder::Run run(int64_t num_rows) {
    return {.state = state_.data(),
            .state_rows = run_rows_,
            .num_rows = num_rows,
            .scratch = scratch_.as<float>()};
  }
  KvCodesCuda codes_at(int64_t offset, int64_t row_bytes, std::byte* codes) const;
  KvCodesCuda codes_of(int64_t layer, bool is_value, std::byte* codes) const;
  KvCodesCuda codes_of_latent(int64_t group, std::byte* codes) const;
  // All layers of the run that start_run() began, between its blocks and the pieces' codes.
  void decode_run(int64_t num_rows, std::byte* codes);
  void encode_run(int64_t num_rows, std::byte* codes);
  KvLiveRowsCuda live_rows(int64_t layer, bool is_value, bool turned) const;
  void start_run(const KvSequence& sequence, int64_t first_piece, int64_t num_pieces);
  void wake_sinks(std::span<const std::byte> sinks, int64_t piece_idx);
  std::vector<std::byte> park_sinks(int64_t piece_idx);

  CudaKvCache& cache_;
  CudaContext& context_;
  std::vector<KvRopeCuda> rope_;
  CudaKvCoder coder_;
  int64_t num_layers_, num_heads_, head_dim_, width_;
  BlockId sink_block_ = -1;  // of the run in progress, where its rows are a sequence's first
  int64_t sinks_, window_, piece_blocks_;
  int64_t run_pieces_;  // rebuilt together
  int64_t run_rows_;
  int64_t block_bytes_ = 0;
  std::vector<int64_t> key_offset_, value_offset_;  // [num_layers], in a block's codes
  std::vector<int64_t> latent_offset_;              // [groups]

  DeviceBuffer state_, scratch_;      // of coder_, for run_rows_
  DeviceBuffer exact_;                // [run_rows, width]
  DeviceBuffer rotations_;            // [different ropes][cos, sin][run_rows, rotary_dim / 2]
  DeviceBuffer ints_;                 // [run_rows] positions, [run_rows / kBlockSize] blocks
  std::vector<int64_t> rotation_of_;  // per layer, floats from the start of rotations_
  std::vector<int32_t> host_ints_;
  std::unique_ptr<Staging> staging_;
};

}  // namespace lathe
