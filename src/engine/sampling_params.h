// How one request wants its tokens chosen. Parsed from a request once, checked once, then passed on
// as const&.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lathe {

struct LogitBias {
  int32_t token = 0;
  float bias = 0;  // added to the logit
};

struct SamplingParams {
  double temperature = 1;  // 0: greedy, ties to the lowest id
  double top_p = 1;        // smallest set of tokens whose probabilities reach it; 1: off
  int64_t top_k = 0;       // the most probable ones; 0 or -1: off
  double min_p = 0;        // at least this share of the largest probability; 0: off
  uint64_t seed = 0;       // the same seed gives the same text, alone or in a batch
  // Draw by Gumbel noise of (seed, position, token): the same distribution, other tokens. With it,
  // speculative decoding gives the very tokens that plain decoding gives; without it (and with a
  // temperature) the same distribution only.
  bool coupled = false;

  int64_t max_tokens = -1;              // -1: until the context is full
  std::vector<std::string> stop;        // cut before the first of these
  std::vector<int32_t> stop_token_ids;  // besides the model's end tokens
  bool ignore_eos = false;              // benchmarks: go on behind an end token

  double presence_penalty = 0;    // subtracted once from tokens already generated
  double frequency_penalty = 0;   // subtracted as often as they were generated
  double repetition_penalty = 1;  // divides positive, multiplies negative logits of tokens already
                                  // in prompt or output (Keskar et al. 2019, CTRL)
  std::vector<LogitBias> logit_bias;

  int64_t logprobs = -1;  // -1: none; n >= 0: the token's own, and the n most probable tokens

  bool has_penalties() const {
    return presence_penalty != 0 || frequency_penalty != 0 || repetition_penalty != 1;
  }
};

inline constexpr int64_t kMaxLogprobs = 128;
inline constexpr int64_t kMaxStopStrings = 64;
inline constexpr int64_t kMaxStopBytes = 1024;

// Throws kInvalidArgument, naming the field, the value and the range.
void validate(const SamplingParams& params, int64_t vocab_size);

}  // namespace lathe
