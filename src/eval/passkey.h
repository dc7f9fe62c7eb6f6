// Passkey: a number is hidden in a long text and asked for at the end; what a cache forgets shows
// as a wrong answer. Source: Mohtashami and Jaggi, "Landmark attention" (2023), section 4.2.
//
//   introduction | text | "The pass key is 68134. ..." | text | "... The pass key is" -> " 68134"
//
// One item for each length, depth and trial. The answer is right when every token of it is the most
// probable one after the tokens before it: what greedy decoding would have written.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "eval/perplexity.h"
#include "text/tokenizer.h"

namespace lathe {

struct PasskeyOptions {
  std::vector<int64_t> lengths = {1024, 2048};  // tokens, question and answer included
  int64_t depths = 5;  // places of the number: (i + 0.5) / depths of the text before it
  int64_t trials = 1;  // numbers and pieces of text for each length and depth
  uint64_t seed = 1;
};

struct PasskeyItem {
  int64_t length = 0;
  double depth = 0;
  std::string key;
  std::vector<int32_t> ids;  // the whole sequence, answer at its end
  int64_t answer_tokens = 0;
  int64_t right_tokens = 0;  // of those, once it has run
  bool right() const { return right_tokens == answer_tokens; }
};

// Throws kInvalidArgument for lengths that do not hold the question, a text too short for the
// longest, numbers that cannot be.
std::vector<PasskeyItem> passkey_items(const Tokenizer& tokenizer, std::string_view text,
                                       const PasskeyOptions& options);

// Fills right_tokens.
void run_passkey(const MeasuredModel& model, std::vector<PasskeyItem>& items, Exec& exec,
                 const std::function<void()>& done = nullptr);

}  // namespace lathe
