// The text of a request's output: tokens to whole characters without stop strings.
#pragma once
#include <string>
#include <string_view>

#include "engine/sampling_params.h"
#include "text/tokenizer.h"
#include "text/utf8_stream.h"

namespace lathe {

class OutputText {
 public:
  OutputText() = default;
  // Borrows the tokenizer; without one there is no text.
  OutputText(const Tokenizer* tokenizer, const SamplingParams& params);

  // Adds a token and returns the text that may be shown now; valid until the next call. Control
  // tokens have no text. is_last: the output ends here, so nothing is held back.
  std::string_view append(int32_t token, bool is_last);
  // The output ended with a token that is not shown: what was held back.
  std::string_view finish() { return stream_.finish(); }
  bool found_stop() const { return stream_.stopped(); }

 private:
  const Tokenizer* tokenizer_ = nullptr;
  Utf8Stream stream_;
  std::string last_;  // of append(), when it is the last
};

}  // namespace lathe
