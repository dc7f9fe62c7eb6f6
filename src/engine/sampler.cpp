#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "engine/counter_rng.h"
#include "engine/token_noise.h"

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

int64_t checked_argmax(std::span<const float> logits, int64_t position) {
  const int64_t best = argmax(logits);
  if (best < 0) fail_not_finite(position);
  return best;
}

// An empty q is all on the draft token.
double prob_of(std::span<const TokenProb> q, int32_t token) {
  if (q.empty()) return 1;
  const auto found = std::lower_bound(
      q.begin(), q.end(), token, [](const TokenProb& entry, int32_t t) { return entry.token < t; });
  return found != q.end() && found->token == token ? found->prob : 0;
}

}  // namespace

void fail_not_finite(int64_t position) {
  fail(ErrorCode::kInternal, "the model's logits are not finite at position ", position,
       "; the checkpoint may be damaged");
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

void TokenCounts::remove_output(int32_t token) {
  if (empty()) return;
  uint32_t& entry = occurrences_[static_cast<std::size_t>(token)];
  if (--entry == 0) distinct_.pop_back();  // the latest to appear
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
  draft_probs_.assign(size, 0.0);
  residual_.reserve(size);
}

SampledToken Sampler::sample(std::span<float> logits, const SamplingParams& params,
                             const TokenCounts& counts, TokenConstraint* constraint,
                             int64_t position, std::span<TokenLogprob> top) {
  SampledToken result;
  const int64_t best = prepare(logits, params, counts, constraint, position, top, result);
  result.token = choose(logits, best, params, position);
  set_logprob(params, result);
  return result;
}

int32_t Sampler::draft(std::span<float> logits, const SamplingParams& params,
                       const TokenCounts& counts, TokenConstraint* constraint, int64_t position,
                       std::vector<TokenProb>& q) {
  transform(logits, params, counts, constraint);
  const int64_t best = checked_argmax(logits, position);
  if (params.temperature == 0 || params.coupled) return choose(logits, best, params, position);
  const Support support = this->support(logits, best, params, kMaxDraftSupport);
  const auto begin = static_cast<int64_t>(q.size());
  for (std::size_t i = 0; i < support.weights.size(); ++i) {
    const auto weight = static_cast<double>(support.weights[i]);
    if (weight > 0) q.push_back({support.token(i), weight / support.total});
  }
  std::sort(q.begin() + begin, q.end(),
            [](const TokenProb& a, const TokenProb& b) { return a.token < b.token; });
  return draw(support, static_cast<int32_t>(best),
              uniform_at(params.seed, position, RandomStream::kDraft));
}

Acceptance Sampler::verify(std::span<float> logits, const SamplingParams& params,
                           const TokenCounts& counts, TokenConstraint* constraint, int64_t position,
                           int32_t draft, std::span<const TokenProb> q,
                           std::span<TokenLogprob> top) {
  Acceptance verdict;
  const int64_t best = prepare(logits, params, counts, constraint, position, top, verdict.sampled);
  int32_t& token = verdict.sampled.token;
  if (params.temperature == 0 || params.coupled) {
    token = choose(logits, best, params, position);
    verdict.accepted = token == draft;
  } else {
    const Support p = support(logits, best, params, static_cast<int64_t>(logits.size()));
    const double u = uniform_at(params.seed, position, RandomStream::kAccept);
    verdict.accepted = u * prob_of(q, draft) < p.weight_of(draft) / p.total;
    token = verdict.accepted
                ? draft
                : draw_residual(p, draft, q,
                                uniform_at(params.seed, position, RandomStream::kResidual));
  }
  set_logprob(params, verdict.sampled);
  return verdict;
}

double Sampler::probability(std::span<const float> logits, const SamplingParams& params,
                            int32_t token) {
  if (params.temperature == 0) {
    const auto logit = static_cast<double>(logits[static_cast<std::size_t>(token)]);
    return std::exp(logit - log_sum_exp(logits));
  }
  const Support p = support(logits, argmax(logits), params, static_cast<int64_t>(logits.size()));
  return p.weight_of(token) / p.total;
}

// Logprobs of the model, then the transforms in place; the largest logit behind them.
int64_t Sampler::prepare(std::span<float> logits, const SamplingParams& params,
                         const TokenCounts& counts, TokenConstraint* constraint, int64_t position,
                         std::span<TokenLogprob> top, SampledToken& result) {
  if (params.logprobs >= 0) {
    raw_.assign(logits.begin(), logits.end());
    raw_log_sum_ = log_sum_exp(raw_);
    result.top = top_logprobs(top.first(static_cast<std::size_t>(params.logprobs)));
  }
  transform(logits, params, counts, constraint);
  return checked_argmax(logits, position);
}

void Sampler::transform(std::span<float> logits, const SamplingParams& params,
                        const TokenCounts& counts, TokenConstraint* constraint) {
  if (constraint != nullptr) {
    allowed_.assign((logits.size() + 63) / 64, 0);
    constraint->allowed_tokens(allowed_);
    apply_mask(allowed_, logits);
  }
  for (const LogitBias& entry : params.logit_bias) {
    logits[static_cast<std::size_t>(entry.token)] += entry.bias;
  }
  if (!counts.empty()) apply_penalties(params, counts, logits);
}

void Sampler::set_logprob(const SamplingParams& params, SampledToken& result) const {
  if (params.logprobs < 0) return;
  result.logprob = static_cast<float>(
      static_cast<double>(raw_[static_cast<std::size_t>(result.token)]) - raw_log_sum_);
}

int32_t Sampler::choose(std::span<const float> logits, int64_t best, const SamplingParams& params,
                        int64_t position) {
  const auto most_probable = static_cast<int32_t>(best);
  if (params.temperature == 0) return most_probable;
  const Support p = support(logits, best, params, static_cast<int64_t>(logits.size()));
  if (params.coupled) return race(p, most_probable, params.seed, position);
  return draw(p, most_probable, uniform_at(params.seed, position, RandomStream::kSample));
}

// At most max_tokens, the most probable ones.
Sampler::Support Sampler::support(std::span<const float> logits, int64_t best,
                                  const SamplingParams& params, int64_t max_tokens) {
  const float max_logit = logits[static_cast<std::size_t>(best)];
  const auto inverse = static_cast<float>(1.0 / params.temperature);
  const int64_t top_k = params.top_k > 0 ? std::min(params.top_k, max_tokens) : max_tokens;
  if (top_k < static_cast<int64_t>(logits.size())) {
    select_top_k(logits, top_k);
    weigh_candidates(max_logit, inverse);
    keep_top_p(params.top_p);
  } else if (params.top_p < 1) {
    select_nucleus(logits, max_logit, params);
    weigh_candidates(max_logit, inverse);
  } else if (params.min_p > 0) {
    // A little too low, for rounding; weighed_candidates() compares again.
    const double depth = params.temperature * (std::log(params.min_p) - 1e-3);
    select_at_least(logits, static_cast<float>(std::max<double>(max_logit + depth, kLowest)));
    weigh_candidates(max_logit, inverse);
  } else {
    weights_.resize(logits.size());
    const double total = softmax_weights(logits, max_logit, inverse, weights_.data());
    return {.candidates = {}, .weights = weights_, .total = total};
  }
  return weighed_candidates(params.min_p);
}

double Sampler::Support::weight_of(int32_t token) const {
  if (candidates.empty()) return static_cast<double>(weights[static_cast<std::size_t>(token)]);
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].token == token) return static_cast<double>(weights[i]);
  }
  return 0;
}

// Weights are relative to the most probable token's, as min-p wants them.
Sampler::Support Sampler::weighed_candidates(double min_p) {
  double total = 0;
  for (float& weight : kept_weights_) {
    if (static_cast<double>(weight) < min_p) weight = 0;
    total += static_cast<double>(weight);
  }
  return {.candidates = candidates_, .weights = kept_weights_, .total = total};
}

// fallback: rounding may leave the sum below the target before the first token.
int32_t Sampler::draw(const Support& support, int32_t fallback, double uniform) {
  const double target = uniform * support.total;
  double sum = 0;
  int32_t token = fallback;
  for (std::size_t i = 0; i < support.weights.size(); ++i) {
    if (support.weights[i] == 0) continue;
    token = support.token(i);
    sum += static_cast<double>(support.weights[i]);
    if (sum > target) break;
  }
  return token;
}

// Gumbel's maximum: argmax(log w + g), g = -log(-log(u)), is the token whose exponential clock
// -log(u) / w rings first. u is a function of (seed, position, token) alone, so two models that
// nearly agree choose the same token nearly always.
int32_t Sampler::race(const Support& support, int32_t best, uint64_t seed, int64_t position) {
  const TokenNoise noise(seed, position);
  // The most probable token (weight 1) first: most others cannot beat it, by -log(u) >= 1 - u.
  int32_t winner = best;
  double first = noise.exponential(best);
  TokenNoise::Words words;
  for (std::size_t i = 0; i < support.weights.size(); ++i) {
    const auto weight = static_cast<double>(support.weights[i]);
    const int32_t token = support.token(i);
    if (weight == 0 || token == best) continue;
    if (noise.least(token, words) >= first * weight) continue;
    const double time = noise.exponential(token) / weight;
    if (time < first || (time == first && token < winner)) {
      first = time;
      winner = token;
    }
  }
  return winner;
}

// From max(p - q, 0), normalized, in order of token.
int32_t Sampler::draw_residual(const Support& p, int32_t draft, std::span<const TokenProb> q,
                               double uniform) {
  if (q.empty()) draft_probs_[static_cast<std::size_t>(draft)] = 1;
  for (const TokenProb& entry : q) draft_probs_[static_cast<std::size_t>(entry.token)] = entry.prob;
  residual_.clear();
  for (std::size_t i = 0; i < p.weights.size(); ++i) {
    const double prob = static_cast<double>(p.weights[i]) / p.total;
    const double rest = prob - draft_probs_[static_cast<std::size_t>(p.token(i))];
    if (rest > 0) residual_.push_back({p.token(i), rest});
  }
  if (q.empty()) draft_probs_[static_cast<std::size_t>(draft)] = 0;
  for (const TokenProb& entry : q) draft_probs_[static_cast<std::size_t>(entry.token)] = 0;
  // p = q up to rounding: a rejection had probability 0, and p itself is as good.
  if (residual_.empty()) return draw(p, draft, uniform);
  if (!p.candidates.empty()) {
    std::sort(residual_.begin(), residual_.end(),
              [](const TokenProb& a, const TokenProb& b) { return a.token < b.token; });
  }
  double total = 0;
  for (const TokenProb& entry : residual_) total += entry.prob;
  double sum = 0;
  for (const TokenProb& entry : residual_) {
    sum += entry.prob;
    if (sum > uniform * total) return entry.token;
  }
  return residual_.back().token;
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
