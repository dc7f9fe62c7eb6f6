// What goes into the engine and what comes out.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "engine/sampler.h"
#include "engine/sampling_params.h"
#include "engine/token_constraint.h"

namespace lathe {

using RequestId = int64_t;  // in order of arrival

enum class FinishReason {
  kStop,    // an end token or a stop string
  kLength,  // max_tokens, or the context is full
  kAbort,   // the client asked
  kError,   // RequestOutput::error says why
};
std::string_view to_string(FinishReason reason);  // "stop", "length", "abort", "error"

// What speculative decoding did. (accepted + judge_accepted) / drafted is the acceptance rate; a
// cycle emits its accepted tokens and one more, unless one of them ends the text. Every token of
// the output is one of accepted, judge_accepted, corrected, bonus, or comes from a step without
// drafts; tokens of a window behind a stop string are in none of them.
struct SpeculationUsage {
  int64_t cycles = 0;    // steps with at least one draft token
  int64_t drafted = 0;   // draft tokens that were computed by the target model
  int64_t accepted = 0;  // of these, by the exact rule
  int64_t judged = 0;    // rejected by it, and put before the judge
  int64_t judge_accepted = 0;
  int64_t corrected = 0;  // tokens in place of a rejected draft token
  int64_t bonus = 0;      // tokens behind a window that was accepted as a whole
  // Sum over these of log p(token that the exact rule takes) - log p(token that was taken); can be
  // negative for a request that samples.
  double logprob_deficit = 0;

  SpeculationUsage& operator+=(const SpeculationUsage& other) {
    cycles += other.cycles;
    drafted += other.drafted;
    accepted += other.accepted;
    judged += other.judged;
    judge_accepted += other.judge_accepted;
    corrected += other.corrected;
    bonus += other.bonus;
    logprob_deficit += other.logprob_deficit;
    return *this;
  }
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;  // end tokens count
  int64_t cached_tokens = 0;      // of the prompt: shared with an earlier sequence
  SpeculationUsage speculation;
  double queue_seconds = 0;  // from add_request() to the step that computed the first row
};

// News of one request. Every span and view is valid during the callback only.
struct RequestOutput {
  RequestId id = 0;
  std::span<const int32_t> token_ids;  // new since the last output
  // New text, whole characters; behind the tokens while a character is incomplete or a stop string
  // may have begun. Empty when the engine has no tokenizer.
  std::string_view text;
  std::span<const SampledToken> logprobs;  // one per token, when the request asked for logprobs
  // With the first token of a request that asked for it: the final hidden state [hidden_size],
  // behind the last norm, of the prompt's last token.
  std::span<const float> hidden;
  std::optional<FinishReason> finish_reason;  // set in the last output of a request
  const Error* error = nullptr;               // with kError
  Usage usage;                                // so far
};

// Called by step(), in the thread that runs it; must not throw (a request whose callback does is
// aborted) and must not call the engine except add_request() and abort().
using OutputCallback = std::function<void(const RequestOutput&)>;

// How a request wants to be speculated for; without a drafter in the engine it has no effect.
struct SpeculativeParams {
  int64_t num_tokens = -1;  // drafted per step; -1: the engine's choice, 0: none
  // Of the engine's judge: -1: the engine's own, 0: exact. A larger one lets more tokens pass that
  // the model would not have chosen.
  double judge_threshold = -1;
  int64_t max_judge_accepts = -1;   // exact after so many; -1: no limit
  double max_logprob_deficit = -1;  // exact once the deficit reaches it; -1: no limit
};

struct Request {
  std::vector<int32_t> prompt;  // token ids, at least one
  SamplingParams params;
  SpeculativeParams speculative;
  OutputCallback on_output;
  std::unique_ptr<TokenConstraint> constraint;  // null: none
  bool wants_hidden = false;                    // RequestOutput::hidden with the first token
  bool keeps_prefix = true;                     // its tokens stay in the cache for later prompts
};

}  // namespace lathe
