// Perplexity of a text, and how far one model's predictions are from another's.
//
//   perplexity = exp(mean of -log p(token | what precedes it in its window))
//
// over every position but the first of non-overlapping windows (no sliding: each token is scored
// once, with between 1 and seq_len - 1 tokens of context). Numbers are comparable only at the same
// text, tokenizer, window length and number of windows.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "eval/windows.h"

namespace lathe {

struct PerplexityResult {
  double perplexity = 0;
  // Of the perplexity, from the spread of the windows' mean nll (delta method); NaN for one window.
  double standard_error = 0;
  int64_t windows = 0;
  int64_t seq_len = 0;
  int64_t scored_tokens = 0;
  std::vector<double> window_nll;  // nats, summed over each window's scored tokens
};

// A model and the cache that it is measured with.
struct MeasuredModel {
  Model* model = nullptr;
  // Makes an empty cache with room for one window of so many tokens.
  std::function<std::unique_ptr<KvCache>(int64_t window_tokens)> make_cache = nullptr;
  int64_t chunk_rows = 0;  // as in LogitStream
};
MeasuredModel measured(Model& model, KvFormat kv_format);

// Called after each window with its number of tokens.
using WindowDone = std::function<void(int64_t tokens)>;

PerplexityResult measure_perplexity(const MeasuredModel& model,
                                    std::span<const std::vector<int32_t>> windows, Exec& exec,
                                    const WindowDone& done = nullptr);
PerplexityResult measure_perplexity(Model& model, KvFormat kv_format,
                                    std::span<const std::vector<int32_t>> windows, Exec& exec,
                                    const WindowDone& done = nullptr);
// From the windows' nll, all of the same length.
PerplexityResult summarize_perplexity(std::vector<double> window_nll, int64_t seq_len);

// Two models over the same windows, side by side; one chunk of logits of each in memory.
struct DivergenceResult {
  double mean_kl = 0;        // KL(reference || model) in nats per token
  double mean_kl_error = 0;  // standard error, from the windows; NaN for one window
  double median_kl = 0;
  double p99_kl = 0;
  double max_kl = 0;
  double top1_agreement = 0;  // share of positions where both find the same token most probable
  PerplexityResult reference, model;
};
// The ids that both models know: vocabularies of different size (padding) are compared over these.
// Throws kInvalidArgument when a token of the windows lies beyond them.
int64_t common_vocabulary(const Model& reference, const Model& model,
                          std::span<const std::vector<int32_t>> windows);
// Each of several models against one reference, whose predictions are computed once; in the order
// of `models`, at least one. A result does not depend on the other models. Throws what
// common_vocabulary() throws. They may be one model with several caches; chunk_rows must be the
// same.
std::vector<DivergenceResult> measure_divergences(const MeasuredModel& reference,
                                                  std::span<const MeasuredModel> models,
                                                  std::span<const std::vector<int32_t>> windows,
                                                  Exec& exec, const WindowDone& done = nullptr);
DivergenceResult measure_divergence(const MeasuredModel& reference, const MeasuredModel& model,
                                    std::span<const std::vector<int32_t>> windows, Exec& exec,
                                    const WindowDone& done = nullptr);
DivergenceResult measure_divergence(Model& reference, KvFormat reference_kv_format, Model& model,
                                    KvFormat kv_format,
                                    std::span<const std::vector<int32_t>> windows, Exec& exec,
                                    const WindowDone& done = nullptr);

}  // namespace lathe
