// The paged key-value cache. Blocks of kBlockSize tokens are allocated from a pool and listed, per
// sequence, in a block table; what a block holds is a codec's business.
//
// A *live* block is read directly by attention (kv_format.h). A codec
// that rebuilds a layer's keys and values from the layer below (kv_codec.h, spec/aqua-kv.md) keeps
// the first tokens (sinks) and the latest window in full precision, stores keys before RoPE, and
// decodes layer by layer in order: begin_step() -> for each layer 0..L-1: append, views. That
// order, the pre-RoPE keys and the exact window are part of this interface, although the plain
// codecs need none of them. A cache in a GPU's memory (cuda_kv_cache.h) is filled and read by the
// device's own kernels instead: it has no append and no views.
//
// Blocks are counted references: fork() lets a sequence share the blocks of another (prefix cache,
// n > 1 samples). Whoever writes into a shared block gets a copy of it first, in reserve().
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/kv_format.h"
#include "formats/model_config.h"
#include "kernels/attention/attention.h"
#include "tensor/exec.h"

namespace lathe {

using BlockId = int32_t;
class CudaKvLayers;
class LiveBlocks;

// Blocks that hold so many tokens.
constexpr int64_t blocks_for(int64_t num_tokens) {
  return (num_tokens + kBlockSize - 1) / kBlockSize;
}

// The cache of one sequence: its blocks in order of position. A plain value: copying one does not
// take references (use KvCache::fork), dropping one does not give them back (KvCache::release).
struct KvSequence {
  std::vector<BlockId> blocks;  // id >= 0: a live block; id < 0: coded block ~id
  int64_t num_tokens = 0;       // committed
  BlockId sink_block = -1;      // the block that keeps the exact sinks, a live one; -1: none
};

// Numbers of blocks, by the memory they come from. Plain caches have live blocks only.
struct KvBlocks {
  int64_t live = 0;
  int64_t coded = 0;

  KvBlocks& operator-=(const KvBlocks& other) {
    live -= other.live;
    coded -= other.coded;
    return *this;
  }
  bool operator==(const KvBlocks&) const = default;
  bool fit_into(const KvBlocks& room) const { return live <= room.live && coded <= room.coded; }
};

// New rows of one sequence in this step. A sequence appears at most once in a step.
struct KvRows {
  KvSequence* sequence = nullptr;
  int64_t row_begin = 0;  // in the flat list of rows
  int64_t num_rows = 0;   // positions num_tokens .. num_tokens + num_rows - 1
};

// Not for use from several threads at once. After warm-up (block tables made by new_sequence, the
// largest step seen once) nothing here allocates memory.
class KvCache {
 public:
  virtual ~KvCache() = default;

  virtual int64_t num_blocks() const = 0;
  virtual int64_t num_free_blocks() const = 0;
  virtual int64_t bytes_per_block() const = 0;
  virtual KvBlocks all_blocks() const { return {.live = num_blocks(), .coded = 0}; }
  virtual KvBlocks free_blocks() const { return {.live = num_free_blocks(), .coded = 0}; }
  virtual int64_t bytes_per_coded_block() const { return 0; }  // 0: there are none
  // Blocks of sequences that are not idle; one that several share counts once.
  virtual KvBlocks running_blocks() const = 0;
  // The most that the sequence will hold beyond what it holds now, on its way to num_tokens tokens
  // in steps of up to max_rows rows.
  virtual KvBlocks blocks_needed(const KvSequence& sequence, int64_t num_tokens,
                                 int64_t max_rows) const = 0;
  virtual int64_t max_sequence_tokens() const = 0;
  virtual KvElement element() const = 0;
  // The memory behind block ids, where all blocks are live and in the host's memory; else null.
  virtual LiveBlocks* live_blocks() { return nullptr; }
  // How a GPU's decoder reads it, where it lies in a GPU's memory (cuda_kv_layers.h); else null.
  virtual CudaKvLayers* cuda_layers() { return nullptr; }

  // An empty sequence whose block table has room for max_sequence_tokens.
  KvSequence new_sequence() const;

  // Makes room for num_rows more tokens, and makes the block that the first of them goes into the
  // sequence's own. False when the pool is exhausted; the sequence is then unchanged. Throws
  // kInvalidArgument beyond max_sequence_tokens.
  virtual bool reserve(KvSequence& sequence, int64_t num_rows) = 0;
  // Makes room for tokens that a parker will wake (piece_parker.h), whole pieces up to num_tokens.
  // May drop the sequence's last tokens, those that cannot stand before woken ones. False when
  // there is none; the sequence is then unchanged. truncate() drops what turns out to be missing.
  virtual bool reserve_woken(KvSequence& sequence, int64_t num_tokens) {
    return reserve(sequence, num_tokens - sequence.num_tokens);
  }
  // Drops tokens behind num_tokens (rejected speculation, a stop in the middle), reserved room too,
  // and frees blocks.
  virtual void truncate(KvSequence& sequence, int64_t num_tokens) = 0;
  // Gives all blocks back; the sequence is empty again and usable.
  virtual void release(KvSequence& sequence) = 0;
  // From now on the sequence does not run and is kept for later ones only (true), or no longer;
  // while idle it must not change.
  virtual void set_idle(const KvSequence& sequence, bool idle) = 0;
  // Makes `target` (empty) share the first num_tokens committed tokens of `source`.
  virtual void fork(const KvSequence& source, int64_t num_tokens, KvSequence& target) = 0;

  // One forward step over rows: begin_step, then per layer append followed by views, then commit.
  // The rows must have been reserved; `rows` must stay valid until commit.
  virtual void begin_step(std::span<const KvRows> rows, Exec& exec) = 0;
  // k_raw (before RoPE, after any q/k norm), k (after RoPE), v: [total_rows, num_kv_heads *
  // head_dim] with the given row stride, indexed by KvRows::row_begin.
  virtual void append(int64_t layer, const float* k_raw, const float* k, const float* v,
                      int64_t stride, Exec& exec) = 0;
  // Views of the blocks of rows[i] that attention at `layer` may touch; block b's entry covers
  // positions [b * kBlockSize, ...). Valid until the next append or commit.
  virtual std::span<const KvBlockView> views(int64_t layer, int64_t rows_idx) = 0;
  // Exact rows of their first positions, beside views() (AttentionSegment::sinks).
  virtual KvBlockView sinks(int64_t /*layer*/, int64_t /*rows_idx*/) { return {}; }
  // Adds the rows to their sequences' num_tokens.
  virtual void commit() = 0;
  // Ends a step that failed (an error between begin_step and commit): nothing was added.
  virtual void abandon_step() = 0;
};

// What all caches ask of their sizes. Throws kInvalidArgument, or kUnsupported for an odd head_dim.
void check_cache_size(const ModelConfig& config, int64_t num_tokens, int64_t max_sequence_tokens);

// Blocks of a cache for so many tokens, in sequences of so many: with one more for each of those
// where a sequence's first tokens are kept exactly too.
int64_t cache_blocks(int64_t num_tokens, int64_t max_sequence_tokens, bool keeps_sinks);

// A cache in the host's memory with room for num_tokens tokens (rounded up to blocks) in one
// format. Throws kOutOfMemory with the size it wanted, kUnsupported when the format cannot have
// the model's head_dim.
std::unique_ptr<KvCache> make_kv_cache(const ModelConfig& config, KvFormat format,
                                       int64_t num_tokens, int64_t max_sequence_tokens);

}  // namespace lathe
