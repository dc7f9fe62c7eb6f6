// How many tokens to draft for whom, from measured times and from what was accepted so far.
//
// With acceptance a per token, a window of k drafts emits E = 1 + a + ... + a^k tokens on average
// and costs one step of the target model over k + 1 rows and k steps of the draft model. For a
// batch, the lengths that maximize (tokens emitted) / (time) are of the form "draft while the
// chance a^j that the j-th token is reached and accepted is at least x, and j <= K": for any number
// of rows and of draft steps, the likeliest tokens are the best ones. The search is over x and K.
// Source: Leviathan et al. 2023, section 3; Liu et al., "Optimizing Speculative Decoding for
// Serving LLMs Using Goodput" (TurboSpec, 2024).
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/sequence.h"

namespace lathe {

// A time as a function of a number of rows, linear between measured points and beyond the last.
class StepTimes {
 public:
  StepTimes() = default;
  // Ascending rows, at least one. A time below an earlier one counts as the earlier one's.
  StepTimes(std::vector<double> rows, std::vector<double> seconds);
  double at(double rows) const;
  bool empty() const { return rows_.empty(); }

 private:
  std::vector<double> rows_;
  std::vector<double> seconds_;
};

// How long steps took over what StepTimes predict of them, lately. Those are taken once, of one
// sequence and nothing else; a step has more to do.
class TimeRatio {
 public:
  // A step that took several times as long as those before it is passed over, unless it is one of
  // many in a row: a GPU makes a graph, a machine swaps.
  void add(double measured, double predicted);
  // A step of the other kind: what was learnt wears off, so that nothing is given up for good.
  void forget();
  double value() const { return value_; }

 private:
  double value_ = 1;
  int num_outliers_ = 0;  // in a row
};

// Expected tokens of a cycle with k drafts that are accepted with probability a each.
double expected_tokens(double acceptance, int64_t num_drafts);

struct DraftPlanCosts {
  std::function<double(double rows)> target;      // seconds of a target step
  std::function<double(double sequences)> draft;  // seconds of one drafted position
};

// lengths[i] <= limits[i] for sequences with acceptance[i], all decoding in one step. All 0 when
// no choice is predicted to be min_gain times as fast as none. Returns the predicted speedup.
class DraftPlanner {
 public:
  double plan(const DraftPlanCosts& costs, std::span<const double> acceptance,
              std::span<const int64_t> limits, double min_gain, std::span<int64_t> lengths);

 private:
  double fill_trial(const DraftPlanCosts& costs, std::span<const double> acceptance,
                    std::span<const int64_t> limits, double least, int64_t cap);

  std::vector<double> thresholds_;
  std::vector<int64_t> trial_;
};

// The discounted mean of a sequence's acceptances, from `prior` where there are few.
double estimated_acceptance(const DraftState& state, double prior);
// After a cycle: of `drafted` tokens the first `accepted` were.
void learn_acceptance(DraftState& state, int64_t drafted, int64_t accepted);

}  // namespace lathe
