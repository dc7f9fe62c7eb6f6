// Pieces of sequences as bytes that stand alone: a piece is chunk_tokens tokens of all layers in a
// codec's codes, and the first tokens of a sequence (sinks) as they were. The cache that they come
// from and go back to is a plain one with live blocks; nothing of it is kept in the meantime. So
// finished and preempted sequences cost 2 to 4 bits a number instead of 16, and decoding runs on
// live blocks at full speed.
//
// Keys are predicted as they are before RoPE; a live block has them behind it. Parking turns them
// back by their position, (x cos + y sin, y cos - x sin) / (cos^2 + sin^2), which costs a rounding
// of bf16 at most: far below any code's error.
//
// A piece: codes of its blocks, one after the other; then, for each layer, the keys (as attention
// reads them) and the values of its sinks, [num_sinks, kv_size] in bf16 from bf16 blocks, else
// fp32.
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

namespace lathe {

class KvParker {
 public:
  // The cache must have live_blocks() (kUnsupported otherwise). It and the codec must outlive the
  // parker, and so must the tables of rope (per layer) unless rope_memory holds them; they must
  // reach the end of the longest sequence's last block.
  KvParker(KvCache& cache, const KvCodec& codec, std::vector<KvRope> rope,
           std::vector<Buffer> rope_memory = {});

  int64_t piece_tokens() const { return piece_blocks_ * kBlockSize; }
  // At least so many of a sequence's latest tokens should stay exact.
  int64_t window() const { return policy_.window; }
  int64_t piece_bytes(int64_t piece_idx) const;
  // Bytes of the same tokens as live blocks.
  int64_t live_bytes() const { return piece_blocks_ * live_.shape().block_bytes(); }

  // Encodes pieces [begin, begin + count) of a sequence, whole ones that are committed, on all
  // threads. done(piece_idx, bytes) is then called for each, in ascending order, in this thread.
  void park(const KvSequence& sequence, int64_t begin, int64_t count, Exec& exec,
            const std::function<void(int64_t, std::span<const std::byte>)>& done);
  // Rebuilds pieces [begin, begin + pieces.size()) into blocks that the sequence has reserved and
  // shares with nobody. The caller counts the tokens. Any bytes of the right size become something.
  void wake(std::span<const std::vector<std::byte>> pieces, int64_t begin,
            const KvSequence& sequence, Exec& exec);

 private:
  class LiveRows;
  int64_t num_sinks(int64_t piece_idx) const;
  int64_t sink_row_bytes() const;
  std::byte* plane(int64_t layer, const KvSequence& sequence, int64_t piece_idx, int64_t token,
                   bool is_keys) const;
  void turn_back(int64_t layer, int64_t position, float* key) const;
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
