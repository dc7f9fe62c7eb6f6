// Continuous batching: step() computes one flat list of rows, prompt chunks and single tokens
// alike, and chooses the next token of every sequence that reached its end.
//
// A request's tokens depend on its prompt and parameters only, not on its companions, on how its
// prompt was cut into chunks, or on preemption: kernels treat rows independently, and random
// numbers are a function of (seed, position).
//
// With a drafter, a step computes a window of draft tokens behind a sequence's last token and keeps
// those that the model itself would have chosen (sampler.h has the rule and why it is exact). A
// request at temperature 0 or with `coupled` gets the tokens it would get without; one that samples
// gets tokens of the same distribution, which may then depend on the lengths of the windows. On a
// GPU "the same" is up to Model::batch_tolerance().
//
// Threads: add_request(), abort(), has_work(), wait_for_work() and stats() may be called from any
// thread at any time; step() from one thread at a time.
#pragma once
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "engine/device_sampling.h"
#include "engine/engine_options.h"
#include "engine/prefix_parker.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/speculation/judge.h"
#include "engine/speculation/speculator.h"
#include "model/model.h"
#include "text/tokenizer.h"

namespace lathe {

// What /metrics wants to know beyond the sums of SpeculationUsage.
struct SpeculationStats {
  // [i]: windows whose draft token i (from 0) became part of an output.
  std::array<int64_t, kMaxDraftTokens> accepted_at{};
  std::array<int64_t, kMaxDraftTokens + 1> windows_of{};  // by number of draft tokens
  // P(important) of judged tokens, where the judge has one: counts by kJudgeScoreBounds.
  static constexpr std::array<double, 12> kJudgeScoreBounds = {.001, .005, .01, .02, .05, .1,
                                                               .2,   .3,   .5,  .7,  .9,  1};
  std::array<int64_t, kJudgeScoreBounds.size()> judge_scores{};
  double judge_score_sum = 0;
  double draft_seconds = 0;   // spent on proposing
  double verify_seconds = 0;  // of steps with at least one window, from forward() to the choice
};

struct EngineStats {
  int64_t num_running = 0;
  int64_t num_waiting = 0;
  int64_t num_preemptions = 0;
  int64_t prompt_tokens = 0;  // of all requests that were taken up
  int64_t generated_tokens = 0;
  int64_t steps = 0;
  // Live blocks, and those of codes of running sequences (--kv aqua2); a block that several
  // sequences share counts once.
  KvBlocks cache_blocks;
  KvBlocks free_cache_blocks;  // the rest: running, or kept for later prompts
  KvBlocks running_cache_blocks;
  KvBlocks cache_block_bytes;        // of one block of each kind; 0: there are none
  int64_t cache_block_numbers = 0;   // keys and values of all layers that a block holds
  int64_t shared_prompt_tokens = 0;  // taken from earlier sequences instead of computed
  SpeculationUsage speculation;      // of all requests
  SpeculationStats windows;
  ParkingStats parking;  // zeros without a parker

  // How full the cache is of what runs, 0 to 1: by the kind of block that is scarcer.
  double cache_usage() const;
};

class Engine {
 public:
  // options: resolved (engine_options.h); cache: empty, with their limits. tokenizer: null for
  // token ids only (no text, no stop strings). Borrows model, tokenizer and exec.
  Engine(Model& model, std::unique_ptr<KvCache> cache, const Tokenizer* tokenizer,
         const EngineOptions& options, Exec& exec);
  ~Engine();

  // From now on drafts come from `drafter`. While no request is there. With options.num_tokens -1
  // this measures the model's step, which takes about as long as a dozen of them. Throws
  // kInvalidArgument.
  void set_drafter(std::unique_ptr<Drafter> drafter, const SpeculationOptions& options);
  // From now on `judge` may accept what the exact rule rejects, for requests that do not say
  // otherwise at this threshold. Needs a drafter, one with logits for a judge that compares them;
  // while no request is there. Throws kInvalidArgument.
  void set_judge(std::unique_ptr<Judge> judge, double threshold);
  const Judge* judge() const { return judge_.get(); }
  std::span<const int32_t> end_tokens() const { return end_tokens_; }
  bool has_drafter() const { return speculator_ != nullptr; }

  // From now on finished and preempted sequences are parked (prefix_parker.h). While no request is
  // there. The parker must be of this engine's cache.
  void set_parker(std::unique_ptr<PrefixParker> parker);
  KvCache& cache() { return *cache_; }

  // Queues a request. Throws kInvalidArgument when it cannot be run (bad parameters, an empty or
  // too long prompt); on_output is then never called.
  RequestId add_request(Request request);
  // The request's last output, with kAbort, comes from a later step(). Unknown or finished: no-op.
  void abort(RequestId id);

  // One iteration. False when there was nothing to do. Errors of a request end that request, with
  // an output that carries them; an error of the forward pass ends all requests of the step. Does
  // not allocate after warm-up in steps in which no request arrives or ends.
  bool step();
  bool has_work() const;
  // Returns when there is work or the time is over.
  void wait_for_work(std::chrono::milliseconds timeout);

  EngineStats stats() const;
  const EngineOptions& options() const { return options_; }
  const ModelConfig& config() const { return model_.config(); }
  const Tokenizer* tokenizer() const { return tokenizer_; }
  // Adds the time of each stage of step() and forward() to *profile from now on; null: stops.
  void set_profile(StepProfile* profile);

 private:
  std::unique_ptr<Sequence> make_sequence(Request request) const;
  void receive();
  void propose_drafts();
  void build_batch(std::span<const ScheduledRows> rows);
  bool forward(std::span<const ScheduledRows> rows);
  void sample();
  void deliver();
  bool deliver_token(Sequence& sequence, const SampledToken& sampled,
                     std::span<const float> hidden);
  void finish(Sequence& sequence, FinishReason reason, const Error* error);
  bool emit(Sequence& sequence, RequestOutput output);
  void retire(Sequence& sequence, bool keep_prefix);
  bool fail_stuck();
  void publish_stats();

  Model& model_;
  std::unique_ptr<KvCache> cache_;
  const Tokenizer* tokenizer_;
  const EngineOptions options_;
  Exec& exec_;
  std::vector<int32_t> end_tokens_;
  std::unique_ptr<PrefixParker> parker_;  // null: none
  Scheduler scheduler_;
  std::vector<Sampler> samplers_;           // one per thread that samples
  std::unique_ptr<Speculator> speculator_;  // null: none
  std::unique_ptr<Judge> judge_;            // null: exact
  double judge_threshold_ = 0;
  SpeculationUsage speculation_;
  SpeculationStats windows_;
  StepProfile* profile_ = nullptr;
  int64_t num_prompt_tokens_ = 0;
  int64_t num_generated_ = 0;
  int64_t num_steps_ = 0;

  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;  // taken up, not finished

  // The step in progress.
  std::vector<int32_t> token_ids_;
  std::vector<int64_t> positions_;
  std::vector<KvRows> kv_rows_;
  std::vector<int32_t> logit_rows_;
  struct Choice {  // a sequence that gets tokens: rows of logits from its last token on
    Sequence* sequence = nullptr;
    std::size_t first_row = 0;  // of logits, and of sampled_
    int64_t num_drafts = 0;
    int64_t num_tokens = 0;  // chosen
    int64_t num_passed = 0;  // drafts, by the exact rule or by the judge
    int64_t num_judged = 0;
    int64_t judge_accepted = 0;
    double logprob_deficit = 0;
    std::unique_ptr<Error> error;
  };
  // How a row's token came about.
  enum class TokenSource : char { kPlain, kMatch, kJudge, kCorrection, kBonus };
  struct Verdict {
    TokenSource source = TokenSource::kPlain;
    double logprob_deficit = 0;                                     // with kJudge
    double probability = std::numeric_limits<double>::quiet_NaN();  // of being important
  };
  // sampler: null when the model has chosen.
  void choose_tokens(Choice& choice, Sampler* sampler);
  void choose_window(Choice& choice, Sampler* sampler);
  void count(Sequence& sequence, const SpeculationUsage& news);
  void count_window(const Choice& choice);
  void count_token(const Choice& choice, int64_t idx);
  bool lets_pass(Choice& choice, int64_t draft, Sampler* sampler, Acceptance& exact);
  double judge_threshold(const Choice& choice) const;
  std::span<const float> hidden_row(std::size_t row) const;
  std::span<float> logits_row(std::size_t row);
  std::vector<Choice> choices_;
  std::vector<SampledToken> sampled_;  // [logit_rows_.size()]
  std::vector<Verdict> verdicts_;      // likewise
  bool samples_on_device_ = false;     // this step
  bool keeps_hidden_ = false;          // this step
  Buffer hidden_;                      // [logit_rows_.size(), hidden_size], with keeps_hidden_
  Buffer logits_;  // [logit_rows_.size(), vocab_size]; unused with samples_on_device_
  DeviceSampling device_sampling_;

  // Shared with the callers' threads.
  mutable std::mutex mutex_;
  std::condition_variable work_arrived_;
  RequestId next_id_ = 1;
  std::vector<std::unique_ptr<Sequence>> arrivals_;
  std::vector<RequestId> aborts_;
  bool is_idle_ = true;  // nothing taken up
  EngineStats stats_;
  std::vector<std::unique_ptr<Sequence>> taken_arrivals_;  // step()'s side of the two above
  std::vector<RequestId> taken_aborts_;
};

}  // namespace lathe
