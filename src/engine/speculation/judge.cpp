#include "engine/speculation/judge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "engine/logits.h"

namespace lathe {
namespace {

constexpr double kUndecided = 0.9;  // of KlJudge: above, the target is sure and stays exact

}  // namespace

double LogisticJudge::score(std::span<const float> hidden) const {
  double sum = static_cast<double>(bias_);
  for (std::size_t i = 0; i < weight_.size(); ++i) {
    sum += static_cast<double>(weight_[i]) * static_cast<double>(hidden[i]);
  }
  return sum;
}

bool LogisticJudge::accepts(const JudgedToken& token, double threshold) const {
  if (!(threshold > 0) || token.target_prob < floor_) return false;
  const double limit = threshold < 1 ? std::log(threshold / (1 - threshold))
                                     : std::numeric_limits<double>::infinity();
  return score(token.hidden) < limit;  // false for NaN
}

double LogisticJudge::probability(const JudgedToken& token) const {
  return 1 / (1 + std::exp(-score(token.hidden)));
}

bool TopKJudge::accepts(const JudgedToken& token, double threshold) const {
  const float logit = token.logits[static_cast<std::size_t>(token.draft)];
  int64_t rank = 0;
  for (std::size_t i = 0; i < token.logits.size(); ++i) {
    const bool is_before = token.logits[i] > logit ||
                           (token.logits[i] == logit && static_cast<int32_t>(i) < token.draft);
    rank += is_before;
  }
  return static_cast<double>(rank) < threshold && token.target_prob >= kJudgeFloor;
}

bool KlJudge::accepts(const JudgedToken& token, double threshold) const {
  const std::span<const float> draft_logits = token.draft_logits;
  if (!(threshold > 0) || draft_logits.empty() || draft_logits.size() > token.logits.size()) {
    return false;
  }
  const std::span<const float> logits = token.logits.first(draft_logits.size());
  const double p_total = log_sum_exp(logits);
  const double q_total = log_sum_exp(draft_logits);
  double divergence = 0;
  double most = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double log_p = static_cast<double>(logits[i]) - p_total;
    const double p = std::exp(log_p);
    most = std::max(most, p);
    // Where q is 0 and p is not, the divergence is infinite, and so is this.
    if (p > 0) divergence += p * (log_p - static_cast<double>(draft_logits[i]) + q_total);
  }
  return divergence < threshold && most <= kUndecided && token.target_prob >= kJudgeFloor;
}

bool TypicalJudge::accepts(const JudgedToken& token, double threshold) const {
  if (!(threshold > 0)) return false;
  const double total = log_sum_exp(token.logits);
  double entropy = 0;
  for (const float logit : token.logits) {
    const double log_p = static_cast<double>(logit) - total;
    const double p = std::exp(log_p);
    if (p > 0) entropy -= p * log_p;
  }
  const double d = std::max(0.0, 1 - threshold);
  const auto logit = static_cast<double>(token.logits[static_cast<std::size_t>(token.draft)]);
  const double p = std::exp(logit - total);
  return p > std::min(d * d, d * std::exp(-entropy)) && token.target_prob >= kJudgeFloor;
}

std::unique_ptr<Judge> baseline_judge(const std::string& name) {
  if (name == "top-k") return std::make_unique<TopKJudge>();
  if (name == "kl") return std::make_unique<KlJudge>();
  if (name == "typical") return std::make_unique<TypicalJudge>();
  fail(ErrorCode::kInvalidArgument, "judge ", name,
       ": unknown; give a judge file, or top-k, kl or typical");
}

}  // namespace lathe
