#include "cache/coded_cache.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "kernels/attention/kv_layout.h"

namespace lathe {
namespace {

bool is_coded(BlockId id) { return id < 0; }

int64_t checked_live_blocks(const ModelConfig& config, const KvCodecPolicy& policy,
                            const CodedKvCacheOptions& options) {
  if (config.head_dim % 8 != 0) {
    fail(ErrorCode::kUnsupported, "head_dim ", config.head_dim, " is not a multiple of 8");
  }
  if (policy.num_sinks < 0 || policy.window < 0 || policy.chunk_tokens < kBlockSize ||
      policy.chunk_tokens % kBlockSize != 0) {
    fail(ErrorCode::kInvalidArgument, "cache codec: ", policy.num_sinks, " sinks, window ",
         policy.window, ", chunks of ", policy.chunk_tokens, " (a multiple of ", kBlockSize, ")");
  }
  constexpr int64_t kMaxTokens = int64_t{1} << 31;  // block ids are 32 bits
  if (options.live_tokens < 1 || options.live_tokens > kMaxTokens || options.coded_tokens < 1 ||
      options.coded_tokens > kMaxTokens || options.max_sequence_tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "a cache of ", options.live_tokens, " live and ",
         options.coded_tokens, " coded tokens, sequences of up to ", options.max_sequence_tokens);
  }
  // Codes are made of the live values: those must be better than any code.
  if (!kv_is_plain(kv_element(options.live_format))) {
    fail(ErrorCode::kUnsupported, "live blocks of ", kv_format_name(options.live_format),
         " beside a codec; use bf16 or f32");
  }
  return blocks_for(options.live_tokens);
}

}  // namespace

CodedKvCacheOptions coded_cache_options(const KvCodecPolicy& policy, KvFormat live_format,
                                        int64_t num_sequences, int64_t max_rows, int64_t num_tokens,
                                        int64_t max_sequence_tokens) {
  // As blocks_needed() has it; the rows of a step are shared among the sequences.
  const int64_t each =
      (policy.num_sinks / kBlockSize + 3) * kBlockSize + policy.window + policy.chunk_tokens;
  const int64_t longest = blocks_for(max_sequence_tokens) * kBlockSize + kBlockSize;
  return {.live_format = live_format,
          .live_tokens = num_sequences * std::min(each, longest) + 2 * max_rows + kBlockSize,
          .coded_tokens = num_tokens,
          .max_sequence_tokens = max_sequence_tokens,
          .encode_while_running = true};
}

CodedCache::CodedCache(const ModelConfig& config, const KvCodecPolicy& policy,
                       const CodedKvCacheOptions& options)
    : policy_(policy),
      options_(options),
      live_pool_(checked_live_blocks(config, policy, options)),
      coded_pool_(blocks_for(options.coded_tokens)),
      coded_twin_(static_cast<std::size_t>(live_pool_.num_blocks()), -1),
      live_twin_(static_cast<std::size_t>(coded_pool_.num_blocks()), -1),
      keeps_twin_(static_cast<std::size_t>(live_pool_.num_blocks()), false),
      slot_of_coded_(static_cast<std::size_t>(coded_pool_.num_blocks()), -1) {}

int64_t CodedCache::end_of_codes(const KvSequence& sequence) const {
  const auto num_blocks = static_cast<int64_t>(sequence.blocks.size());
  const auto begin = sequence.blocks.begin() + std::min(first_codable_block(), num_blocks);
  return std::partition_point(begin, sequence.blocks.end(), is_coded) - sequence.blocks.begin();
}

int64_t CodedCache::num_coded_tokens(const KvSequence& sequence) const {
  const int64_t end = end_of_codes(sequence);
  return std::max<int64_t>(0, std::min(end * kBlockSize, sequence.num_tokens) - policy_.num_sinks);
}

int64_t CodedCache::sinks_in_block(int64_t block_idx) const {
  return std::clamp<int64_t>(policy_.num_sinks - block_idx * kBlockSize, 0, kBlockSize);
}

// --- references ---------------------------------------------------------------------------------

void CodedCache::add_reference(BlockId id) {
  is_coded(id) ? coded_pool_.add_reference(~id) : live_pool_.add_reference(id);
}

void CodedCache::release_block(BlockId id) {
  if (is_coded(id)) {
    if (!coded_pool_.release(~id)) return;
    const BlockId live = live_twin_[static_cast<std::size_t>(~id)];
    if (live >= 0) forget_twin(live);
  } else if (live_pool_.release(id)) {
    forget_twin(id);
  }
}

void CodedCache::forget_twin(BlockId live) {
  BlockId& twin = coded_twin_[static_cast<std::size_t>(live)];
  if (twin >= 0) {
    live_twin_[static_cast<std::size_t>(twin)] = -1;
    if (keeps_twin_[static_cast<std::size_t>(live)]) {
      coded_pool_.set_idle(twin, false);
      coded_pool_.release(twin);
    }
  }
  keeps_twin_[static_cast<std::size_t>(live)] = false;
  twin = -1;
}

KvBlocks CodedCache::blocks_needed(const KvSequence& sequence, int64_t num_tokens,
                                   int64_t max_rows) const {
  const auto held_coded = std::count_if(sequence.blocks.begin(), sequence.blocks.end(), is_coded);
  const int64_t held_live = static_cast<int64_t>(sequence.blocks.size()) - held_coded +
                            (sequence.sink_block >= 0 ? 1 : 0);
  const int64_t copies = sequence.num_tokens % kBlockSize != 0 ? 1 : 0;
  const int64_t all = blocks_for(num_tokens);
  if (!options_.encode_while_running) {
    return {.live = std::max<int64_t>(0, all - held_live + copies), .coded = 0};
  }
  // Rows are reserved before the step encodes: what the step before left, at most a row less than
  // would have been encoded and its own rows, and the new rows. The block that keeps the sinks and
  // what no codes may replace come on top.
  const int64_t exact = policy_.window + policy_.chunk_tokens + 2 * max_rows;
  const int64_t live = first_codable_block() + 1 + blocks_for(exact) + 1;
  const int64_t codable = num_tokens - first_codable_block() * kBlockSize - policy_.window;
  const int64_t coded =
      std::max<int64_t>(0, codable) / policy_.chunk_tokens * policy_.chunk_tokens / kBlockSize;
  return {.live = std::max<int64_t>(0, std::min(live, all) - held_live + copies),
          .coded = std::max<int64_t>(0, coded - held_coded)};
}

// Of a live block just rebuilt from `coded`, whose reference it takes over from a sequence.
void CodedCache::keep_twin(BlockId live, BlockId coded) {
  const BlockId before = live_twin_[static_cast<std::size_t>(coded)];
  if (before >= 0) forget_twin(before);  // the block with the exact sinks, or one that is shared
  coded_twin_[static_cast<std::size_t>(live)] = coded;
  live_twin_[static_cast<std::size_t>(coded)] = live;
  keeps_twin_[static_cast<std::size_t>(live)] = true;
  coded_pool_.set_idle(coded, true);
}

// Codes that no sequence has: woken blocks keep them.
int64_t CodedCache::num_idle_twins() const {
  int64_t count = 0;
  for (std::size_t live = 0; live < keeps_twin_.size(); ++live) {
    if (keeps_twin_[live] && coded_pool_.num_references(coded_twin_[live]) == 1) ++count;
  }
  return count;
}

// Whether so many coded blocks can be allocated; gives up idle twins where it takes that.
bool CodedCache::make_coded_room(int64_t num_blocks) {
  if (num_blocks <= coded_pool_.num_free()) return true;
  if (num_blocks > num_free_coded_blocks()) return false;
  for (std::size_t live = 0; live < keeps_twin_.size(); ++live) {
    if (coded_pool_.num_free() >= num_blocks) break;
    if (keeps_twin_[live] && coded_pool_.num_references(coded_twin_[live]) == 1) {
      forget_twin(static_cast<BlockId>(live));
    }
  }
  return true;
}

bool CodedCache::reserve(KvSequence& sequence, int64_t num_rows) {
  LATHE_CHECK(num_rows >= 0);
  const int64_t wanted_tokens = sequence.num_tokens + num_rows;
  if (wanted_tokens > options_.max_sequence_tokens) {
    fail(ErrorCode::kInvalidArgument, "a sequence of ", wanted_tokens,
         " tokens; the cache was made for at most ", options_.max_sequence_tokens);
  }
  auto& blocks = sequence.blocks;
  const auto num_old = static_cast<int64_t>(blocks.size());
  const int64_t num_new = std::max<int64_t>(0, blocks_for(wanted_tokens) - num_old);
  const int64_t first_block = sequence.num_tokens / kBlockSize;
  bool wakes = false;
  bool copies = false;
  if (num_rows > 0 && first_block < num_old) {  // the first row goes into a block with tokens
    const BlockId id = blocks[static_cast<std::size_t>(first_block)];
    wakes = is_coded(id);
    copies = !wakes && live_pool_.num_references(id) > 1;
    if (!wakes && !copies) forget_twin(id);  // its content is about to change
  }
  if (num_new + (wakes || copies ? 1 : 0) > live_pool_.num_free()) return false;
  if (wakes) {
    Exec own{own_thread_, own_workspace_};
    LATHE_CHECK(wake_range(sequence, first_block, first_block + 1, own));
    forget_twin(blocks[static_cast<std::size_t>(first_block)]);  // it is about to be written into
  }
  if (copies) {
    BlockId& shared = blocks[static_cast<std::size_t>(first_block)];
    const BlockId own = *live_pool_.allocate();
    copy_live_block(shared, own);
    release_block(shared);
    shared = own;
  }
  for (int64_t i = 0; i < num_new; ++i) blocks.push_back(*live_pool_.allocate());
  return true;
}

// Woken tokens are coded, and live blocks stand behind those only: pieces take the place of what
// the sequence shares behind its codes.
bool CodedCache::reserve_woken(KvSequence& sequence, int64_t num_tokens) {
  LATHE_CHECK(!in_step_ && first_codable_block() == 0 && num_tokens % policy_.chunk_tokens == 0);
  LATHE_CHECK(num_tokens >= sequence.num_tokens && num_tokens <= options_.max_sequence_tokens);
  const int64_t coded_tokens = std::min(end_of_codes(sequence) * kBlockSize, sequence.num_tokens);
  const int64_t kept = coded_tokens - coded_tokens % policy_.chunk_tokens;
  const bool needs_sinks = kept == 0 && num_tokens > 0 && policy_.num_sinks > 0;
  if (needs_sinks && live_pool_.num_free() == 0) return false;
  if (!make_coded_room((num_tokens - kept) / kBlockSize)) return false;
  truncate(sequence, kept);
  for (int64_t b = kept / kBlockSize; b < num_tokens / kBlockSize; ++b) {
    sequence.blocks.push_back(~*coded_pool_.allocate());
  }
  if (needs_sinks) sequence.sink_block = *live_pool_.allocate();
  return true;
}

void CodedCache::truncate(KvSequence& sequence, int64_t num_tokens) {
  LATHE_CHECK(num_tokens >= 0 && num_tokens <= sequence.num_tokens);
  const auto kept = static_cast<std::size_t>(blocks_for(num_tokens));
  while (sequence.blocks.size() > kept) {
    release_block(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
  sequence.num_tokens = num_tokens;
  if (sequence.sink_block >= 0 && end_of_codes(sequence) <= first_codable_block()) {
    release_block(sequence.sink_block);
    sequence.sink_block = -1;
  }
}

void CodedCache::set_idle(const KvSequence& sequence, bool idle) {
  for (const BlockId id : sequence.blocks) {
    is_coded(id) ? coded_pool_.set_idle(~id, idle) : live_pool_.set_idle(id, idle);
  }
  if (sequence.sink_block >= 0) live_pool_.set_idle(sequence.sink_block, idle);
}

void CodedCache::fork(const KvSequence& source, int64_t num_tokens, KvSequence& target) {
  LATHE_CHECK(num_tokens >= 0 && num_tokens <= source.num_tokens);
  LATHE_CHECK(target.blocks.empty() && target.num_tokens == 0);
  for (int64_t b = 0; b < blocks_for(num_tokens); ++b) {
    const BlockId id = source.blocks[static_cast<std::size_t>(b)];
    add_reference(id);
    target.blocks.push_back(id);
  }
  target.num_tokens = num_tokens;
  if (source.sink_block >= 0 && end_of_codes(target) > first_codable_block()) {
    add_reference(source.sink_block);
    target.sink_block = source.sink_block;
  }
}

// --- encoding -----------------------------------------------------------------------------------

// Gives the next num_blocks live blocks coded ids and queues the encoding of those that have none
// yet. False when the codes have no room for all of them.
bool CodedCache::queue_chunk(KvSequence& sequence, int64_t num_blocks) {
  const int64_t begin = end_of_codes(sequence);
  const auto twin_of = [&](int64_t b) {
    return coded_twin_[static_cast<std::size_t>(sequence.blocks[static_cast<std::size_t>(b)])];
  };
  int64_t needed = 0;
  for (int64_t b = begin; b < begin + num_blocks; ++b) {
    const BlockId twin = twin_of(b);
    if (twin < 0) {
      ++needed;
    } else {
      coded_pool_.add_reference(twin);  // before room is made: it must not be given up for that
    }
  }
  if (!make_coded_room(needed)) {
    for (int64_t b = begin; b < begin + num_blocks; ++b) {
      if (twin_of(b) >= 0) coded_pool_.release(twin_of(b));
    }
    return false;
  }
  for (int64_t b = begin; b < begin + num_blocks; ++b) {
    BlockId& id = sequence.blocks[static_cast<std::size_t>(b)];
    const BlockId live = id;
    BlockId& twin = coded_twin_[static_cast<std::size_t>(live)];
    if (twin < 0) {
      twin = *coded_pool_.allocate();
      live_twin_[static_cast<std::size_t>(twin)] = live;
      jobs_.push_back({live, twin, b * kBlockSize});
    }
    id = ~twin;
    if (sinks_in_block(b) > 0) {
      sequence.sink_block = live;  // keeps its reference, for the exact rows
    } else {
      // The job still reads it: nothing is written into a freed live block before reserve().
      release_block(live);
    }
  }
  return true;
}

void CodedCache::run_encode_jobs(Exec& exec) {
  if (jobs_.empty()) return;
  encode_blocks(jobs_, exec);
  jobs_.clear();
}

bool CodedCache::park(KvSequence& sequence, Exec& exec) {
  LATHE_CHECK(!in_step_);
  const int64_t num_blocks = sequence.num_tokens / kBlockSize - end_of_codes(sequence);
  if (num_blocks <= 0) return true;
  if (!queue_chunk(sequence, num_blocks)) return false;
  run_encode_jobs(exec);
  return true;
}

bool CodedCache::wake_range(KvSequence& sequence, int64_t begin, int64_t end, Exec& exec) {
  if (end - begin > live_pool_.num_free()) return false;
  if (begin >= end) return true;
  std::vector<BlockId> live;
  std::vector<Rebuilt> blocks;
  for (int64_t b = begin; b < end; ++b) {
    live.push_back(*live_pool_.allocate());
    blocks.push_back({~sequence.blocks[static_cast<std::size_t>(b)], b * kBlockSize,
                      sinks_in_block(b) > 0 ? sequence.sink_block : BlockId{-1}});
  }
  wake_blocks(blocks, live.data(), exec);
  for (int64_t i = 0; i < end - begin; ++i) {
    BlockId& id = sequence.blocks[static_cast<std::size_t>(begin + i)];
    keep_twin(live[static_cast<std::size_t>(i)], ~id);
    id = live[static_cast<std::size_t>(i)];
    if (sinks_in_block(begin + i) > 0 && sequence.sink_block >= 0) {
      release_block(sequence.sink_block);
      sequence.sink_block = -1;
    }
  }
  return true;
}

bool CodedCache::wake(KvSequence& sequence, Exec& exec) {
  LATHE_CHECK(!in_step_);
  const auto num_blocks = static_cast<int64_t>(sequence.blocks.size());
  return wake_range(sequence, std::min(first_codable_block(), num_blocks), end_of_codes(sequence),
                    exec);
}

// --- a step -------------------------------------------------------------------------------------

void CodedCache::begin_step(std::span<const KvRows> rows, Exec& exec) {
  LATHE_CHECK(!in_step_);
  if (options_.encode_while_running) {
    for (const KvRows& run : rows) {
      KvSequence& sequence = *run.sequence;
      for (;;) {
        const int64_t exact = sequence.num_tokens - end_of_codes(sequence) * kBlockSize;
        if (exact < std::max<int64_t>(1, policy_.window + policy_.chunk_tokens)) break;
        if (!queue_chunk(sequence, policy_.chunk_tokens / kBlockSize)) break;  // stays exact
      }
    }
    run_encode_jobs(exec);
  }
  rows_ = rows;
  list_coded_blocks();
  start_step(exec);
  in_step_ = true;
}

// Which coded blocks this step reads, each once.
void CodedCache::list_coded_blocks() {
  for (const Rebuilt& block : rebuilt_) slot_of_coded_[static_cast<std::size_t>(block.coded)] = -1;
  rebuilt_.clear();
  for (const KvRows& run : rows_) {
    const KvSequence& sequence = *run.sequence;
    const int64_t num_blocks = blocks_for(sequence.num_tokens + run.num_rows);
    LATHE_CHECK(static_cast<int64_t>(sequence.blocks.size()) >= num_blocks);
    for (int64_t b = 0; b < num_blocks; ++b) {
      const BlockId id = sequence.blocks[static_cast<std::size_t>(b)];
      if (!is_coded(id) || slot_of_coded(~id) >= 0) continue;
      slot_of_coded_[static_cast<std::size_t>(~id)] = static_cast<int32_t>(rebuilt_.size());
      rebuilt_.push_back(
          {~id, b * kBlockSize, sinks_in_block(b) > 0 ? sequence.sink_block : BlockId{-1}});
    }
  }
}

void CodedCache::commit() {
  LATHE_CHECK(in_step_);
  for (const KvRows& run : rows_) run.sequence->num_tokens += run.num_rows;
  in_step_ = false;
}

}  // namespace lathe
