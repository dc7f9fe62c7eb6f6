#include "engine/speculation/speculator.h"

#include <algorithm>
#include <new>

#include "base/error.h"

namespace lathe {
namespace {

constexpr double kPrior = 0.7;     // acceptance, until something is known
constexpr double kMinGain = 1.02;  // predicted: below, drafting is not worth the risk
// A sequence without drafts is given one again after so many steps, in case its text has become
// easier; each time in vain doubles the wait.
constexpr int64_t kFirstProbe = 32;
constexpr int64_t kLastProbe = 1024;
// Where drafting is said to win less than this, a step goes without so often, to see whether it
// does.
constexpr double kSure = 1.3;
constexpr int64_t kPlainStep = 64;
constexpr double kHopeful = 0.9;  // the acceptance that a probe hopes for
// Long windows are for few sequences (rows of many exceed what a step computes for free), and the
// planner's time grows with what it may choose from: 64 sequences with 64 tokens each took 0.9 ms a
// step, with these limits 0.1 ms (one core of a Xeon, 2026-11).
constexpr int64_t kAutoTokens = 256;     // of all sequences together,
constexpr int64_t kAutoTokensEach = 16;  // but so many for each

}  // namespace

void validate(const SpeculationOptions& options) {
  const auto check = [](const char* field, int64_t value, int64_t low) {
    if (value >= low && value <= kMaxDraftTokens) return;
    fail(ErrorCode::kInvalidArgument, field, " is ", value, "; it must be in [", low, ", ",
         kMaxDraftTokens, "]");
  };
  check("num_tokens", options.num_tokens, -1);
  check("max_auto_tokens", options.max_auto_tokens, 1);
}

Speculator::Speculator(std::unique_ptr<Drafter> drafter, const SpeculationOptions& options,
                       StepTimes target_times, int64_t max_num_seqs)
    : drafter_(std::move(drafter)), options_(options), target_times_(std::move(target_times)) {
  validate(options);
  const auto n = static_cast<std::size_t>(max_num_seqs);
  candidates_.reserve(n);
  acceptance_.reserve(n);
  limits_.reserve(n);
  lengths_.reserve(n);
  jobs_.reserve(n);
}

void Speculator::propose(std::span<Sequence* const> running, int64_t max_rows) {
  predicted_seconds_ = 0;
  list_candidates(running, max_rows);
  if (candidates_.empty()) return;
  choose_lengths();
  draft();
  if (options_.num_tokens < 0) predict_time();
}

void Speculator::draft() {
  jobs_.clear();
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    DraftState& state = candidates_[i]->draft_state;
    state.idle_steps = lengths_[i] > 0 ? 0 : state.idle_steps + 1;
    if (lengths_[i] > 0) jobs_.push_back({candidates_[i], lengths_[i]});
  }
  if (jobs_.empty()) return;
  const auto drop = [&] {
    for (const DraftJob& job : jobs_) job.sequence->draft.clear();
  };
  try {
    drafter_->propose(jobs_);
  } catch (const Error&) {
    drop();  // speculation is a luxury: the step goes on without
  } catch (const std::bad_alloc&) {
    drop();
  }
}

// Of the step with the drafts that there are now.
void Speculator::predict_time() {
  const auto n = static_cast<double>(candidates_.size());
  double rows = n;
  predicted_seconds_ = 0;
  for (int64_t depth = 0;; ++depth) {
    const auto drafted =
        std::count_if(candidates_.begin(), candidates_.end(),
                      [depth](const Sequence* s) { return s->draft.size() > depth; });
    if (drafted == 0) break;
    rows += static_cast<double>(drafted);
    predicted_seconds_ += drafter_->seconds(static_cast<double>(drafted));
  }
  has_windows_ = rows > n;
  predicted_seconds_ += target_times_.at(rows);
}

void Speculator::learn_time(double seconds) {
  (has_windows_ ? window_ratio_ : plain_ratio_).add(seconds, predicted_seconds_);
  (has_windows_ ? plain_ratio_ : window_ratio_).forget();
}

void Speculator::list_candidates(std::span<Sequence* const> running, int64_t max_rows) {
  candidates_.clear();
  acceptance_.clear();
  limits_.clear();
  for (Sequence* sequence : running) {
    sequence->draft.clear();
    if (sequence->is_decoding()) candidates_.push_back(sequence);
  }
  if (candidates_.empty()) return;
  const auto share = std::max<int64_t>(0, max_rows / static_cast<int64_t>(candidates_.size()) - 1);
  const int64_t auto_limit =
      std::min(options_.max_auto_tokens,
               std::max(kAutoTokensEach, kAutoTokens / static_cast<int64_t>(candidates_.size())));
  for (const Sequence* sequence : candidates_) {
    const int64_t wanted = sequence->request.speculative.num_tokens;
    int64_t limit = options_.num_tokens >= 0 ? options_.num_tokens : auto_limit;
    if (wanted >= 0) limit = std::min(wanted, kMaxDraftTokens);
    // The last token that may be generated needs no draft behind it.
    const int64_t useful = sequence->max_new_tokens - sequence->num_output() - 1;
    limits_.push_back(std::max<int64_t>(0, std::min({limit, useful, share})));
    acceptance_.push_back(acceptance(*sequence));
  }
}

double Speculator::acceptance(const Sequence& sequence) const {
  return estimated_acceptance(sequence.draft_state, estimated_acceptance(all_, kPrior));
}

void Speculator::choose_lengths() {
  lengths_.assign(limits_.begin(), limits_.end());
  if (options_.num_tokens >= 0) return;
  const DraftPlanCosts costs = {
      .target = [this](double rows) { return target_times_.at(rows); },
      .draft = [this](double sequences) { return drafter_->seconds(sequences); }};
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    if (candidates_[i]->request.speculative.num_tokens >= 0) continue;
    DraftState& state = candidates_[i]->draft_state;
    if (state.probe_after == 0) state.probe_after = kFirstProbe;
    if (state.idle_steps < state.probe_after || limits_[i] == 0) continue;
    acceptance_[i] = std::max(acceptance_[i], kHopeful);
    limits_[i] = std::min<int64_t>(limits_[i], 2);
    state.probe_after = std::min(2 * state.probe_after, kLastProbe);
    state.idle_steps = 0;
  }
  const double ratio = window_ratio_.value() / plain_ratio_.value();
  const double gain =
      planner_.plan(costs, acceptance_, limits_, kMinGain * ratio, lengths_) / ratio;
  if (gain < kSure && --steps_until_plain_ < 0) {
    std::fill(lengths_.begin(), lengths_.end(), 0);
    steps_until_plain_ = kPlainStep;
  }
  // Whoever asked for a number of tokens gets it.
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    if (candidates_[i]->request.speculative.num_tokens >= 0) lengths_[i] = limits_[i];
  }
}

void Speculator::learn(Sequence& sequence, int64_t drafted, int64_t passed) {
  learn_acceptance(sequence.draft_state, drafted, passed);
  learn_acceptance(all_, drafted, passed);
  if (passed == drafted) sequence.draft_state.probe_after = 0;
}

}  // namespace lathe
