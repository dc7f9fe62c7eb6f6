#include "cache/paged_cache.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "kernels/attention/kv_codes.h"

namespace lathe {

void PagedCache::copy_shared(BlockId& block) {
  const BlockId own = *pool_.allocate();
  copy_block(block, own);
  pool_.release(block);
  block = own;
}

bool PagedCache::reserve(KvSequence& sequence, int64_t num_rows) {
  LATHE_CHECK(num_rows >= 0);
  const int64_t wanted_tokens = sequence.num_tokens + num_rows;
  if (wanted_tokens > max_sequence_tokens_) {
    fail(ErrorCode::kInvalidArgument, "a sequence of ", wanted_tokens,
         " tokens; the cache was made for at most ", max_sequence_tokens_);
  }
  auto& blocks = sequence.blocks;
  const auto num_old = static_cast<int64_t>(blocks.size());
  const int64_t num_new = std::max<int64_t>(0, blocks_for(wanted_tokens) - num_old);
  const int64_t first_block = sequence.num_tokens / kBlockSize;  // written by the first row
  const bool copies = num_rows > 0 && first_block < num_old &&
                      pool_.num_references(blocks[static_cast<std::size_t>(first_block)]) > 1;
  const bool new_sinks = keeps_sinks_ && wanted_tokens > 0 && sequence.sink_block < 0;
  const bool copies_sinks = sequence.sink_block >= 0 && num_rows > 0 &&
                            sequence.num_tokens < kLiveSinks &&
                            pool_.num_references(sequence.sink_block) > 1;
  if (num_new + (copies ? 1 : 0) + (new_sinks || copies_sinks ? 1 : 0) > pool_.num_free()) {
    return false;
  }
  if (copies) copy_shared(blocks[static_cast<std::size_t>(first_block)]);
  if (copies_sinks) copy_shared(sequence.sink_block);
  if (new_sinks) sequence.sink_block = *pool_.allocate();
  for (int64_t i = 0; i < num_new; ++i) blocks.push_back(*pool_.allocate());
  return true;
}

KvBlocks PagedCache::blocks_needed(const KvSequence& sequence, int64_t num_tokens, int64_t) const {
  // A block that is not full may be shared, and is then copied before it is written to.
  const int64_t copies = sequence.num_tokens % kBlockSize != 0 ? 1 : 0;
  const auto held = static_cast<int64_t>(sequence.blocks.size());
  const bool sinks_to_write = sequence.sink_block < 0 || sequence.num_tokens < kLiveSinks;
  const int64_t sinks = keeps_sinks_ && num_tokens > 0 && sinks_to_write ? 1 : 0;
  return {.live = std::max<int64_t>(0, blocks_for(num_tokens) - held + copies + sinks), .coded = 0};
}

void PagedCache::truncate(KvSequence& sequence, int64_t num_tokens) {
  LATHE_CHECK(num_tokens >= 0 && num_tokens <= sequence.num_tokens);
  const auto kept = static_cast<std::size_t>(blocks_for(num_tokens));
  while (sequence.blocks.size() > kept) {
    pool_.release(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
  if (kept == 0 && sequence.sink_block >= 0) {
    pool_.release(sequence.sink_block);
    sequence.sink_block = -1;
  }
  sequence.num_tokens = num_tokens;
}

void PagedCache::set_idle(const KvSequence& sequence, bool idle) {
  for (const BlockId block : sequence.blocks) pool_.set_idle(block, idle);
  if (sequence.sink_block >= 0) pool_.set_idle(sequence.sink_block, idle);
}

void PagedCache::fork(const KvSequence& source, int64_t num_tokens, KvSequence& target) {
  LATHE_CHECK(num_tokens >= 0 && num_tokens <= source.num_tokens);
  LATHE_CHECK(target.blocks.empty() && target.num_tokens == 0);
  if (num_tokens > 0 && source.sink_block >= 0) {
    pool_.add_reference(source.sink_block);
    target.sink_block = source.sink_block;
  }
  for (int64_t b = 0; b < blocks_for(num_tokens); ++b) {
    const BlockId block = source.blocks[static_cast<std::size_t>(b)];
    pool_.add_reference(block);
    target.blocks.push_back(block);
  }
  target.num_tokens = num_tokens;
}

void PagedCache::begin_step(std::span<const KvRows> rows, Exec&) {
  LATHE_CHECK(!in_step_);
  for (const KvRows& run : rows) {
    const int64_t num_tokens = run.sequence->num_tokens + run.num_rows;
    LATHE_CHECK(static_cast<int64_t>(run.sequence->blocks.size()) >= blocks_for(num_tokens));
    LATHE_CHECK(!keeps_sinks_ || num_tokens == 0 || run.sequence->sink_block >= 0);
  }
  in_step_ = true;
  rows_ = rows;
}

void PagedCache::commit() {
  LATHE_CHECK(in_step_);
  for (const KvRows& run : rows_) run.sequence->num_tokens += run.num_rows;
  in_step_ = false;
}

}  // namespace lathe
