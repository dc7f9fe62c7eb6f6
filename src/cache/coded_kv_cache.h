// A cache whose older blocks are codes. Per sequence, in order of position:
//
//   [ sinks, exact | coded blocks ........................ | window and newer, exact (live) ]
//
// A live block holds what attention reads and, beside it, the keys before RoPE. When a step begins
// and a sequence has window + chunk_tokens exact tokens behind its codes, its oldest chunk is
// encoded; so the step that fills a chunk still attends to exact values, and tokens that a verifier
// rejects after commit() are gone before anything of theirs is encoded. In a step, append(layer)
// rebuilds that layer of all coded blocks in use (each once, however many sequences share it), from
// the rebuilt layer below, applies RoPE, and views() points to the result. Blocks are encoded and
// rebuilt in runs of a few, so that their predictions are one matrix product each.
//
// park() encodes a whole sequence (idle, preempted), wake() rebuilds all layers of a sequence's
// blocks once and makes them live: with encode_while_running off, that is the only use of the
// codec, and decoding runs at the speed of the plain cache.
//
// In a block table, id >= 0 is a live block and id < 0 is coded block ~id.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "cache/block_pool.h"
#include "cache/kv_cache.h"
#include "cache/kv_codec.h"
#include "cache/live_blocks.h"
#include "tensor/buffer.h"

namespace lathe {

// The rotation of one layer's keys (model/rope_table.h makes the tables).
struct KvRope {
  const float* cos = nullptr;  // [num_positions, rotary_dim / 2]
  const float* sin = nullptr;
  int64_t num_positions = 0;
  int64_t rotary_dim = 0;
};

struct CodedKvCacheOptions {
  KvFormat live_format = KvFormat::kBF16;
  int64_t live_tokens = 0;   // room for exact tokens, of all sequences
  int64_t coded_tokens = 0;  // room for coded tokens
  int64_t max_sequence_tokens = 0;
  bool encode_while_running = true;
};

// Enough live room for num_sequences sequences that run at once in steps of up to max_rows rows,
// and codes for num_tokens tokens.
CodedKvCacheOptions coded_cache_options(const KvCodecPolicy& policy, KvFormat live_format,
                                        int64_t num_sequences, int64_t max_rows, int64_t num_tokens,
                                        int64_t max_sequence_tokens);

class CodedKvCache final : public KvCache {
 public:
  // rope: per layer; its tables and the codec must outlive the cache, unless rope_memory holds the
  // tables. Throws kOutOfMemory, kInvalidArgument.
  CodedKvCache(const ModelConfig& config, const KvCodec& codec, std::vector<KvRope> rope,
               const CodedKvCacheOptions& options, std::vector<Buffer> rope_memory = {});

  // Of live blocks.
  int64_t num_blocks() const override { return live_pool_.num_blocks(); }
  int64_t num_free_blocks() const override { return live_pool_.num_free(); }
  int64_t bytes_per_block() const override;
  int64_t max_sequence_tokens() const override { return options_.max_sequence_tokens; }
  KvElement element() const override { return live_.shape().element; }
  KvBlocks free_blocks() const override {
    return {.live = live_pool_.num_free(), .coded = num_free_coded_blocks()};
  }
  KvBlocks blocks_needed(const KvSequence& sequence, int64_t num_tokens,
                         int64_t max_rows) const override;
  // Those that only a woken block still has, too.
  int64_t num_free_coded_blocks() const { return coded_pool_.num_free() + num_idle_twins(); }
  // Tokens of the sequence that are stored as codes.
  int64_t num_coded_tokens(const KvSequence& sequence) const;

  bool reserve(KvSequence& sequence, int64_t num_rows) override;
  void truncate(KvSequence& sequence, int64_t num_tokens) override;
  void release(KvSequence& sequence) override;
  void fork(const KvSequence& source, int64_t num_tokens, KvSequence& target) override;
  void begin_step(std::span<const KvRows> rows, Exec& exec) override;
  void append(int64_t layer, const float* k_raw, const float* k, const float* v, int64_t stride,
              Exec& exec) override;
  std::span<const KvBlockView> views(int64_t layer, int64_t rows_idx) override;
  void commit() override;
  void abandon_step() override { in_step_ = false; }

  // Encodes all full blocks of the sequence. False, and nothing done, when the codes have no room.
  bool park(KvSequence& sequence, Exec& exec);
  // Rebuilds all coded blocks of the sequence as live ones. False, and nothing done, when there is
  // no room.
  bool wake(KvSequence& sequence, Exec& exec);

  // Coded blocks as a record that outlives the cache (cache/parked_record.h): as many as token_ids
  // has (whole blocks), from first_block on; block 0 takes the exact sinks with it. All must be
  // coded (park() first), and the codec's sinks fewer than a block has tokens.
  std::vector<std::byte> save_parked(const KvSequence& sequence, int64_t first_block,
                                     std::span<const int32_t> token_ids);
  // Appends a record's blocks to a sequence of whole coded blocks that ends where the record
  // begins. False, and nothing done, when there is no room. Throws kCorruptData when the record is
  // damaged; kInvalidArgument when it is of another codec, position or text, or of a cache of
  // another format: the sequence is then as it was.
  bool load_parked(KvSequence& sequence, std::span<const std::byte> record,
                   std::span<const int32_t> token_ids, const std::string& what);

 private:
  struct EncodeJob {
    BlockId live, coded;
  };
  // One coded block that the step in progress reads.
  struct Rebuilt {
    BlockId coded;
    int64_t first_position;
    BlockId sink_block;  // exact rows to lay over the first num_sinks; -1: none
  };

  int64_t first_codable_block() const { return policy_.num_sinks / kBlockSize; }
  int64_t end_of_codes(const KvSequence& sequence) const;  // in blocks
  int64_t sinks_in_block(int64_t block_idx) const;
  bool queue_chunk(KvSequence& sequence, int64_t num_blocks);
  void run_encode_jobs(Exec& exec);
  bool wake_blocks(KvSequence& sequence, int64_t begin, int64_t end, Exec& exec);
  void rebuild_live(std::span<const Rebuilt> blocks, const BlockId* live, float* scratch,
                    Exec& exec);
  KvLayerRows decode_run(int64_t layer, std::span<const Rebuilt> blocks, float* state,
                         float* scratch, Exec& exec);
  void store_rows(int64_t layer, const Rebuilt& block, KvLayerRows rows, std::byte* keys,
                  std::byte* values, float* scratch, Exec& exec);
  void list_coded_blocks(int num_threads);
  void release_block(BlockId id);
  void add_reference(BlockId id);
  void forget_twin(BlockId live);
  void keep_twin(BlockId live, BlockId coded);
  int64_t num_idle_twins() const;
  bool make_coded_room(int64_t num_blocks);
  std::byte* raw_keys(int64_t layer, BlockId block);
  std::byte* codes(BlockId coded) { return codes_.data() + coded * codec_.bytes_per_block(); }
  std::byte* view_memory(std::size_t slot);
  int64_t sink_record_bytes() const;
  void save_sinks(BlockId block, std::byte* out);
  void load_sinks(const std::byte* in, BlockId block);
  int64_t block_floats() const { return kBlockSize * live_.shape().kv_size(); }
  // Of one thread: the codec's state and scratch for a run, and rows of one block.
  int64_t state_floats() const;
  int64_t scratch_floats() const;
  class LiveRows;

  const KvCodec& codec_;
  KvCodecPolicy policy_;
  std::vector<KvRope> rope_;
  std::vector<Buffer> rope_memory_;
  CodedKvCacheOptions options_;
  LiveBlocks live_;
  Buffer raw_;    // [layer][live block][kBlockSize, kv_size], the live blocks' keys before RoPE
  Buffer codes_;  // [coded block][bytes_per_block]
  BlockPool live_pool_;
  BlockPool coded_pool_;
  // A live block that sequences share is encoded once: who comes second finds the codes here. A
  // woken block keeps its codes while nobody else needs their room: parking it again costs nothing,
  // and does not encode what was already rebuilt from codes.
  std::vector<BlockId> coded_twin_;  // [live block], -1: none
  std::vector<BlockId> live_twin_;   // [coded block], -1: none
  std::vector<bool> keeps_twin_;     // [live block], whether it holds a reference to its codes
  std::vector<EncodeJob> jobs_;
  ThreadPool own_thread_{1};  // for the one block that reserve() may have to wake
  Workspace own_workspace_;

  // The step in progress.
  bool in_step_ = false;
  std::span<const KvRows> rows_;
  std::vector<KvBlockView> views_;
  std::vector<std::size_t> view_begin_;
  std::vector<Rebuilt> rebuilt_;
  std::vector<int32_t> slot_of_coded_;  // [coded block], index in rebuilt_; -1: not in this step
  int64_t run_blocks_ = 1;              // slots that are rebuilt together
  Buffer state_memory_;                 // [run][state_floats()]
  Buffer view_memory_;                  // [slot][keys, values] as attention reads them
};

}  // namespace lathe
