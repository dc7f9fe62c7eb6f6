#include "engine/device_sampling.h"

#include <algorithm>

#include "base/error.h"
#include "engine/counter_rng.h"

namespace lathe {

void DeviceSampling::clear() {
  has_logprobs_ = false;
  has_drafts_ = false;
  max_logprobs_ = 0;
  num_masks_ = 0;
  rows_.clear();
  counts_.clear();
  biases_.clear();
  probs_.clear();
  masks_.clear();
}

void DeviceSampling::add(Sequence& sequence, int64_t num_drafts) {
  const std::span drafts =
      std::span(sequence.draft.tokens).first(static_cast<std::size_t>(num_drafts));
  int64_t num_advanced = 0;
  for (int64_t i = 0; i <= num_drafts; ++i) {
    add_row(sequence, sequence.size() + i);
    if (i == num_drafts) break;
    const int32_t draft = drafts[static_cast<std::size_t>(i)];
    add_draft(sequence, i);
    // Nobody asks for the rows behind a draft that cannot pass, or that ends the text.
    if (!allows(rows_.back(), draft) || sequence.is_end_token(draft)) {
      rows_.resize(rows_.size() + static_cast<std::size_t>(num_drafts - i));
      break;
    }
    sequence.advance(draft);
    ++num_advanced;
  }
  sequence.take_back(drafts.first(static_cast<std::size_t>(num_advanced)));
}

bool DeviceSampling::allows(const SamplingRow& row, int32_t token) const {
  if (row.mask_row < 0) return true;
  const int64_t word = row.mask_row * mask_words() + token / 64;
  return (masks_[static_cast<std::size_t>(word)] >> (token % 64) & 1u) != 0;
}

void DeviceSampling::add_draft(const Sequence& sequence, int64_t idx) {
  const SamplingParams& params = sequence.request.params;
  const int64_t position = sequence.size() + idx;
  SamplingRow& row = rows_.back();
  row.draft = sequence.draft.tokens[static_cast<std::size_t>(idx)];
  row.uniform = uniform_at(params.seed, position, RandomStream::kResidual);
  row.accept_uniform = uniform_at(params.seed, position, RandomStream::kAccept);
  row.probs_begin = static_cast<int32_t>(probs_.size());
  for (const TokenProb& entry : sequence.draft.distribution(idx)) {
    probs_.push_back({.prob = entry.prob, .token = entry.token});
  }
  row.probs_end = static_cast<int32_t>(probs_.size());
  has_drafts_ = true;
}

void DeviceSampling::add_row(const Sequence& sequence, int64_t position) {
  const SamplingParams& params = sequence.request.params;
  SamplingRow row;
  row.uniform = uniform_at(params.seed, position, RandomStream::kSample);
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.inverse_temperature =
      params.temperature > 0 ? static_cast<float>(1 / params.temperature) : 0.0f;
  row.top_k = static_cast<int32_t>(std::clamp<int64_t>(params.top_k, 0, vocab_size_));
  row.repetition_penalty = static_cast<float>(params.repetition_penalty);
  row.frequency_penalty = static_cast<float>(params.frequency_penalty);
  row.presence_penalty = static_cast<float>(params.presence_penalty);
  row.counts_begin = static_cast<int32_t>(counts_.size());
  sequence.counts.for_each([&](int32_t token, int32_t outputs) {
    counts_.push_back({.token = token, .outputs = outputs});
  });
  row.counts_end = static_cast<int32_t>(counts_.size());
  row.biases_begin = static_cast<int32_t>(biases_.size());
  for (const LogitBias& bias : params.logit_bias) biases_.push_back({bias.token, bias.bias});
  row.biases_end = static_cast<int32_t>(biases_.size());
  if (sequence.request.constraint != nullptr) {
    const auto begin = static_cast<std::size_t>(num_masks_ * mask_words());
    masks_.resize(begin + static_cast<std::size_t>(mask_words()));
    sequence.request.constraint->allowed_tokens(std::span(masks_).subspan(begin));
    row.mask_row = static_cast<int32_t>(num_masks_++);
  }
  row.num_logprobs = static_cast<int32_t>(params.logprobs);
  has_logprobs_ = has_logprobs_ || params.logprobs >= 0;
  max_logprobs_ = std::max(max_logprobs_, params.logprobs);
  rows_.push_back(row);
}

SampleBatch DeviceSampling::batch() const {
  return {.rows = rows_,
          .counts = counts_,
          .biases = biases_,
          .probs = probs_,
          .masks = masks_,
          .max_logprobs = max_logprobs_};
}

SampledBatch DeviceSampling::results() {
  tokens_.resize(rows_.size());
  logprobs_.resize(has_logprobs_ ? rows_.size() : 0);
  drafts_.resize(has_drafts_ ? rows_.size() : 0);
  top_tokens_.resize(rows_.size() * static_cast<std::size_t>(max_logprobs_));
  top_logprobs_.resize(top_tokens_.size());
  return {.tokens = tokens_,
          .logprobs = logprobs_,
          .drafts = drafts_,
          .top_tokens = top_tokens_,
          .top_logprobs = top_logprobs_};
}

Acceptance DeviceSampling::take(int64_t idx, const SamplingParams& params, int64_t position,
                                int32_t draft, std::span<TokenLogprob> top) const {
  const auto i = static_cast<std::size_t>(idx);
  Acceptance verdict;
  SampledToken& sampled = verdict.sampled;
  sampled.token = tokens_[i];
  if (sampled.token < 0) fail_not_finite(position);
  verdict.accepted = sampled.token == draft;
  if (params.logprobs < 0) return verdict;
  sampled.logprob = logprobs_[i];
  const std::size_t begin = i * static_cast<std::size_t>(max_logprobs_);
  std::size_t count = 0;
  while (count < top.size() && top_tokens_[begin + count] >= 0) {
    top[count] = {top_tokens_[begin + count], top_logprobs_[begin + count]};
    ++count;
  }
  sampled.top = top.first(count);
  return verdict;
}

}  // namespace lathe
