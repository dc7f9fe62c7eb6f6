#include "engine/speculation/draft_plan.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace lathe {
namespace {

constexpr double kDiscount = 0.97;   // a cycle counts half after 23 more
constexpr double kPriorWeight = 4;   // as so many judged tokens
constexpr double kNewsWeight = 0.1;  // of a step's time
constexpr double kMostNews = 1.5;    // times what was known
constexpr double kOutlier = 3;       // likewise
constexpr int kManyOutliers = 8;
constexpr double kForgotten = 0.002;  // by one step: half in 350
constexpr std::size_t kMaxThresholds = 24;
constexpr int64_t kDepths[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, kMaxDraftTokens};

}  // namespace

StepTimes::StepTimes(std::vector<double> rows, std::vector<double> seconds)
    : rows_(std::move(rows)), seconds_(std::move(seconds)) {
  LATHE_CHECK(!rows_.empty() && rows_.size() == seconds_.size());
  for (std::size_t i = 1; i < seconds_.size(); ++i) {
    seconds_[i] = std::max(seconds_[i], seconds_[i - 1]);
  }
}

double StepTimes::at(double rows) const {
  if (rows <= rows_.front() || rows_.size() == 1) return seconds_.front();
  std::size_t i = 1;
  while (i + 1 < rows_.size() && rows_[i] < rows) ++i;
  const double slope = (seconds_[i] - seconds_[i - 1]) / (rows_[i] - rows_[i - 1]);
  return seconds_[i - 1] + slope * (rows - rows_[i - 1]);
}

void TimeRatio::add(double measured, double predicted) {
  if (!(measured > 0) || !(predicted > 0)) return;
  const double ratio = measured / predicted;
  num_outliers_ = ratio > kOutlier * value_ ? num_outliers_ + 1 : 0;
  if (num_outliers_ > 0 && num_outliers_ < kManyOutliers) return;
  value_ += kNewsWeight * (std::min(ratio, kMostNews * value_) - value_);
}

void TimeRatio::forget() { value_ += kForgotten * (1 - value_); }

double expected_tokens(double acceptance, int64_t num_drafts) {
  double reached = 1;
  double sum = 1;
  for (int64_t i = 0; i < num_drafts; ++i) {
    reached *= acceptance;
    sum += reached;
  }
  return sum;
}

double DraftPlanner::plan(const DraftPlanCosts& costs, std::span<const double> acceptance,
                          std::span<const int64_t> limits, double min_gain,
                          std::span<int64_t> lengths) {
  const std::size_t n = acceptance.size();
  std::fill(lengths.begin(), lengths.end(), 0);
  thresholds_.clear();
  int64_t longest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    longest = std::max(longest, limits[i]);
    double reached = 1;
    for (int64_t j = 0; j < limits[i]; ++j) thresholds_.push_back(reached *= acceptance[i]);
  }
  if (longest == 0 || n == 0) return 1;
  std::sort(thresholds_.begin(), thresholds_.end());
  // One sequence: every length has its threshold. Several: a position that is drafted for one costs
  // little more for all, so how deep windows may go at most is a second choice.
  const std::size_t max_trials = n == 1 ? kMaxDraftTokens : kMaxThresholds;
  const std::size_t stride = (thresholds_.size() + max_trials - 1) / max_trials;

  const auto plain = static_cast<double>(n) / costs.target(static_cast<double>(n));
  double best_rate = plain * min_gain;
  double best_gain = 1;
  trial_.resize(n);
  for (const int64_t cap : kDepths) {
    if (n == 1 && cap < longest) continue;
    for (std::size_t t = 0; t < thresholds_.size(); t += stride) {
      const double rate = fill_trial(costs, acceptance, limits, thresholds_[t], cap);
      if (rate <= best_rate) continue;
      best_rate = rate;
      best_gain = rate / plain;
      std::copy(trial_.begin(), trial_.end(), lengths.begin());
    }
    if (cap >= longest) break;
  }
  return best_gain;
}

// The lengths that draft while a token's chance is at least `least`, up to `cap` tokens, and their
// tokens per second.
double DraftPlanner::fill_trial(const DraftPlanCosts& costs, std::span<const double> acceptance,
                                std::span<const int64_t> limits, double least, int64_t cap) {
  double tokens = 0;
  double rows = 0;
  int64_t depth = 0;
  for (std::size_t i = 0; i < trial_.size(); ++i) {
    int64_t length = 0;
    double reached = acceptance[i];
    double expected = 1;
    while (length < std::min(limits[i], cap) && reached >= least) {
      expected += reached;
      reached *= acceptance[i];
      ++length;
    }
    trial_[i] = length;
    tokens += expected;
    rows += static_cast<double>(1 + length);
    depth = std::max(depth, length);
  }
  double seconds = costs.target(rows);
  for (int64_t j = 0; j < depth; ++j) {
    const auto drafting =
        std::count_if(trial_.begin(), trial_.end(), [j](int64_t length) { return length > j; });
    seconds += costs.draft(static_cast<double>(drafting));
  }
  return tokens / seconds;
}

double estimated_acceptance(const DraftState& state, double prior) {
  return (state.num_accepted + kPriorWeight * prior) /
         (state.num_accepted + state.num_rejected + kPriorWeight);
}

void learn_acceptance(DraftState& state, int64_t drafted, int64_t accepted) {
  state.num_accepted = kDiscount * state.num_accepted + static_cast<double>(accepted);
  state.num_rejected = kDiscount * state.num_rejected + (accepted < drafted ? 1 : 0);
}

}  // namespace lathe
