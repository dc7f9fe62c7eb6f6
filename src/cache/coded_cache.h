// What every cache with coded blocks has in common (coded_kv_cache.h, cuda_coded_kv_cache.h): block
// tables, references, and when which blocks become codes. Per sequence, in order of position:
//
//   [ sinks, exact | coded blocks ........................ | window and newer, exact (live) ]
//
// When a step begins and a sequence has window + chunk_tokens exact tokens behind its codes, its
// oldest chunk is encoded; so the step that fills a chunk still attends to exact values, and tokens
// that a verifier rejects after commit() are gone before anything of theirs is encoded. A step
// reads each coded block once, however many sequences share it.
//
// park() encodes a whole sequence (idle, preempted), wake() rebuilds all layers of a sequence's
// blocks once and makes them live: with encode_while_running off, that is the only use of the
// codec, and decoding runs at the speed of the plain cache.
//
// Where live blocks, codes and rebuilt rows lie, and who computes them, is the derived class's
// business. In a block table, id >= 0 is a live block and id < 0 is coded block ~id.
#pragma once
#include <span>
#include <vector>

#include "cache/block_pool.h"
#include "cache/kv_cache.h"
#include "cache/kv_codec.h"

namespace lathe {

struct KvCodecFile;

struct CodedKvCacheOptions {
  KvFormat live_format = KvFormat::kBF16;
  int64_t live_tokens = 0;   // room for exact tokens, of all sequences
  int64_t coded_tokens = 0;  // room for coded tokens
  int64_t max_sequence_tokens = 0;
  bool encode_while_running = true;
  // What a cache in a GPU's memory makes its own codec of, there; not read later. Null on a CPU.
  const KvCodecFile* file = nullptr;
};

// Enough live room for num_sequences sequences that run at once in steps of up to max_rows rows,
// and codes for num_tokens tokens.
CodedKvCacheOptions coded_cache_options(const KvCodecPolicy& policy, KvFormat live_format,
                                        int64_t num_sequences, int64_t max_rows, int64_t num_tokens,
                                        int64_t max_sequence_tokens);

class CodedCache : public KvCache {
 public:
  // Of live blocks.
  int64_t num_blocks() const override { return live_pool_.num_blocks(); }
  int64_t num_free_blocks() const override { return live_pool_.num_free(); }
  int64_t max_sequence_tokens() const override { return options_.max_sequence_tokens; }
  KvBlocks all_blocks() const override {
    return {.live = live_pool_.num_blocks(), .coded = coded_pool_.num_blocks()};
  }
  KvBlocks free_blocks() const override {
    return {.live = live_pool_.num_free(), .coded = num_free_coded_blocks()};
  }
  KvBlocks running_blocks() const override {
    return {.live = live_pool_.num_running(), .coded = coded_pool_.num_running()};
  }
  KvBlocks blocks_needed(const KvSequence& sequence, int64_t num_tokens,
                         int64_t max_rows) const override;
  // Those that only a woken block still has, too.
  int64_t num_free_coded_blocks() const { return coded_pool_.num_free() + num_idle_twins(); }
  // Tokens of the sequence that are stored as codes.
  int64_t num_coded_tokens(const KvSequence& sequence) const;

  bool reserve(KvSequence& sequence, int64_t num_rows) override;
  bool reserve_woken(KvSequence& sequence, int64_t num_tokens) override;
  void truncate(KvSequence& sequence, int64_t num_tokens) override;
  void release(KvSequence& sequence) override { truncate(sequence, 0); }
  void set_idle(const KvSequence& sequence, bool idle) override;
  void fork(const KvSequence& source, int64_t num_tokens, KvSequence& target) override;
  void begin_step(std::span<const KvRows> rows, Exec& exec) override;
  void commit() override;
  void abandon_step() override { in_step_ = false; }

  // Encodes all full blocks of the sequence. False, and nothing done, when the codes have no room.
  bool park(KvSequence& sequence, Exec& exec);
  // Rebuilds all coded blocks of the sequence as live ones. False, and nothing done, when there is
  // no room.
  bool wake(KvSequence& sequence, Exec& exec);

 protected:
  struct EncodeJob {
    BlockId live, coded;
    int64_t first_position;
  };
  // One coded block, to be rebuilt.
  struct Rebuilt {
    BlockId coded;
    int64_t first_position;
    BlockId sink_block;  // exact rows to lay over the first num_sinks; -1: none
  };

  // Throws kUnsupported, kInvalidArgument.
  CodedCache(const ModelConfig& config, const KvCodecPolicy& policy,
             const CodedKvCacheOptions& options);

  // Exact rows of live blocks to codes.
  virtual void encode_blocks(std::span<const EncodeJob> jobs, Exec& exec) = 0;
  // Codes to live blocks: blocks[i] to live[i].
  virtual void wake_blocks(std::span<const Rebuilt> blocks, const BlockId* live, Exec& exec) = 0;
  virtual void copy_live_block(BlockId from, BlockId to) = 0;
  // The end of begin_step(): rebuilt() is what this step will read.
  virtual void start_step(Exec& exec) = 0;

  const KvCodecPolicy& policy() const { return policy_; }
  const CodedKvCacheOptions& options() const { return options_; }
  bool in_step() const { return in_step_; }
  std::span<const KvRows> rows() const { return rows_; }         // of the step in progress
  std::span<const Rebuilt> rebuilt() const { return rebuilt_; }  // likewise, each block once
  // The index in rebuilt() of a coded block of the step in progress.
  int32_t slot_of_coded(BlockId coded) const {
    return slot_of_coded_[static_cast<std::size_t>(coded)];
  }
  int64_t num_coded_blocks() const { return coded_pool_.num_blocks(); }
  int64_t end_of_codes(const KvSequence& sequence) const;  // in blocks
  int64_t sinks_in_block(int64_t block_idx) const;
  // The coded block that has this block's codes; -1: a live block without.
  BlockId codes_of_block(BlockId id) const {
    return id < 0 ? ~id : coded_twin_[static_cast<std::size_t>(id)];
  }
  // Whether so many coded blocks can be allocated; gives up idle twins where it takes that.
  bool make_coded_room(int64_t num_blocks);
  BlockPool& live_pool() { return live_pool_; }
  BlockPool& coded_pool() { return coded_pool_; }

 private:
  int64_t first_codable_block() const { return policy_.num_sinks / kBlockSize; }
  bool queue_chunk(KvSequence& sequence, int64_t num_blocks);
  void run_encode_jobs(Exec& exec);
  bool wake_range(KvSequence& sequence, int64_t begin, int64_t end, Exec& exec);
  void list_coded_blocks();
  void release_block(BlockId id);
  void add_reference(BlockId id);
  void forget_twin(BlockId live);
  void keep_twin(BlockId live, BlockId coded);
  int64_t num_idle_twins() const;

  KvCodecPolicy policy_;
  CodedKvCacheOptions options_;
  BlockPool live_pool_;
  BlockPool coded_pool_;
  // A live block that sequences share is encoded once: who comes second finds the codes here. A
  // woken block keeps its codes while nobody else needs their room: parking it again costs nothing,
  // and does not encode what was already rebuilt from codes.
  std::vector<BlockId> coded_twin_;  // [live block], -1: none
  std::vector<BlockId> live_twin_;   // [coded block], -1: none
  std::vector<bool> keeps_twin_;     // [live block], whether it has an idle reference to its codes
  std::vector<EncodeJob> jobs_;
  ThreadPool own_thread_{1};  // for the one block that reserve() may have to wake
  Workspace own_workspace_;

  // The step in progress.
  bool in_step_ = false;
  std::span<const KvRows> rows_;
  std::vector<Rebuilt> rebuilt_;
  std::vector<int32_t> slot_of_coded_;  // [coded block], index in rebuilt_; -1: not in this step
};

}  // namespace lathe
