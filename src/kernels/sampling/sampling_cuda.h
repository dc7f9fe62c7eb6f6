// From rows of logits to tokens on the GPU, by the same steps in the same order as
// engine/sampler.h, which defines them:
//   allowed mask -> logit bias -> repetition, frequency, presence penalty -> temperature ->
//   top-k -> top-p -> min-p -> draw
// and with the same random number, so that a seed gives the same token on both machines, except
// where a sum of probabilities falls within its rounding (about 1e-15 of it) of a threshold.
//
// One cluster of blocks holds a row in shared memory, so logits are read once. What top-k and top-p
// can choose from is usually few elements near the largest one; these are gathered and sorted by
// one block. Where they are many (a flat row, a large k), thresholds are found digit by digit over
// the logits instead.
//
// A row with a draft token takes it or not, by Sampler::verify()'s rule: at temperature 0 where it
// is the largest, else with probability min(1, p / q), or draws from max(p - q, 0), in order of
// token.
#pragma once
#include <cstdint>

#include "tensor/cuda_stream.h"

namespace lathe {

inline constexpr int64_t kMaxSamplingVocab = 400000;

struct SamplingBias {
  int32_t token = 0;
  float bias = 0;
};

// One token of the distribution that a draft token was drawn from.
struct SamplingProb {
  double prob = 0;
  int32_t token = 0;
  int32_t reserved = 0;
};

struct SamplingCount {
  int32_t token = 0;
  int32_t outputs = 0;  // how often it was generated; 0: only in the prompt
};

// What one row wants; plain data, copied to the device by the caller. SamplingParams says what the
// fields mean.
struct SamplingRow {
  double uniform = 0;  // uniform_at(seed, position, RandomStream::kSample; with a draft: kResidual)
  double accept_uniform = 0;  // with a draft: of RandomStream::kAccept
  double top_p = 1;
  double min_p = 0;
  float inverse_temperature = 0;  // float(1 / temperature); 0: greedy
  int32_t top_k = 0;              // <= 0: off
  float repetition_penalty = 1;
  float frequency_penalty = 0;
  float presence_penalty = 0;
  int32_t counts_begin = 0;  // entries of `counts`: tokens of prompt and output, each once; empty
  int32_t counts_end = 0;    // without penalties
  int32_t biases_begin = 0;  // entries of `biases`
  int32_t biases_end = 0;
  int32_t mask_row = -1;      // row of `masks`; -1: every token is allowed
  int32_t num_logprobs = -1;  // -1: none; n >= 0: the token's own and the n most probable ones
  int32_t draft = -1;  // a draft token that the row accepts or not (Sampler::verify()); -1: none
  int32_t probs_begin = 0;  // entries of `probs`: what the draft was drawn from, ascending by
  int32_t probs_end = 0;    // token; empty: it was certain
};

// What a row thinks of a draft token that it did not choose.
struct SampledDraft {
  float prob = 0;     // under the row's sampling; at temperature 0: behind mask, biases, penalties
  float gap = 0;      // logit of the chosen token minus the draft's, behind the same
  float logprob = 0;  // of the model, where the row wants logprobs
};

struct SamplingCudaArgs {
  // All on the device.
  const float* logits = nullptr;  // [num_rows, vocab_size], row stride `stride`; not changed
  int64_t num_rows = 0;
  int64_t vocab_size = 0;
  int64_t stride = 0;                     // 0: vocab_size
  const SamplingRow* rows = nullptr;      // [num_rows]; null: greedy everywhere
  const SamplingCount* counts = nullptr;  // what the rows' ranges point into
  const SamplingBias* biases = nullptr;
  const SamplingProb* probs = nullptr;
  const uint64_t* masks = nullptr;  // [rows of masks, ceil(vocab_size / 64)], bit i % 64 of word
                                    // i / 64: token i is allowed
  int32_t* tokens = nullptr;        // [num_rows]; -1 where the largest logit is NaN or infinite
  float* logprobs = nullptr;        // [num_rows], of the chosen token; null when no row wants any
  SampledDraft* drafts = nullptr;   // [num_rows], set where a row rejects its draft; null when no
                                    // row has one
  int64_t max_logprobs = 0;         // columns of the two below; num_logprobs is cut to it
  int32_t* top_tokens = nullptr;    // [num_rows, max_logprobs], most probable first; -1: no more
  float* top_logprobs = nullptr;    // [num_rows, max_logprobs]
};

// Only enqueues; no workspace. Throws kInvalidArgument on sizes it cannot take.
void sample_cuda(const SamplingCudaArgs& args, CudaStream stream);

}  // namespace lathe
