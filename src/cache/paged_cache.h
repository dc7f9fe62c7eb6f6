// What every cache of live blocks has in common: block tables, references and the life of a step.
// Where the blocks lie (memory of the host, of a GPU) is the derived class's business.
//
// Formats that keep sinks (kv_codes.h) have the exact rows of a sequence in a block of its own out
// of the same pool, KvSequence::sink_block: there as soon as a row is reserved, shared by fork(),
// copied before it is written to like any other.
#pragma once
#include <cstdint>
#include <span>

#include "cache/block_pool.h"
#include "cache/kv_cache.h"

namespace lathe {

class PagedCache : public KvCache {
 public:
  int64_t num_blocks() const override { return pool_.num_blocks(); }
  int64_t num_free_blocks() const override { return pool_.num_free(); }
  int64_t max_sequence_tokens() const override { return max_sequence_tokens_; }
  KvBlocks running_blocks() const override { return {.live = pool_.num_running(), .coded = 0}; }
  KvBlocks blocks_needed(const KvSequence& sequence, int64_t num_tokens,
                         int64_t max_rows) const override;

  bool reserve(KvSequence& sequence, int64_t num_rows) override;
  void truncate(KvSequence& sequence, int64_t num_tokens) override;
  void release(KvSequence& sequence) override { truncate(sequence, 0); }
  void set_idle(const KvSequence& sequence, bool idle) override;
  void fork(const KvSequence& source, int64_t num_tokens, KvSequence& target) override;
  void begin_step(std::span<const KvRows> rows, Exec& exec) override;
  void commit() override;
  void abandon_step() override { in_step_ = false; }

  bool keeps_sinks() const { return keeps_sinks_; }
  // What reserve() does with a shared block; for a cache that this one is a part of.
  virtual void copy_block(BlockId from, BlockId to) = 0;

 protected:
  PagedCache(int64_t num_blocks, int64_t max_sequence_tokens, bool keeps_sinks)
      : max_sequence_tokens_(max_sequence_tokens), keeps_sinks_(keeps_sinks), pool_(num_blocks) {}

  bool in_step() const { return in_step_; }
  std::span<const KvRows> rows() const { return rows_; }  // of the step in progress

 private:
  // Makes a block that others have too the caller's own.
  void copy_shared(BlockId& block);

  int64_t max_sequence_tokens_;
  bool keeps_sinks_;
  BlockPool pool_;
  bool in_step_ = false;
  std::span<const KvRows> rows_;
};

}  // namespace lathe
