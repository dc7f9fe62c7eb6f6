#include "engine/scheduler.h"

#include <algorithm>

namespace lathe {
namespace {

int64_t blocks_for(int64_t num_tokens) { return (num_tokens + kBlockSize - 1) / kBlockSize; }

bool arrived_before(const Sequence* a, const Sequence* b) { return a->id < b->id; }

void insert_by_arrival(std::vector<Sequence*>& list, Sequence* sequence) {
  list.insert(std::upper_bound(list.begin(), list.end(), sequence, arrived_before), sequence);
}

}  // namespace

Scheduler::Scheduler(const EngineOptions& options, KvCache& cache)
    : options_(options), cache_(cache) {
  running_.reserve(static_cast<std::size_t>(options.max_num_seqs));
  rows_.reserve(static_cast<std::size_t>(options.max_num_seqs));
}

void Scheduler::add(Sequence* sequence) {
  // Room for every sequence to wait at once, so that preemption does not allocate.
  const std::size_t needed = waiting_.size() + running_.size() + 1;
  if (waiting_.capacity() < needed) waiting_.reserve(2 * needed);
  insert_by_arrival(waiting_, sequence);
}

void Scheduler::remove(Sequence* sequence) {
  cache_.release(sequence->kv);
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
    if (num_rows == 0 || !make_room(sequence, num_rows)) continue;
    rows_.push_back({sequence, num_rows});
    if (!decoding) budget -= num_rows;
  }
  if (num_preemptions_ == preemptions_before) admit(budget);
  return rows_;
}

int64_t Scheduler::prefill_budget() const {
  const int64_t num_decoding = std::count_if(running_.begin(), running_.end(),
                                             [](const Sequence* s) { return s->is_decoding(); });
  if (num_decoding == 0) return options_.max_batch_tokens;
  // At least one row, so that a full house of decoding sequences cannot starve a prompt.
  return std::max<int64_t>(
      1, std::min(options_.max_mixed_prefill_tokens, options_.max_batch_tokens - num_decoding));
}

// Preempts younger sequences until the rows fit; false when the sequence itself had to go.
bool Scheduler::make_room(Sequence* sequence, int64_t num_rows) {
  while (!cache_.reserve(sequence->kv, num_rows)) {
    const bool is_youngest = running_.back() == sequence;
    preempt_youngest();
    if (is_youngest) return false;
  }
  return true;
}

void Scheduler::preempt_youngest() {
  Sequence* sequence = running_.back();
  running_.pop_back();
  cache_.release(sequence->kv);
  insert_by_arrival(waiting_, sequence);
  ++num_preemptions_;
}

void Scheduler::admit(int64_t budget) {
  while (budget > 0 && !waiting_.empty() && num_running() < options_.max_num_seqs) {
    Sequence* sequence = waiting_.front();
    if (!fits(*sequence)) break;
    const int64_t num_rows = std::min(sequence->num_pending(), budget);
    if (!cache_.reserve(sequence->kv, num_rows)) break;
    waiting_.erase(waiting_.begin());
    insert_by_arrival(running_, sequence);
    rows_.push_back({sequence, num_rows});
    budget -= num_rows;
  }
}

// Room for all its tokens and the next one, beside what running prompts still need, and, so that it
// is not preempted at once, one more block for each running sequence.
bool Scheduler::fits(const Sequence& sequence) const {
  int64_t free_blocks = cache_.num_free_blocks() - num_running();
  for (const Sequence* other : running_) {
    free_blocks -= std::max<int64_t>(
        0, blocks_for(other->size()) - static_cast<int64_t>(other->kv.blocks.size()));
  }
  return blocks_for(sequence.size() + 1) <= free_blocks;
}

}  // namespace lathe
