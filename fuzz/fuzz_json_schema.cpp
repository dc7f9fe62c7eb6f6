// The schema compiler: a document becomes a grammar, and random walks under its masks must end in
// text that the grammar has, or go on; never in a place where nothing is allowed.
//   byte 0: seed of the walk, whitespace in its lowest bit; the rest: the schema
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "grammar/json_schema.h"
#include "grammar/matcher.h"

namespace {

void check(bool condition) {
  if (!condition) std::abort();
}

std::shared_ptr<const lathe::TokenTrie> vocabulary() {
  static const auto trie = [] {
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; ++b) tokens.emplace_back(1, static_cast<char>(b));
    for (const char* piece :
         {"{\"", "\": ", "\", \"", "\"}", "12", "3.", "abc", "\xE6\x97", "]}"}) {
      tokens.emplace_back(piece);
    }
    tokens.emplace_back("");
    const auto end = static_cast<int32_t>(tokens.size()) - 1;
    return std::make_shared<const lathe::TokenTrie>(std::move(tokens), std::vector<int32_t>{end});
  }();
  return trie;
}

void run(uint8_t seed, std::string_view text) {
  const auto whitespace = (seed & 1) != 0 ? lathe::Whitespace::kNone : lathe::Whitespace::kFlexible;
  const auto grammar =
      lathe::json_schema_grammar(lathe::parse_json(text, "schema", 100), whitespace);
  const auto trie = vocabulary();
  const auto tokens = std::make_shared<lathe::TokenGrammar>(grammar, trie);
  lathe::Matcher matcher(tokens);
  std::vector<uint64_t> words(static_cast<std::size_t>((trie->vocab_size() + 63) / 64));
  uint64_t state = seed;
  for (int step = 0; step < 60 && !matcher.has_ended(); ++step) {
    matcher.allowed_tokens(words);
    std::vector<int32_t> allowed;
    for (int32_t t = 0; t < trie->vocab_size(); ++t) {
      if ((words[static_cast<std::size_t>(t / 64)] >> (t % 64) & 1) != 0) allowed.push_back(t);
    }
    check(!allowed.empty());
    state = state * 6364136223846793005 + 1442695040888963407;
    const int32_t token = allowed[(state >> 33) % allowed.size()];
    // The end is allowed only where the text is complete: no dead ends.
    check(!trie->is_end(token) || matcher.is_complete());
    check(matcher.accept(token));
    if ((state >> 20) % 5 == 0) {
      matcher.rollback(1);
      check(matcher.accept(token));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  try {
    run(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
  } catch (const lathe::Error&) {
  }
  return 0;
}
