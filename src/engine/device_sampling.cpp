#include "engine/device_sampling.h"

#include <algorithm>

#include "base/error.h"
#include "engine/counter_rng.h"

namespace lathe {

void DeviceSampling::clear() {
  has_logprobs_ = false;
  max_logprobs_ = 0;
  num_masks_ = 0;
  rows_.clear();
  counts_.clear();
  biases_.clear();
  masks_.clear();
}

void DeviceSampling::add(const Sequence& sequence) {
  const SamplingParams& params = sequence.request.params;
  SamplingRow row;
  row.uniform = uniform_at(params.seed, sequence.size(), RandomStream::kSample);
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
          .masks = masks_,
          .max_logprobs = max_logprobs_};
}

SampledBatch DeviceSampling::results() {
  tokens_.resize(rows_.size());
  logprobs_.resize(has_logprobs_ ? rows_.size() : 0);
  top_tokens_.resize(rows_.size() * static_cast<std::size_t>(max_logprobs_));
  top_logprobs_.resize(top_tokens_.size());
  return {.tokens = tokens_,
          .logprobs = logprobs_,
          .top_tokens = top_tokens_,
          .top_logprobs = top_logprobs_};
}

SampledToken DeviceSampling::take(int64_t idx, Sequence& sequence) const {
  const auto i = static_cast<std::size_t>(idx);
  SampledToken sampled;
  sampled.token = tokens_[i];
  if (sampled.token < 0) {
    fail(ErrorCode::kInternal, "the model's logits are not finite at position ", sequence.size());
  }
  if (sequence.request.params.logprobs < 0) return sampled;
  sampled.logprob = logprobs_[i];
  const std::size_t begin = i * static_cast<std::size_t>(max_logprobs_);
  std::size_t count = 0;
  while (count < sequence.top.size() && top_tokens_[begin + count] >= 0) {
    sequence.top[count] = {top_tokens_[begin + count], top_logprobs_[begin + count]};
    ++count;
  }
  sampled.top = std::span(sequence.top).first(count);
  return sampled;
}

}  // namespace lathe
