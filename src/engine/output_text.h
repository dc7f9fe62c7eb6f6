// The text of a request's output: tokens to whole UTF-8 characters to text without stop strings.
#pragma once
#include <string>
#include <string_view>

#include "engine/sampling_params.h"
#include "engine/stop_strings.h"
#include "text/tokenizer.h"

namespace lathe {

class OutputText {
 public:
  OutputText() = default;
  // Borrows both. Without a tokenizer there is no text.
  OutputText(const Tokenizer* tokenizer, const SamplingParams& params);

  // Adds a token and returns the text that may be shown now; valid until the next call. Control
  // tokens have no text. is_last: the output ends here, so nothing is held back.
  std::string_view append(int32_t token, bool is_last);
  // The output ended with a token that is not shown: what was held back.
  std::string_view finish();
  bool found_stop() const { return stops_.found(); }

 private:
  void take_characters(bool is_last);

  const Tokenizer* tokenizer_ = nullptr;
  std::string bytes_;       // of a character that is not complete
  std::string characters_;  // taken from bytes_ by the latest call
  StopStrings stops_;
  std::string shown_;  // what the latest call returned
};

}  // namespace lathe
