// A step's choices as a model that samples by itself is told of them, and back: SamplingParams and
// token counts to the plain data of kernels/sampling/sampling_cuda.h.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/sequence.h"
#include "model/model.h"

namespace lathe {

class DeviceSampling {
 public:
  explicit DeviceSampling(int64_t vocab_size) : vocab_size_(vocab_size) {}

  void clear();
  // The next rows of logits are this sequence's: of its newest token and of the first num_drafts of
  // its draft. Each row is asked for its choice in the state behind the drafts before it, in which
  // penalties and constraint are for a moment.
  void add(Sequence& sequence, int64_t num_drafts = 0);
  SampleBatch batch() const;
  // Room for the results of all added rows.
  SampledBatch results();
  // What row `idx` chose; it judged `draft`, -1: none. Logprobs go to `top`. Throws kInternal,
  // naming `position`, when the row's largest logit was NaN or infinite, as Sampler does.
  Acceptance take(int64_t idx, const SamplingParams& params, int64_t position, int32_t draft,
                  std::span<TokenLogprob> top) const;
  // What row `idx` thinks of the draft that it rejected.
  const SampledDraft& rejected(int64_t idx) const { return drafts_[static_cast<std::size_t>(idx)]; }

 private:
  void add_row(const Sequence& sequence, int64_t position);
  void add_draft(const Sequence& sequence, int64_t idx);
  bool allows(const SamplingRow& row, int32_t token) const;
  int64_t mask_words() const { return (vocab_size_ + 63) / 64; }

  int64_t vocab_size_;
  bool has_logprobs_ = false;
  bool has_drafts_ = false;
  int64_t max_logprobs_ = 0;
  int64_t num_masks_ = 0;
  std::vector<SamplingRow> rows_;
  std::vector<SamplingCount> counts_;
  std::vector<SamplingBias> biases_;
  std::vector<SamplingProb> probs_;
  std::vector<uint64_t> masks_;
  std::vector<int32_t> tokens_;
  std::vector<float> logprobs_;
  std::vector<SampledDraft> drafts_;
  std::vector<int32_t> top_tokens_;
  std::vector<float> top_logprobs_;
};

}  // namespace lathe
