// Cuts normalised text into the pieces that the model encodes one by one.
#pragma once
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "text/regex.h"
#include "text/tokenizer_spec.h"

namespace lathe {

class PreTokenizer {
 public:
  PreTokenizer() = default;
  // Throws kUnsupported for a regular expression that lathe cannot compile.
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps);

  // Calls `emit` with each non-empty piece, in order; a piece lives until emit returns. `text` must
  // be valid UTF-8; `at_start` says that it is the beginning of the whole input.
  void split(std::string_view text, bool at_start,
             const std::function<void(std::string_view)>& emit) const;

 private:
  using Emit = std::function<void(std::string_view)>;
  void run(size_t step_idx, std::string_view text, bool at_start, const Emit& emit) const;
  void split_step(size_t step_idx, std::string_view text, bool at_start, const Emit& emit) const;
  void metaspace_step(size_t step_idx, std::string_view text, bool at_start,
                      const Emit& emit) const;

  std::vector<PreTokenizerStep> steps_;
  std::vector<std::optional<Regex>> patterns_;  // beside steps_; kSplit only
};

}  // namespace lathe
