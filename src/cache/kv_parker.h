// Parking of a cache in the host's memory, on its threads.
//
// Keys are predicted as they are before RoPE; a live block has them behind it. Parking turns them
// back by their position, (x cos + y sin, y cos - x sin) / (cos^2 + sin^2), which costs a rounding
// of bf16 at most: far below any code's error.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "cache/coded_kv_cache.h"
#include "cache/kv_cache.h"
#include "cache/kv_codec.h"
#include "cache/live_blocks.h"
#include "cache/piece_parker.h"

namespace lathe {

class KvParker final : public PieceParker {
 public:
  // The cache must have live_blocks() (kUnsupported otherwise). It and the codec must outlive the
  // parker, and so must the tables of rope (per layer) unless rope_memory holds them; they must
  // reach the end of the longest sequence's last block.
  KvParker(KvCache& cache, const KvCodec& codec, std::vector<KvRope> rope,
           std::vector<Buffer> rope_memory = {});

  int64_t piece_tokens() const override { return piece_blocks_ * kBlockSize; }
  int64_t window() const override { return policy_.window; }
  int64_t piece_bytes(int64_t piece_idx) const override;
  int64_t live_bytes() const override { return piece_blocks_ * live_.shape().block_bytes(); }

  void park(const KvSequence& sequence, int64_t begin, int64_t count, Exec& exec,
            const std::function<void(int64_t, std::span<const std::byte>)>& done) override;
  void wake(std::span<const std::vector<std::byte>> pieces, int64_t begin,
            const KvSequence& sequence, Exec& exec) override;

 private:
  class LiveRows;
  int64_t num_sinks(int64_t piece_idx) const;
  int64_t sink_row_bytes() const;
  std::byte* plane(int64_t layer, const KvSequence& sequence, int64_t piece_idx, int64_t token,
                   bool is_keys) const;
  // A token's key or value out of its live block, or its exact row.
  void load(int64_t layer, const KvSequence& sequence, int64_t piece_idx, int64_t token,
            bool is_keys, float* row) const;
  void store(int64_t layer, const KvSequence& sequence, int64_t piece_idx, int64_t token,
             bool is_keys, const float* row);
  // Where a token's exact row lies; null: it has none.
  std::byte* sinks(int64_t layer, const KvSequence& sequence, int64_t piece_idx, int64_t token,
                   bool is_keys) const;
  void turn_back(int64_t layer, int64_t position, float* key) const;
  // Of the layer's keys in live blocks; null: none.
  const float* dropped_offset(int64_t layer) const;
  void park_one(const KvSequence& sequence, int64_t piece_idx, std::byte* piece, float* memory,
                Exec& exec);
  void wake_one(std::span<const std::byte> piece, int64_t piece_idx, const KvSequence& sequence,
                float* memory, Exec& exec);
  int64_t piece_floats() const { return piece_blocks_ * kBlockSize * live_.shape().kv_size(); }
  int64_t floats_per_thread() const;

  const KvCodec& codec_;
  const KvCodecPolicy policy_;
  LiveBlocks& live_;
  std::vector<KvRope> rope_;
  std::vector<Buffer> rope_memory_;
  int64_t piece_blocks_;
};

}  // namespace lathe
