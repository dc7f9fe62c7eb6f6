// One request while it runs.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/draft_window.h"
#include "engine/output_text.h"
#include "engine/request.h"

namespace lathe {

// What a drafter and the choice of draft lengths remember of a sequence.
struct DraftState {
  KvSequence kv;              // of the draft model's own cache
  int64_t base = 0;           // kv holds the sequence's first `base` tokens ...
  std::vector<int32_t> fed;   // ... and then these, drafts that may have been rejected
  bool cannot_draft = false;  // the draft model does not know some token of it
  // Discounted counts of drafts that were judged (draft_plan.h).
  double num_accepted = 0;
  double num_rejected = 0;
  int64_t idle_steps = 0;   // since it last had a draft
  int64_t probe_after = 0;  // idle steps until it gets one all the same
};

struct Sequence {
  RequestId id = 0;
  Request request;
  std::vector<int32_t> tokens;  // prompt, then output; reserved to its largest size
  int64_t prompt_size = 0;
  int64_t max_new_tokens = 0;
  int64_t num_shared = 0;  // tokens of the prompt that were not computed
  std::chrono::steady_clock::time_point arrival;
  double queue_seconds = -1;  // until its first row was computed; < 0: it waits
  KvSequence kv;              // kv.num_tokens of `tokens` are in the cache
  TokenCounts counts;
  OutputText text;
  std::vector<TokenLogprob> top;        // [tokens of one step, logprobs]: of the newest tokens
  std::span<const int32_t> end_tokens;  // the model's; unless the request ignores them
  DraftWindow draft;                    // of the step in progress; not part of `tokens`
  DraftState draft_state;
  SpeculationUsage speculation;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_output() const { return size() - prompt_size; }
  // Tokens that forward() has not seen: one while decoding; the prompt, or after preemption all
  // that there is, while prefilling.
  int64_t num_pending() const { return size() - kv.num_tokens; }
  bool is_decoding() const { return num_pending() == 1 && num_output() > 0; }
  Usage usage() const {
    return {prompt_size, num_output(), num_shared, speculation,
            queue_seconds < 0 ? 0 : queue_seconds};
  }
  // A token was chosen: penalties and constraint count it.
  void advance(int32_t token) {
    counts.add_output(token);
    if (request.constraint) request.constraint->accept(token);
  }
  // The last tokens that advance() was told of were tried only.
  void take_back(std::span<const int32_t> newest) {
    for (std::size_t i = newest.size(); i-- > 0;) counts.remove_output(newest[i]);
    if (request.constraint != nullptr && !newest.empty()) {
      request.constraint->rollback(static_cast<int64_t>(newest.size()));
    }
  }
  bool is_end_token(int32_t token) const {
    const auto holds = [token](std::span<const int32_t> list) {
      return std::find(list.begin(), list.end(), token) != list.end();
    };
    return (!request.params.ignore_eos && holds(end_tokens)) ||
           holds(request.params.stop_token_ids);
  }
};

}  // namespace lathe
