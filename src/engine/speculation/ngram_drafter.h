// Prompt lookup: what followed the last few tokens when they occurred before, in the prompt or in
// the output. Costs nothing, and helps where an answer repeats its prompt (editing, summaries,
// code). Source: Saxena, "Prompt Lookup Decoding" (2023); vLLM's and llama.cpp's n-gram drafts.
#pragma once
#include "engine/speculation/drafter.h"

namespace lathe {

struct NgramOptions {
  int64_t max_match = 5;  // tokens that must have occurred before: the longest match wins,
  int64_t min_match = 2;  // the latest one among equals
};

// The up to max_tokens tokens behind the best earlier occurrence of the text's end; empty when
// there is none.
std::span<const int32_t> ngram_continuation(std::span<const int32_t> tokens, int64_t max_tokens,
                                            const NgramOptions& options);

class NgramDrafter final : public Drafter {
 public:
  explicit NgramDrafter(const NgramOptions& options = {}) : options_(options) {}
  void propose(std::span<const DraftJob> jobs) override;
  void retire(Sequence&) override {}
  double seconds(double) const override { return 0; }

 private:
  NgramOptions options_;
};

}  // namespace lathe
