// Rules that may accept a draft token although the exact rule rejects it. With one of them the
// output is no longer the target model's: for one position the total variation distance is the
// probability that the judge accepts there, so over a sequence it is at most the expected number
// of tokens so accepted, which Usage tells.
//
//   logistic  a linear classifier on the target's final hidden state at the draft token
//             (AutoJudge: Garipov et al. 2025, arXiv 2504.20039): accepts when P(important) < t
//   top-k     the token is among the target's k most probable
//   kl        KL(p || q) < t, and the target is undecided (its best token <= .9): the training-free
//             rule that AutoJudge has been compared with
//   typical   p(token) > min(e, d exp(-H(p))) (Medusa: Cai et al. 2024, section 3.3.1)
//
// All are pure functions of one row, so results do not depend on the batch.
#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace lathe {

// A draft token that the exact rule rejected.
struct JudgedToken {
  int32_t draft = 0;
  // [vocab_size] that chose against it, behind the transforms; empty for a judge without
  // needs_logits() when they are on a GPU.
  std::span<const float> logits;
  std::span<const float> hidden;  // [hidden_size] of the row whose input the draft token is
  // [common ids] the draft model's, before the transforms; empty when it keeps none.
  std::span<const float> draft_logits;
  // Of the draft token under the request's sampling, with top-k, top-p and min-p; at temperature 0,
  // which draws nothing, behind mask, biases and penalties alone.
  double target_prob = 0;
};

class Judge {
 public:
  virtual ~Judge() = default;
  virtual std::string name() const = 0;
  virtual bool needs_hidden() const { return false; }
  virtual bool needs_logits() const { return true; }
  virtual bool needs_draft_logits() const { return false; }
  // threshold: in the judge's own measure, >= 0; larger accepts more, 0 accepts nothing.
  virtual bool accepts(const JudgedToken& token, double threshold) const = 0;
  // P(important), where the judge has one, for statistics; NaN: it has none.
  virtual double probability(const JudgedToken&) const {
    return std::numeric_limits<double>::quiet_NaN();
  }
};

// Guard of every judge: tokens with a smaller target_prob are never accepted.
inline constexpr double kJudgeFloor = 1e-4;

// weight [hidden_size] with the standardization folded in: P(important) = sigmoid(weight . h +
// bias). Strict: P exactly at the threshold is rejected. threshold: 1 or more accepts whatever
// passes the floor.
class LogisticJudge final : public Judge {
 public:
  LogisticJudge(std::vector<float> weight, float bias, double floor = kJudgeFloor)
      : weight_(std::move(weight)), bias_(bias), floor_(floor) {}
  std::string name() const override { return "logistic"; }
  bool needs_hidden() const override { return true; }
  bool needs_logits() const override { return false; }
  bool accepts(const JudgedToken& token, double threshold) const override;
  double probability(const JudgedToken& token) const override;
  // log(P / (1 - P)).
  double score(std::span<const float> hidden) const;

 private:
  std::vector<float> weight_;
  float bias_;
  double floor_;
};

// threshold: k.
class TopKJudge final : public Judge {
 public:
  std::string name() const override { return "top-k"; }
  bool accepts(const JudgedToken& token, double threshold) const override;
};

// threshold: of the divergence, in nats; of both distributions over the ids that the models have in
// common, renormalized (vocabularies may differ by padding).
class KlJudge final : public Judge {
 public:
  std::string name() const override { return "kl"; }
  bool needs_draft_logits() const override { return true; }
  bool accepts(const JudgedToken& token, double threshold) const override;
};

// threshold: d; e = d^2, as Medusa couples them (d = sqrt(e)), turned round so that larger accepts
// more: p(token) > min(e, d exp(-H)) with d = 1 - threshold.
class TypicalJudge final : public Judge {
 public:
  std::string name() const override { return "typical"; }
  bool accepts(const JudgedToken& token, double threshold) const override;
};

// "top-k", "kl", "typical". Throws kInvalidArgument listing them.
std::unique_ptr<Judge> baseline_judge(const std::string& name);

}  // namespace lathe
