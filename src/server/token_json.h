// Tokens and their log-probabilities as answers show them.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "server/choices.h"
#include "text/tokenizer.h"

namespace lathe {

// The bytes of a token; half a character is possible. Empty for an id without a text.
std::string token_text(const Tokenizer& tokenizer, int32_t token);

// An entry of `logprobs.content` of a chat choice.
nlohmann::ordered_json chat_logprob(const Tokenizer& tokenizer, const ChoiceToken& token);

// `logprobs` of a completion choice, filled token by token.
class CompletionLogprobs {
 public:
  CompletionLogprobs(const Tokenizer& tokenizer, bool with_top);
  // text_offset counts characters from the beginning of the choice's text.
  void add(const ChoiceToken& token);
  // The first token of an echoed prompt: nothing is known of it.
  void add_first(int32_t token);
  // {"text_offset", "token_logprobs", "tokens", "top_logprobs"} of what was added since the last
  // call.
  nlohmann::ordered_json take();
  bool empty() const { return tokens_.empty(); }

 private:
  void add_place(int32_t token);
  const Tokenizer& tokenizer_;
  const bool with_top_;
  int64_t offset_ = 0;
  std::vector<int64_t> offsets_;
  std::vector<std::string> tokens_;
  std::vector<ChoiceToken> entries_;  // token -1: the first of a prompt
};

}  // namespace lathe
