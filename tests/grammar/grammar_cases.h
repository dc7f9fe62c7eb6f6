// Vocabularies and short forms for the tests of grammars.
#pragma once
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "grammar/json_schema.h"
#include "grammar/matcher.h"

namespace lathe {

// Every byte, then pieces that cross the borders of strings, numbers and characters; the last token
// ends the text.
inline std::shared_ptr<const TokenTrie> small_vocabulary() {
  static const auto trie = [] {
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; ++b) tokens.emplace_back(1, static_cast<char>(b));
    for (const char* piece : {"{\"",
                              "\": ",
                              "\", \"",
                              "\"}",
                              "\"]",
                              "],",
                              "}}",
                              "[[",
                              "\":",
                              "12",
                              "3.",
                              "e-",
                              "true",
                              "nul",
                              "abc",
                              " a",
                              "a\"",
                              "\"b\": ",
                              "\n  ",
                              "  ",
                              "\\n",
                              "\\u00",
                              "\\\"",
                              "\xC3\xA9",
                              "\xE6\x97",
                              "\xA5\xE6\x9C",
                              "\x9F\x98\x80\"",
                              "aaaaaaaaaaaaaaaaaaaaaaaa",
                              "abc",
                              "<tool_call>",
                              "</tool",
                              "{\"name\": \"",
                              "\", \"arguments\": {"}) {
      tokens.emplace_back(piece);
    }
    const auto end = static_cast<int32_t>(tokens.size());
    tokens.emplace_back("");
    return std::make_shared<const TokenTrie>(std::move(tokens), std::vector<int32_t>{end});
  }();
  return trie;
}

// The same with `count` random tokens of one to twelve bytes as they occur in texts, so that
// lexemes get masks.
inline std::shared_ptr<const TokenTrie> large_vocabulary(int count, uint32_t seed) {
  std::vector<std::string> tokens;
  const auto small = small_vocabulary();
  for (int32_t t = 0; t + 1 < small->vocab_size(); ++t) tokens.emplace_back(small->bytes(t));
  std::mt19937 rng(seed);
  const std::vector<std::string> pieces = {
      "a", "e", "n",  "the", "0", "1", "9", " ",        "\"",   ",",        ":",    "}", "{",
      "[", "]", "\\", "\n",  ".", "-", "x", "\xC3\xA9", "\xE6", "\x97\xA5", "true", "n"};
  for (int i = 0; i < count; ++i) {
    std::string token;
    const int length = 1 + static_cast<int>(rng() % 6);
    for (int k = 0; k < length; ++k) token += pieces[rng() % pieces.size()];
    tokens.push_back(token);
  }
  const auto end = static_cast<int32_t>(tokens.size());
  tokens.emplace_back("");
  return std::make_shared<const TokenTrie>(std::move(tokens), std::vector<int32_t>{end});
}

inline std::shared_ptr<const Grammar> schema_grammar(
    std::string_view schema, Whitespace whitespace = Whitespace::kFlexible) {
  return json_schema_grammar(parse_json(schema, "schema", 200), whitespace);
}

// Whether the grammar has exactly this text.
inline bool has_text(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  const auto trie = small_vocabulary();
  Matcher matcher(std::make_shared<TokenGrammar>(grammar, trie));
  for (const char c : text) {
    if (!matcher.accept(static_cast<uint8_t>(c))) return false;
  }
  return matcher.is_complete();
}

inline std::vector<uint64_t> mask_of(Matcher& matcher, const TokenTrie& trie) {
  std::vector<uint64_t> words(static_cast<std::size_t>((trie.vocab_size() + 63) / 64),
                              ~uint64_t{0});
  matcher.allowed_tokens(words);
  return words;
}

inline bool is_set(const std::vector<uint64_t>& words, int64_t token) {
  return (words[static_cast<std::size_t>(token / 64)] >> (token % 64) & 1) != 0;
}

}  // namespace lathe
