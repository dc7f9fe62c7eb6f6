#include "server/token_json.h"

#include "base/json.h"

namespace lathe {
namespace {

// log 0 is no JSON: as vLLM, the lowest value that a client can take for it.
double finite(float logprob) { return logprob > -9999.0f ? static_cast<double>(logprob) : -9999.0; }

Json bytes_of(const std::string& text) {
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

Json entry(const Tokenizer& tokenizer, int32_t token, float logprob) {
  const std::string text = token_text(tokenizer, token);
  return {{"token", text}, {"logprob", finite(logprob)}, {"bytes", bytes_of(text)}};
}

}  // namespace

std::string token_text(const Tokenizer& tokenizer, int32_t token) {
  if (token < 0 || token >= tokenizer.vocab_size()) return "";
  return std::string(tokenizer.token_bytes(token));
}

Json chat_logprob(const Tokenizer& tokenizer, const ChoiceToken& token) {
  Json result = entry(tokenizer, token.token, token.logprob);
  Json top = Json::array();
  for (const TokenLogprob& other : token.top) {
    top.push_back(entry(tokenizer, other.token, other.logprob));
  }
  result["top_logprobs"] = std::move(top);
  return result;
}

CompletionLogprobs::CompletionLogprobs(const Tokenizer& tokenizer, bool with_top)
    : tokenizer_(tokenizer), with_top_(with_top) {}

void CompletionLogprobs::add_place(int32_t token) {
  tokens_.push_back(token_text(tokenizer_, token));
  offsets_.push_back(offset_);
  for (const char c : tokens_.back()) {
    if ((static_cast<unsigned char>(c) & 0xC0u) != 0x80u) ++offset_;  // not within a character
  }
}

void CompletionLogprobs::add(const ChoiceToken& token) {
  add_place(token.token);
  entries_.push_back(token);
}

void CompletionLogprobs::add_first(int32_t token) {
  add_place(token);
  entries_.emplace_back();
}

Json CompletionLogprobs::take() {
  Json logprobs = Json::array();
  Json top = Json::array();
  for (const ChoiceToken& token : entries_) {
    if (token.token < 0) {
      logprobs.push_back(nullptr);
      top.push_back(nullptr);
      continue;
    }
    logprobs.push_back(finite(token.logprob));
    Json others = Json::object();
    for (const TokenLogprob& other : token.top) {
      others[token_text(tokenizer_, other.token)] = finite(other.logprob);
    }
    // The token itself is always there, as in vLLM's answers.
    others[token_text(tokenizer_, token.token)] = finite(token.logprob);
    top.push_back(std::move(others));
  }
  Json result = {{"text_offset", offsets_},
                 {"token_logprobs", std::move(logprobs)},
                 {"tokens", tokens_},
                 {"top_logprobs", with_top_ ? std::move(top) : Json(nullptr)}};
  offsets_.clear();
  tokens_.clear();
  entries_.clear();
  return result;
}

}  // namespace lathe
