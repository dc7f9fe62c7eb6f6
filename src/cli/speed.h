// End-to-end speed of a loaded model: prefill, and decoding of one or several sequences at once.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "model/model.h"

namespace lathe {

// An empty cache with room for so many sequences of so many tokens.
using CacheMaker =
    std::function<std::unique_ptr<KvCache>(int64_t num_sequences, int64_t max_sequence_tokens)>;

CacheMaker live_cache(const Model& model, KvFormat format);

struct SpeedOptions {
  int64_t prompt_tokens = 512;  // prefill; 0: not measured
  int64_t decode_tokens = 128;  // per sequence; 0: not measured
  int64_t batch = 1;            // sequences at once
  int64_t depth = 4;            // tokens already there when decoding begins
  int64_t chunk_tokens = 512;   // rows of one prefill step
  int repetitions = 3;
};
// Throws kInvalidArgument naming the flag, the value and the range.
void validate(const SpeedOptions& options, const ModelConfig& config);

struct SpeedResult {
  // Tokens per second of all sequences together, one number a repetition.
  std::vector<double> prefill, decode;
};

// Prefill: `batch` prompts of prompt_tokens, one behind the other in steps of chunk_tokens rows.
// Decoding: greedy, every sequence by one token a step, the next token found in the logits as in
// real use. One warm-up round.
SpeedResult measure_speed(Model& model, const CacheMaker& make_cache, const SpeedOptions& options,
                          Exec& exec);

// Decoding as measure_speed() does it, of a model over several ranks: the time of a step, and of it
// what sums between the ranks take, waiting for them included. On a GPU the events that measure it
// make a step a little longer than it is without.
struct AllReduceTimes {
  double step_seconds = 0;
  double all_reduce_seconds = 0;
};
AllReduceTimes measure_all_reduce(Model& model, const CacheMaker& make_cache,
                                  const SpeedOptions& options, Exec& exec);

// Throws kInternal unless the model computes, for a short fixed text, the same finite logits token
// by token, in one chunk, and in a batch of sequences: bit for bit on a CPU, within
// Model::batch_tolerance() on a GPU. Without that a speed means nothing.
void check_forward(Model& model, const CacheMaker& make_cache, Exec& exec);

// The median. 0 for no values.
double median(std::vector<double> values);

}  // namespace lathe
