#include "server/judge_shadow.h"

#include <algorithm>

namespace lathe {
namespace {

// Allows one text only, token by token.
class ForcedText final : public TokenConstraint {
 public:
  explicit ForcedText(std::vector<int32_t> tokens) : tokens_(std::move(tokens)) {}
  void allowed_tokens(std::span<uint64_t> words) override {
    std::fill(words.begin(), words.end(), 0);
    const auto token = static_cast<std::size_t>(tokens_[std::min(next_, tokens_.size() - 1)]);
    words[token / 64] = uint64_t{1} << (token % 64);
  }
  void accept(int32_t) override { ++next_; }
  void rollback(int64_t n) override { next_ -= static_cast<std::size_t>(n); }

 private:
  std::vector<int32_t> tokens_;
  std::size_t next_ = 0;
};

}  // namespace

JudgeShadow::JudgeShadow(Engine& engine, JudgeShadowOptions options)
    : deficit({-10, -1, -.1, 0, .1, .5, 1, 2, 5, 10, 20, 50, 100}),
      engine_(engine),
      options_(std::move(options)),
      threshold_(options_.threshold),
      rng_(options_.seed) {
  if (options_.alarm_rate > 0) alarm_.emplace(options_.alarm_rate);
}

bool JudgeShadow::wants(const SamplingParams& params) {
  if (params.temperature > 0 && !params.coupled) return false;
  const std::lock_guard lock(mutex_);
  return rng_.uniform() < options_.share;
}

int64_t JudgeShadow::num_queued() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(queue_.size());
}

void JudgeShadow::submit(ShadowJob job) {
  {
    const std::lock_guard lock(mutex_);
    if (queue_.size() >= kMaxQueue) {
      dropped.add();
      return;
    }
    queue_.push_back(std::move(job));
  }
  engine_.abort(0);  // no request has this id: it only wakes the engine's thread
}

void JudgeShadow::between_steps(bool others_wait) {
  const EngineStats stats = engine_.stats();
  const int64_t others = stats.num_running + stats.num_waiting - (running_ ? 1 : 0);
  const bool is_idle = !others_wait && others <= 0;
  if (running_) {
    if (!is_idle && !is_aborted_) {
      is_aborted_ = true;
      engine_.abort(*running_);
    }
    return;
  }
  if (!is_idle) return;
  while (!running_ && (job_ || take())) {
    // Where the judge let nothing pass, the answer is the exact one.
    if (job_->judge_accepted == 0 || job_->token_ids.empty()) {
      conclude(false);
    } else {
      start();
    }
  }
}

// The next job of the queue; false when there is none.
bool JudgeShadow::take() {
  const std::lock_guard lock(mutex_);
  if (queue_.empty()) return false;
  job_ = std::move(queue_.front());
  queue_.pop_front();
  is_forced_ = false;
  return true;
}

void JudgeShadow::start() {
  Request request;
  request.prompt = job_->prompt;
  if (is_forced_) {
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = static_cast<int64_t>(job_->token_ids.size());
    request.constraint = std::make_unique<ForcedText>(job_->token_ids);
    forced_logprob_ = 0;
  } else {
    request.params = job_->params;
    if (job_->make_constraint) request.constraint = job_->make_constraint();
    text_.clear();
    exact_logprob_ = 0;
  }
  request.params.logprobs = 0;
  request.speculative = {.num_tokens = 0, .judge_threshold = 0};
  request.keeps_prefix = false;
  request.on_output = [this](const RequestOutput& output) { on_output(output); };
  is_aborted_ = false;
  try {
    running_ = engine_.add_request(std::move(request));
  } catch (const std::exception&) {
    job_.reset();
    dropped.add();
  }
}

void JudgeShadow::on_output(const RequestOutput& output) {
  for (const SampledToken& token : output.logprobs) {
    (is_forced_ ? forced_logprob_ : exact_logprob_) += static_cast<double>(token.logprob);
  }
  if (!is_forced_) text_ += output.text;
  if (!output.finish_reason) return;
  running_.reset();
  end_pass(*output.finish_reason);
}

void JudgeShadow::end_pass(FinishReason reason) {
  if (reason == FinishReason::kError ||
      (reason == FinishReason::kAbort && ++job_->num_tries >= kMaxTries)) {
    job_.reset();
    dropped.add();
  } else if (reason == FinishReason::kAbort) {
    // The same pass again, when there is time.
  } else if (is_forced_) {
    conclude(true);
  } else if (text_ == job_->text) {
    conclude(false);
  } else {
    is_forced_ = true;
  }
}

void JudgeShadow::conclude(bool differs) {
  compared.add();
  if (differs) differed.add();
  deficit.observe(differs ? exact_logprob_ - forced_logprob_ : 0);
  const double judged_with = job_->threshold;
  job_.reset();
  const bool is_the_servers = judged_with > 0 && judged_with == threshold_;
  if (!alarm_ || !is_the_servers || !alarm_->observe(differs)) return;
  double lower = 0;
  for (const double certified : options_.certified) {
    if (certified < threshold_) lower = std::max(lower, certified);
  }
  threshold_ = lower;
  alarmed_ = true;
  if (options_.on_alarm) options_.on_alarm(lower);
}

}  // namespace lathe
