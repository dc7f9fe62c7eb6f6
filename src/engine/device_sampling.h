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
  // The next row of logits is this sequence's. Asks its constraint, if it has one.
  void add(const Sequence& sequence);
  SampleBatch batch() const;
  // Room for the results of all added rows.
  SampledBatch results();
  // What was chosen for row `idx`; logprobs go to sequence.top. Throws kInternal when the row's
  // largest logit was NaN or infinite, as Sampler does.
  SampledToken take(int64_t idx, Sequence& sequence) const;

 private:
  int64_t mask_words() const { return (vocab_size_ + 63) / 64; }

  int64_t vocab_size_;
  bool has_logprobs_ = false;
  int64_t max_logprobs_ = 0;
  int64_t num_masks_ = 0;
  std::vector<SamplingRow> rows_;
  std::vector<SamplingCount> counts_;
  std::vector<SamplingBias> biases_;
  std::vector<uint64_t> masks_;
  std::vector<int32_t> tokens_;
  std::vector<float> logprobs_;
  std::vector<int32_t> top_tokens_;
  std::vector<float> top_logprobs_;
};

}  // namespace lathe
