// Prompts that only run through the model, without generating: for embeddings (hidden states) and
// for the log-probabilities of a prompt's own tokens. Works beside an Engine, in its thread and
// between its steps, a chunk at a time, so that a long text does not delay the tokens of others.
//
// Threads: add() and has_work() from any; step() from one at a time, the one that runs the model.
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "engine/sampler.h"
#include "model/model.h"

namespace lathe {

struct PromptPassResult {
  std::vector<float> hidden;  // [hidden_size]; kLast, kMean
  // kLogprobs, for each token but the first: its log-probability behind those in front of it, and
  // the most probable tokens in its place.
  std::vector<float> logprobs;
  std::vector<std::vector<TokenLogprob>> top;
};

struct PromptPassJob {
  enum class Wants {
    kLast,      // the last token's hidden state, behind the last norm
    kMean,      // the mean of all tokens' hidden states
    kLogprobs,  // see PromptPassResult
  };
  std::vector<int32_t> tokens;  // at least one
  Wants wants = Wants::kLast;
  int64_t num_top = 0;
  // One of them is called, once, in the thread of step(); must not throw. Not called when canceled.
  std::function<void(PromptPassResult)> on_done;
  std::function<void(const Error&)> on_error;
  std::atomic<bool> canceled{false};  // set by anyone: the job is dropped at its next chunk
};

class PromptPass {
 public:
  // max_tokens: of a job. Borrows model and exec.
  PromptPass(Model& model, KvFormat kv_format, int64_t max_tokens, Exec& exec);
  ~PromptPass();

  // shared_ptr: the caller may cancel while step() works on it. Throws kInvalidArgument for an
  // empty or too long prompt, or a token that is none.
  void add(std::shared_ptr<PromptPassJob> job);
  bool has_work() const;
  // Computes at most max_rows rows of the oldest job. False when there was nothing to do. Errors of
  // a job go to its on_error.
  bool step(int64_t max_rows);
  int64_t max_tokens() const { return max_tokens_; }

 private:
  void begin();
  void compute(int64_t num_rows);
  void take_logprobs(int64_t num_rows);
  void end();

  Model& model_;
  const KvFormat kv_format_;
  const int64_t max_tokens_;
  Exec& exec_;
  mutable std::mutex mutex_;
  std::deque<std::shared_ptr<PromptPassJob>> jobs_;

  // The job in progress.
  std::shared_ptr<PromptPassJob> current_;
  std::unique_ptr<KvCache> cache_;  // kept while it is large enough
  KvSequence sequence_;
  int64_t position_ = 0;
  std::vector<double> hidden_sum_;  // [hidden_size]
  Buffer hidden_;                   // [rows, hidden_size]
  Buffer logits_;                   // [rows, vocab_size]
  std::vector<int64_t> positions_;
  std::vector<int32_t> logit_rows_;
  PromptPassResult result_;
};

}  // namespace lathe
