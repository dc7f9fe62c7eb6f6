// Which rows the next step computes (continuous batching; Yu et al., "Orca", OSDI 2022; chunked
// prefill: Agrawal et al., "Sarathi-Serve", OSDI 2024).
//
// First come, first served, with these rules:
//   - every decoding sequence gets one row in every step, so nobody's tokens stall, and with them
//     the rows of its draft tokens, or none of those where they would not fit;
//   - what is left of the token budget goes to prompts, the oldest first, in chunks;
//   - a waiting sequence starts when its whole prompt fits into the cache beside what the running
//     ones still need for theirs; none overtakes;
//   - what a waiting sequence has in common with a finished or a running one is shared, not
//   computed
//     again (prefix_cache.h);
//   - when the cache is full, finished sequences are forgotten first; then the youngest running
//     sequence gives its blocks back and waits; it is computed again later, from its prompt and
//     what it had generated. With a parker (prefix_parker.h), finished and preempted sequences are
//     kept in a codec's few bits, and woken where live blocks have less in common.
//
// Non-goal: priorities.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/engine_options.h"
#include "engine/prefix_cache.h"
#include "engine/prefix_parker.h"
#include "engine/sequence.h"

namespace lathe {

struct ScheduledRows {
  Sequence* sequence = nullptr;
  int64_t num_rows = 0;    // tokens [kv.num_tokens, kv.num_tokens + num_rows)
  int64_t num_drafts = 0;  // rows behind them, for sequence->draft

  // The last token is among them, so a new one will be chosen.
  bool reaches_end() const { return num_rows == sequence->num_pending(); }
};

class Scheduler {
 public:
  Scheduler(const EngineOptions& options, KvCache& cache);

  // From now on finished and preempted sequences are parked, and what later ones have in common
  // with them is woken. Null: no more.
  void set_parker(PrefixParker* parker) { parker_ = parker; }

  // A new sequence, behind all others. Its id is larger than theirs.
  void add(Sequence* sequence);
  // Forgets a sequence (finished, aborted, failed). keep_prefix: its keys and values may serve
  // later sequences; otherwise its blocks are freed.
  void remove(Sequence* sequence, bool keep_prefix);

  // The rows of the next step, with room reserved in the cache, the oldest sequence first; valid
  // until the next call. Empty when nothing can run. Does not allocate.
  std::span<const ScheduledRows> schedule();

  std::span<Sequence* const> running() const { return running_; }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }
  int64_t num_shared_tokens() const { return num_shared_tokens_; }  // that were not computed again
  Sequence* oldest_waiting() const { return waiting_.empty() ? nullptr : waiting_.front(); }

 private:
  int64_t prefill_budget() const;
  bool make_room_for_drafts(Sequence& sequence);
  bool make_room(Sequence* sequence, int64_t num_rows);
  void preempt_youngest();
  void admit(int64_t budget);
  int64_t share_prefix(Sequence* sequence);
  void wake_prefix(Sequence* sequence, int64_t num_tokens);
  void park(const Sequence& sequence);
  bool fits(const Sequence& sequence) const;

  const EngineOptions options_;
  KvCache& cache_;
  PrefixCache prefixes_;
  PrefixParker* parker_ = nullptr;
  std::vector<Sequence*> waiting_;  // both in order of arrival
  std::vector<Sequence*> running_;
  std::vector<ScheduledRows> rows_;
  int64_t num_preemptions_ = 0;
  int64_t num_shared_tokens_ = 0;
};

}  // namespace lathe
