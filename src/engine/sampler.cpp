#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "engine/counter_rng.h"

namespace lathe {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Largest value, in kLanes independent maxima so that the compiler can use vector registers. NaN
// never compares greater, so it is passed over.
float max_value(std::span<const float> values) {
  constexpr std::size_t kLanes = 16;
  float best[kLanes];
  std::fill(best, best + kLanes, kNegativeInfinity);
  const std::size_t vector_end = values.size() / kLanes * kLanes;
  for (std::size_t i = 0; i < vector_end; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      best[j] = values[i + j] > best[j] ? values[i + j] : best[j];
    }
  }
  float result = kNegativeInfinity;
  for (const float value : best) result = value > result ? value : result;
  for (std::size_t i = vector_end; i < values.size(); ++i) {
    result = values[i] > result ? values[i] : result;
  }
  return result;
}

void apply_mask(std::span<const uint64_t> allowed, std::span<float> logits) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if ((allowed[i / 64] >> (i % 64) & 1u) == 0) logits[i] = kNegativeInfinity;
  }
}

}  // namespace

int64_t argmax(std::span<const float> values) {
  const float best = max_value(values);
  if (!std::isfinite(best)) return -1;
  return std::find(values.begin(), values.end(), best) - values.begin();
}

double log_sum_exp(std::span<const float> values) {
  const float best = max_value(values);
  double sum = 0;
  for (const float value : values) sum += std::exp(value - best);
  return static_cast<double>(best) + std::log(sum);
}

TokenCounts::TokenCounts(std::span<const int32_t> prompt, int64_t vocab_size,
                         int64_t max_new_tokens)
    : occurrences_(static_cast<std::size_t>(vocab_size), 0) {
  distinct_.reserve(static_cast<std::size_t>(
      std::min(vocab_size, static_cast<int64_t>(prompt.size()) + max_new_tokens)));
  for (const int32_t token : prompt) {
    uint32_t& entry = occurrences_[static_cast<std::size_t>(token)];
    if (entry == 0) distinct_.push_back(token);
    entry = kInPrompt;
  }
}

void TokenCounts::add_output(int32_t token) {
  if (empty()) return;
  uint32_t& entry = occurrences_[static_cast<std::size_t>(token)];
  if (entry == 0) distinct_.push_back(token);
  ++entry;
}

void apply_penalties(const SamplingParams& params, const TokenCounts& counts,
                     std::span<float> logits) {
  const auto repetition = static_cast<float>(params.repetition_penalty);
  for (const int32_t token : counts.distinct_) {
    const auto idx = static_cast<std::size_t>(token);
    float& logit = logits[idx];
    logit = logit > 0 ? logit / repetition : logit * repetition;
    const uint32_t outputs = counts.occurrences_[idx] & ~TokenCounts::kInPrompt;
    if (outputs == 0) continue;
    logit -= static_cast<float>(params.frequency_penalty) * static_cast<float>(outputs);
    logit -= static_cast<float>(params.presence_penalty);
  }
}

Sampler::Sampler(int64_t vocab_size) {
  const auto size = static_cast<std::size_t>(vocab_size);
  candidates_.reserve(size);
  weights_.reserve(size);
  raw_.reserve(size);
  chunk_max_.reserve(size / kChunk + 1);
  allowed_.reserve(size / 64 + 1);
}

SampledToken Sampler::sample(std::span<float> logits, const SamplingParams& params,
                             const TokenCounts& counts, TokenConstraint* constraint,
                             int64_t position, std::span<TokenLogprob> top) {
  SampledToken result;
  const bool wants_logprobs = params.logprobs >= 0;
  if (wants_logprobs) {
    raw_.assign(logits.begin(), logits.end());
    raw_log_sum_ = log_sum_exp(raw_);
    result.top = top_logprobs(top.first(static_cast<std::size_t>(params.logprobs)));
  }
  if (constraint != nullptr) {
    allowed_.assign((logits.size() + 63) / 64, 0);
    constraint->allowed_tokens(allowed_);
    apply_mask(allowed_, logits);
  }
  for (const LogitBias& entry : params.logit_bias) {
    logits[static_cast<std::size_t>(entry.token)] += entry.bias;
  }
  if (!counts.empty()) apply_penalties(params, counts, logits);

  const int64_t best = argmax(logits);
  if (best < 0) {
    fail(ErrorCode::kInternal, "the model's logits are not finite at position ", position,
         "; the checkpoint may be damaged");
  }
  result.token = static_cast<int32_t>(best);
  if (params.temperature > 0) result.token = draw_token(logits, best, params, position);
  if (wants_logprobs) {
    result.logprob = static_cast<float>(
        static_cast<double>(raw_[static_cast<std::size_t>(result.token)]) - raw_log_sum_);
  }
  return result;
}

int32_t Sampler::draw_token(std::span<const float> logits, int64_t best,
                            const SamplingParams& params, int64_t position) {
  const auto vocab_size = static_cast<int64_t>(logits.size());
  const float max_logit = logits[static_cast<std::size_t>(best)];
  if (params.top_k > 0 && params.top_k < vocab_size) {
    select_top_k(logits, params.top_k);
    keep_top_p(params.top_p, weigh(max_logit, params.temperature));
  } else if (params.top_p < 1) {
    select_nucleus(logits, max_logit, params);
  } else {
    select_at_least(logits, -std::numeric_limits<float>::max());
    weigh(max_logit, params.temperature);
  }

  // Weights are relative to the most probable token's, as min-p wants them.
  double total = 0;
  for (double& weight : weights_) {
    if (weight < params.min_p) weight = 0;
    total += weight;
  }
  const double target = uniform_at(params.seed, position, RandomStream::kSample) * total;
  double sum = 0;
  int32_t token = static_cast<int32_t>(best);  // rounding may leave the sum below the target
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    if (weights_[i] == 0) continue;
    token = candidates_[i].token;
    sum += weights_[i];
    if (sum > target) break;
  }
  return token;
}

double Sampler::weigh(float max_logit, double temperature) {
  weights_.clear();
  const auto inverse = static_cast<float>(1.0 / temperature);
  double total = 0;
  for (const Candidate& candidate : candidates_) {
    // The maximum is subtracted first, so that no temperature overflows the exponential.
    const auto weight = static_cast<double>(std::exp((candidate.logit - max_logit) * inverse));
    weights_.push_back(weight);
    total += weight;
  }
  return total;
}

void Sampler::select_at_least(std::span<const float> logits, float threshold) {
  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= threshold) candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  }
}

// The k-th largest of the chunks' maxima is a lower bound of the k-th largest logit (k chunks hold
// a value at least as large), and few logits reach it.
void Sampler::select_top_k(std::span<const float> logits, int64_t k) {
  chunk_max_.clear();
  for (std::size_t i = 0; i < logits.size(); i += kChunk) {
    chunk_max_.push_back(max_value(logits.subspan(i, std::min(kChunk, logits.size() - i))));
  }
  float threshold = -std::numeric_limits<float>::max();
  if (k <= static_cast<int64_t>(chunk_max_.size())) {
    const auto kth = chunk_max_.begin() + (k - 1);
    std::nth_element(chunk_max_.begin(), kth, chunk_max_.end(), std::greater<float>());
    threshold = std::max(threshold, *kth);
  }
  select_at_least(logits, threshold);
  const auto keep = static_cast<std::size_t>(std::min(k, static_cast<int64_t>(candidates_.size())));
  const auto end = candidates_.begin() + static_cast<int64_t>(keep);
  std::nth_element(candidates_.begin(), end, candidates_.end(), before);
  candidates_.resize(keep);
  std::sort(candidates_.begin(), candidates_.end(), before);
}

// top-p without top-k: lowers a threshold until enough probability lies above it, then sorts what
// is there.
void Sampler::select_nucleus(std::span<const float> logits, float max_logit,
                             const SamplingParams& params) {
  const auto inverse = static_cast<float>(1.0 / params.temperature);
  double total = 0;
  for (const float logit : logits) {
    total += static_cast<double>(std::exp((logit - max_logit) * inverse));
  }
  for (double depth = 2;; depth *= 2) {
    // Beyond a depth of 128, exp() of a float is zero.
    const bool all = depth > 128;
    const double threshold = static_cast<double>(max_logit) - depth * params.temperature;
    select_at_least(logits, all ? -std::numeric_limits<float>::max()
                                : static_cast<float>(std::max(
                                      threshold, -double{std::numeric_limits<float>::max()})));
    if (weigh(max_logit, params.temperature) >= params.top_p * total || all) break;
  }
  std::sort(candidates_.begin(), candidates_.end(), before);
  weigh(max_logit, params.temperature);
  keep_top_p(params.top_p, total);
}

// Candidates are sorted; total is the weight of the distribution that top_p is a share of.
void Sampler::keep_top_p(double top_p, double total) {
  double sum = 0;
  std::size_t keep = 0;
  while (keep < candidates_.size()) {
    sum += weights_[keep++];
    if (sum >= top_p * total) break;
  }
  candidates_.resize(keep);
  weights_.resize(keep);
}

std::span<TokenLogprob> Sampler::top_logprobs(std::span<TokenLogprob> top) {
  if (top.empty()) return top;
  select_top_k(raw_, static_cast<int64_t>(top.size()));
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    const double logit = candidates_[i].logit;
    top[i] = {candidates_[i].token, static_cast<float>(logit - raw_log_sum_)};
  }
  return top.first(candidates_.size());
}

}  // namespace lathe
