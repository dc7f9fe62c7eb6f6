#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

namespace lathe {
namespace {

bool arrived_before(const Sequence* a, const Sequence* b) { return a->id < b->id; }

void insert_by_arrival(std::vector<Sequence*>& list, Sequence* sequence) {
  list.insert(std::upper_bound(list.begin(), list.end(), sequence, arrived_before), sequence);
}

}  // namespace

Scheduler::Scheduler(const EngineOptions& options, KvCache& cache)
    : options_(options), cache_(cache), prefixes_(cache) {
  running_.reserve(static_cast<std::size_t>(options.max_num_seqs));
  rows_.reserve(static_cast<std::size_t>(options.max_num_seqs));
}

void Scheduler::add(Sequence* sequence) {
  // Room for every sequence to wait at once, so that preemption does not allocate.
  const std::size_t needed = waiting_.size() + running_.size() + 1;
  if (waiting_.capacity() < needed) waiting_.reserve(2 * needed);
  insert_by_arrival(waiting_, sequence);
}

void Scheduler::remove(Sequence* sequence, bool keep_prefix) {
  keep_prefix = keep_prefix && sequence->request.keeps_prefix;
  if (keep_prefix) park(*sequence);
  if (keep_prefix && options_.prefix_cache && sequence->kv.num_tokens > 0) {
    prefixes_.add(std::move(sequence->tokens), std::move(sequence->kv));
  } else {
    cache_.release(sequence->kv);
  }
  std::erase(waiting_, sequence);
  std::erase(running_, sequence);
}

std::span<const ScheduledRows> Scheduler::schedule() {
  rows_.clear();
  const int64_t preemptions_before = num_preemptions_;
  int64_t budget = prefill_budget();
  // Preemption takes sequences from the back, which this loop has not reached.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i];
    const bool decoding = sequence->is_decoding();
    const int64_t num_rows = decoding ? 1 : std::min(sequence->num_pending(), budget);
    if (num_rows == 0) continue;
    if (!make_room_for_drafts(*sequence)) sequence->draft.clear();
    if (!make_room(sequence, num_rows)) continue;
    rows_.push_back({sequence, num_rows, sequence->draft.size()});
    if (!decoding) budget -= num_rows;
  }
  if (num_preemptions_ == preemptions_before) admit(budget);
  return rows_;
}

int64_t Scheduler::prefill_budget() const {
  int64_t num_decoding = 0;  // rows
  for (const Sequence* s : running_) {
    if (s->is_decoding()) num_decoding += 1 + s->draft.size();
  }
  if (num_decoding == 0) return options_.max_batch_tokens;
  // At least one row, so that a full house of decoding sequences cannot starve a prompt.
  return std::max<int64_t>(
      1, std::min(options_.max_mixed_prefill_tokens, options_.max_batch_tokens - num_decoding));
}

// The whole window, or nothing of it; nobody is preempted for drafts.
bool Scheduler::make_room_for_drafts(Sequence& sequence) {
  if (sequence.draft.tokens.empty()) return true;
  while (!cache_.reserve(sequence.kv, 1 + sequence.draft.size())) {
    if (!prefixes_.evict_oldest()) return false;
  }
  return true;
}

// Forgets finished sequences, then preempts younger ones, until the rows fit; false when the
// sequence itself had to go.
bool Scheduler::make_room(Sequence* sequence, int64_t num_rows) {
  while (!cache_.reserve(sequence->kv, num_rows)) {
    if (prefixes_.evict_oldest()) continue;
    const bool is_youngest = running_.back() == sequence;
    preempt_youngest();
    if (is_youngest) return false;
  }
  return true;
}

void Scheduler::preempt_youngest() {
  Sequence* sequence = running_.back();
  running_.pop_back();
  sequence->draft.clear();
  park(*sequence);
  cache_.release(sequence->kv);
  insert_by_arrival(waiting_, sequence);
  ++num_preemptions_;
}

void Scheduler::admit(int64_t budget) {
  while (budget > 0 && !waiting_.empty() && num_running() < options_.max_num_seqs) {
    Sequence* sequence = waiting_.front();
    const int64_t num_parked = share_prefix(sequence);
    while (!fits(*sequence) && prefixes_.evict_oldest()) {
    }
    if (num_parked > 0 && fits(*sequence)) wake_prefix(sequence, num_parked);
    const int64_t num_rows = std::min(sequence->num_pending(), budget);
    if (!fits(*sequence) || !cache_.reserve(sequence->kv, num_rows)) {
      cache_.release(sequence->kv);  // shared blocks would not be free for those that run
      break;
    }
    num_shared_tokens_ += sequence->kv.num_tokens;
    if (sequence->num_output() == 0) sequence->num_shared = sequence->kv.num_tokens;
    waiting_.erase(waiting_.begin());
    insert_by_arrival(running_, sequence);
    rows_.push_back({sequence, num_rows, 0});
    budget -= num_rows;
  }
}

void Scheduler::park(const Sequence& sequence) {
  if (parker_ == nullptr || !sequence.request.keeps_prefix) return;
  const int64_t num_tokens = std::min(sequence.size(), sequence.kv.num_tokens);
  parker_->park(
      std::span<const int32_t>(sequence.tokens).first(static_cast<std::size_t>(num_tokens)),
      sequence.kv);
}

// Blocks of live sequences first; then, up to num_tokens, what is parked.
void Scheduler::wake_prefix(Sequence* sequence, int64_t num_tokens) {
  if (!cache_.reserve_woken(sequence->kv, num_tokens)) return;
  parker_->wake(sequence->tokens, num_tokens, sequence->kv);
  cache_.truncate(sequence->kv, sequence->kv.num_tokens);  // pieces that turned out to be gone
}

// At least one token is left to compute: its logits are wanted. Returns how many tokens can be had
// from parked pieces, when those are more.
int64_t Scheduler::share_prefix(Sequence* sequence) {
  const auto tokens = std::span<const int32_t>(sequence->tokens)
                          .first(static_cast<std::size_t>(sequence->size() - 1));
  const int64_t num_parked = parker_ != nullptr ? parker_->find(tokens) : 0;
  if (!options_.prefix_cache) return num_parked;
  PrefixCache::Match best = prefixes_.find(tokens);
  for (const Sequence* other : running_) {
    const auto computed = std::span<const int32_t>(other->tokens)
                              .first(static_cast<std::size_t>(other->kv.num_tokens));
    const int64_t size = common_prefix(tokens, computed);
    if (size > best.num_tokens && size >= PrefixCache::kMinTokens) best = {&other->kv, size};
  }
  int64_t num_shared = best.kv == nullptr ? 0 : best.num_tokens;
  // Behind whole pieces, waking goes on where sharing ends.
  if (num_parked > num_shared) num_shared -= num_shared % parker_->piece_tokens();
  if (num_shared > 0) cache_.fork(*best.kv, num_shared, sequence->kv);
  return num_parked > num_shared ? num_parked : 0;
}

// Room for all its tokens and the next one, beside what running prompts still need, and, so that it
// is not preempted at once, one more block for each running sequence.
bool Scheduler::fits(const Sequence& sequence) const {
  const auto needs = [this](const Sequence& s, int64_t num_tokens) {
    return cache_.blocks_needed(s.kv, num_tokens, options_.max_batch_tokens);
  };
  KvBlocks room = cache_.free_blocks();
  room.live -= num_running();
  for (const Sequence* other : running_) {
    if (!other->is_decoding()) room -= needs(*other, other->size());
  }
  return needs(sequence, sequence.size() + 1).fit_into(room);
}

}  // namespace lathe
