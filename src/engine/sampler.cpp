#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "engine/counter_rng.h"

namespace lathe {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLowest = -std::numeric_limits<float>::max();  // leaves out NaN and -infinity

// Bands of the nucleus search: kBandsPerNat to a factor of e in probability. The last one holds all
// that is less than e^-20 times as probable as the best token.
constexpr int kBandsPerNat = 8;
constexpr int kLastBand = 20 * kBandsPerNat;
constexpr float kLastBandWeight = 2e-9f;  // e^-20, rounded down

// Grows with the distance from the largest logit; the same for equal logits.
int band(float logit, float max_logit, float inverse_temperature) {
  const float depth = (max_logit - logit) * inverse_temperature * static_cast<float>(kBandsPerNat);
  return depth < static_cast<float>(kLastBand) ? static_cast<int>(depth) : kLastBand;
}

void apply_mask(std::span<const uint64_t> allowed, std::span<float> logits) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if ((allowed[i / 64] >> (i % 64) & 1u) == 0) logits[i] = kNegativeInfinity;
  }
}

}  // namespace

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
  kept_weights_.reserve(size);
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
  const double uniform = uniform_at(params.seed, position, RandomStream::kSample);
  const float max_logit = logits[static_cast<std::size_t>(best)];
  const auto inverse = static_cast<float>(1.0 / params.temperature);
  if (params.top_k > 0 && params.top_k < static_cast<int64_t>(logits.size())) {
    select_top_k(logits, params.top_k);
    weigh_candidates(max_logit, inverse);
    keep_top_p(params.top_p);
  } else if (params.top_p < 1) {
    select_nucleus(logits, max_logit, params);
    weigh_candidates(max_logit, inverse);
  } else if (params.min_p > 0) {
    // A little too low, for rounding; draw_from_candidates() compares again.
    const double depth = params.temperature * (std::log(params.min_p) - 1e-3);
    select_at_least(logits, static_cast<float>(std::max<double>(max_logit + depth, kLowest)));
    weigh_candidates(max_logit, inverse);
  } else {
    return draw_from_all(logits, best, inverse, uniform);
  }
  return draw_from_candidates(params.min_p, uniform);
}

int32_t Sampler::draw_from_all(std::span<const float> logits, int64_t best,
                               float inverse_temperature, double uniform) {
  weights_.resize(logits.size());
  const float max_logit = logits[static_cast<std::size_t>(best)];
  const double target =
      uniform * softmax_weights(logits, max_logit, inverse_temperature, weights_.data());
  double sum = 0;
  int64_t token = best;  // rounding may leave the sum below the target
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] == 0) continue;
    token = static_cast<int64_t>(i);
    sum += static_cast<double>(weights_[i]);
    if (sum > target) break;
  }
  return static_cast<int32_t>(token);
}

// Weights are relative to the most probable token's, as min-p wants them.
int32_t Sampler::draw_from_candidates(double min_p, double uniform) {
  double total = 0;
  for (float& weight : kept_weights_) {
    if (static_cast<double>(weight) < min_p) weight = 0;
    total += static_cast<double>(weight);
  }
  const double target = uniform * total;
  double sum = 0;
  int32_t token = candidates_.front().token;
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    if (kept_weights_[i] == 0) continue;
    token = candidates_[i].token;
    sum += static_cast<double>(kept_weights_[i]);
    if (sum > target) break;
  }
  return token;
}

// The maximum is subtracted first, so that no temperature overflows the exponential.
void Sampler::weigh_candidates(float max_logit, float inverse_temperature) {
  kept_weights_.clear();
  for (const Candidate& candidate : candidates_) {
    kept_weights_.push_back(exp_nonpositive((candidate.logit - max_logit) * inverse_temperature));
  }
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
  float threshold = kLowest;
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

// top-p without top-k: the weights by bands of logits tell in which band the limit lies; what is
// above it stays, and only that band is sorted.
void Sampler::select_nucleus(std::span<const float> logits, float max_logit,
                             const SamplingParams& params) {
  const auto inverse = static_cast<float>(1.0 / params.temperature);
  weights_.resize(logits.size());
  const double total = softmax_weights(logits, max_logit, inverse, weights_.data());
  const double target = params.top_p * total;
  std::array<double, kLastBand> mass{};  // of all bands but the last
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (weights_[i] < kLastBandWeight) continue;
    const int idx = band(logits[i], max_logit, inverse);
    if (idx < kLastBand) mass[static_cast<std::size_t>(idx)] += static_cast<double>(weights_[i]);
  }
  double above = 0;  // weight of the bands before the last that is needed
  int last_band = 0;
  while (last_band < kLastBand && above + mass[static_cast<std::size_t>(last_band)] < target) {
    above += mass[static_cast<std::size_t>(last_band++)];
  }

  // Whatever weighs less lies in a later band.
  const float least = last_band == kLastBand
                          ? std::numeric_limits<float>::min()
                          : 0.999f * std::exp(static_cast<float>(-last_band - 1) / kBandsPerNat);
  const auto collect = [&](auto wanted) {
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (weights_[i] < least || !wanted(band(logits[i], max_logit, inverse))) continue;
      candidates_.push_back({logits[i], static_cast<int32_t>(i)});
    }
  };
  candidates_.clear();
  collect([last_band](int idx) { return idx < last_band; });
  const auto num_above = static_cast<int64_t>(candidates_.size());
  collect([last_band](int idx) { return idx == last_band; });
  std::sort(candidates_.begin() + num_above, candidates_.end(), before);
  auto keep = static_cast<std::size_t>(num_above);
  while (keep < candidates_.size()) {
    above += static_cast<double>(weights_[static_cast<std::size_t>(candidates_[keep++].token)]);
    if (above >= target) break;
  }
  candidates_.resize(keep);
}

// Of sorted candidates.
void Sampler::keep_top_p(double top_p) {
  double total = 0;
  for (const float weight : kept_weights_) total += static_cast<double>(weight);
  double sum = 0;
  std::size_t keep = 0;
  while (keep < candidates_.size()) {
    sum += static_cast<double>(kept_weights_[keep++]);
    if (sum >= top_p * total) break;
  }
  candidates_.resize(keep);
  kept_weights_.resize(keep);
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
