// A cache whose older blocks are codes, in the host's memory (coded_cache.h has which and when).
//
// A live block holds what attention reads and, beside it, the keys before RoPE. In a step,
// append(layer) rebuilds that layer of all coded blocks in use from the rebuilt layer below,
// applies RoPE, and views() points to the result. Blocks are encoded and rebuilt in runs of a few,
// so that their predictions are one matrix product each.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "cache/coded_cache.h"
#include "cache/live_blocks.h"
#include "cache/piece_parker.h"
#include "tensor/buffer.h"

namespace lathe {

// The rotation of one layer's keys (model/rope_table.h makes the tables).
struct KvRope {
  const float* cos = nullptr;  // [num_positions, rotary_dim / 2]
  const float* sin = nullptr;
  int64_t num_positions = 0;
  int64_t rotary_dim = 0;
  const float* key_offset = nullptr;  // [kv_size], or null: what live keys are without where
                                      // kv_drops_key_offset() (kernels/attention/kv_codes.h)
};

class CodedKvCache final : public CodedCache {
 public:
  // rope: per layer; its tables and the codec must outlive the cache, unless rope_memory holds the
  // tables. Throws kOutOfMemory, kInvalidArgument.
  CodedKvCache(const ModelConfig& config, const KvCodec& codec, std::vector<KvRope> rope,
               const CodedKvCacheOptions& options, std::vector<Buffer> rope_memory = {});

  int64_t bytes_per_block() const override;
  int64_t bytes_per_coded_block() const override { return codec_.bytes_per_block(); }
  KvElement element() const override { return live_.shape().element; }
  void append(int64_t layer, const float* k_raw, const float* k, const float* v, int64_t stride,
              Exec& exec) override;
  std::span<const KvBlockView> views(int64_t layer, int64_t rows_idx) override;

  // Pieces of this cache's codes, as they are (coded_kv_parker.cpp); the cache must outlive it.
  // Throws kUnsupported where the codec's sinks are not fewer than a block has tokens.
  std::unique_ptr<PieceParker> make_parker();

 private:
  void encode_blocks(std::span<const EncodeJob> jobs, Exec& exec) override;
  void wake_blocks(std::span<const Rebuilt> blocks, const BlockId* live, Exec& exec) override;
  void copy_live_block(BlockId from, BlockId to) override;
  void start_step(Exec& exec) override;

  // The codes of jobs[i] to to(i), [bytes_per_coded_block()].
  void encode_to(std::span<const EncodeJob> jobs, const std::function<std::byte*(int64_t)>& to,
                 Exec& exec);
  void rebuild_live(std::span<const Rebuilt> blocks, const BlockId* live, float* scratch,
                    Exec& exec);
  KvLayerRows decode_run(int64_t layer, std::span<const Rebuilt> blocks, float* state,
                         float* scratch, Exec& exec);
  void store_rows(int64_t layer, const Rebuilt& block, KvLayerRows rows, std::byte* keys,
                  std::byte* values, float* scratch, Exec& exec);
  std::byte* raw_keys(int64_t layer, BlockId block);
  std::byte* codes(BlockId coded) { return codes_.data() + coded * codec_.bytes_per_block(); }
  std::byte* view_memory(std::size_t slot);
  int64_t block_floats() const { return kBlockSize * live_.shape().kv_size(); }
  // Of one thread: the codec's state and scratch for a run, and rows of one block.
  int64_t state_floats() const;
  int64_t scratch_floats() const;
  class LiveRows;
  class Parker;

  const KvCodec& codec_;
  std::vector<KvRope> rope_;
  std::vector<Buffer> rope_memory_;
  LiveBlocks live_;
  Buffer raw_;    // [layer][live block][kBlockSize, kv_size], the live blocks' keys before RoPE
  Buffer codes_;  // [coded block][bytes_per_block]

  // The step in progress.
  std::vector<KvBlockView> views_;
  std::vector<std::size_t> view_begin_;
  int64_t run_blocks_ = 1;  // slots that are rebuilt together
  Buffer state_memory_;     // [run][state_floats()]
  Buffer view_memory_;      // [slot][keys, values] as attention reads them
};

}  // namespace lathe
