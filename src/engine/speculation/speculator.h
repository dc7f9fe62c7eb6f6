// The part of step() that comes before the rows are chosen: who gets how many draft tokens, and
// what they are; and what is learned from how they fared.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "engine/speculation/draft_plan.h"
#include "engine/speculation/drafter.h"

namespace lathe {

struct SpeculationOptions {
  // Draft tokens of a step, at most; -1: chosen step by step from measured times and acceptance,
  // none where that is predicted to be slower.
  int64_t num_tokens = -1;
  // The longest window when it is chosen; with many sequences at once it is shorter.
  int64_t max_auto_tokens = kMaxDraftTokens;
};
// Throws kInvalidArgument, naming the field, the value and the range.
void validate(const SpeculationOptions& options);

class Speculator {
 public:
  // target_times: of a step of the target model by rows; only with num_tokens -1.
  Speculator(std::unique_ptr<Drafter> drafter, const SpeculationOptions& options,
             StepTimes target_times, int64_t max_num_seqs);

  // Fills the drafts of those of `running` that decode; all windows together have at most max_rows
  // rows. When drafting fails, there are none.
  void propose(std::span<Sequence* const> running, int64_t max_rows);
  // Of the sequence's `drafted` tokens, `passed` passed the exact rule or the judge.
  void learn(Sequence& sequence, int64_t drafted, int64_t passed);
  // The step that the last propose() began took so long, all of it, and had no rows but those of
  // sequences that decode.
  void learn_time(double seconds);
  bool has_draft_logits() const { return drafter_->has_logits(); }
  // Whether drafts come with the logits they were chosen by, where the drafter has any.
  void keep_draft_logits(bool keep) { drafter_->keep_logits(keep); }
  void retire(Sequence& sequence) { drafter_->retire(sequence); }

 private:
  void list_candidates(std::span<Sequence* const> running, int64_t max_rows);
  void choose_lengths();
  void draft();
  double acceptance(const Sequence& sequence) const;
  void predict_time();

  std::unique_ptr<Drafter> drafter_;
  SpeculationOptions options_;
  StepTimes target_times_;
  DraftState all_;  // acceptance of all sequences, the prior of a new one
  DraftPlanner planner_;
  TimeRatio plain_ratio_, window_ratio_;  // of steps without and with windows
  int64_t steps_until_plain_ = 0;

  // The step in progress.
  std::vector<Sequence*> candidates_;
  std::vector<double> acceptance_;
  std::vector<int64_t> limits_;
  std::vector<int64_t> lengths_;
  std::vector<DraftJob> jobs_;
  double predicted_seconds_ = 0;  // 0: nobody wants to know
  bool has_windows_ = false;
};

}  // namespace lathe
