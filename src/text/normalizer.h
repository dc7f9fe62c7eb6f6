// Runs the normalizer steps of a tokenizer over text.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.h"
#include "text/tokenizer_spec.h"

namespace lathe {

class Normalizer {
 public:
  Normalizer() = default;
  // Throws kUnsupported for a regular expression that lathe cannot compile.
  explicit Normalizer(std::vector<NormalizerStep> steps);

  bool empty() const { return steps_.empty(); }
  // `text` must be valid UTF-8, and so is the result. Throws kInvalidArgument when replacements
  // blow the text up beyond reason.
  // `lost_start`, if given, becomes true when characters at the start of the text were removed.
  std::string apply(std::string_view text, bool* lost_start = nullptr) const;

 private:
  std::vector<NormalizerStep> steps_;
  std::vector<Regex> patterns_;  // of the kReplaceRegex steps, in order
};

}  // namespace lathe
