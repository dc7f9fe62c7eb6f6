// Drives a matcher from a script, one JSON object a line in and one out, so that tests can put
// other implementations beside it:
//   {"tokens": ["7b", "22", ...], "end": [5]}      the vocabulary, bytes in hexadecimal; {"model":
//   PATH}
//   {"schema": {...}, "whitespace": "none"}        {"object": true}: any object
//   {"mask": true}                                 -> {"allowed": [...], "complete": b, "us": t}
//   {"accept": 17}                                 -> {"ok": b}
//   {"rollback": 3}                                {"restart": true}: the same grammar again
//   {"text": "..."}                                -> {"ok": b}: a whole document, byte by byte
#include <chrono>
#include <iostream>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "grammar/json_schema.h"
#include "grammar/matcher.h"
#include "text/model_text.h"

namespace lathe {
namespace {

using Clock = std::chrono::steady_clock;
double microseconds(Clock::time_point since) {
  return std::chrono::duration<double, std::micro>(Clock::now() - since).count();
}

std::string from_hex(const std::string& hex) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return out;
}

class Driver {
 public:
  Json answer(const Json& request) {
    if (request.contains("model")) {
      const Tokenizer tokenizer = load_tokenizer(request["model"].get<std::string>());
      trie_ = std::make_shared<TokenTrie>(tokenizer);
      return {{"vocab_size", trie_->vocab_size()}, {"nodes", trie_->nodes().size()}};
    }
    if (request.contains("tokens")) {
      std::vector<std::string> bytes;
      for (const Json& hex : request["tokens"]) bytes.push_back(from_hex(hex.get<std::string>()));
      trie_ =
          std::make_shared<TokenTrie>(std::move(bytes), request["end"].get<std::vector<int32_t>>());
      return {{"vocab_size", trie_->vocab_size()}};
    }
    if (request.contains("schema") || request.contains("object")) {
      const auto whitespace =
          request.value("whitespace", "") == "none" ? Whitespace::kNone : Whitespace::kFlexible;
      const auto start = Clock::now();
      auto grammar = request.contains("schema") ? json_schema_grammar(request["schema"], whitespace)
                                                : json_object_grammar(whitespace);
      const double grammar_us = microseconds(start);
      grammar_ = std::make_shared<TokenGrammar>(std::move(grammar), trie_);
      const double compile_us = microseconds(start);
      matcher_ = std::make_unique<Matcher>(grammar_);
      return {{"ok", true}, {"grammar_us", grammar_us}, {"us", compile_us}};
    }
    if (request.contains("restart")) {
      matcher_ = std::make_unique<Matcher>(grammar_);
      return {{"ok", true}};
    }
    if (request.contains("mask")) {
      std::vector<uint64_t> words(static_cast<std::size_t>((trie_->vocab_size() + 63) / 64));
      const auto start = Clock::now();
      matcher_->allowed_tokens(words);
      const double us = microseconds(start);
      Json allowed = Json::array();
      for (int64_t t = 0; t < trie_->vocab_size(); ++t) {
        if ((words[static_cast<std::size_t>(t / 64)] >> (t % 64) & 1) != 0) allowed.push_back(t);
      }
      return {{"allowed", allowed}, {"complete", matcher_->is_complete()}, {"us", us}};
    }
    if (request.contains("accept")) return {{"ok", matcher_->accept(request["accept"])}};
    if (request.contains("rollback")) {
      matcher_->rollback(request["rollback"]);
      return {{"ok", true}};
    }
    if (request.contains("text")) {
      std::vector<std::string> bytes;
      for (int b = 0; b < 256; ++b) bytes.emplace_back(1, static_cast<char>(b));
      auto trie = std::make_shared<TokenTrie>(std::move(bytes), std::vector<int32_t>{256});
      Matcher matcher(std::make_shared<TokenGrammar>(
          std::shared_ptr<const Grammar>(grammar_, &grammar_->grammar()), trie));
      for (const char c : request["text"].get<std::string>()) {
        if (!matcher.accept(static_cast<uint8_t>(c))) return {{"ok", false}};
      }
      return {{"ok", matcher.is_complete()}};
    }
    fail(ErrorCode::kInvalidArgument, "unknown request");
  }

 private:
  std::shared_ptr<const TokenTrie> trie_;
  std::shared_ptr<const TokenGrammar> grammar_;
  std::unique_ptr<Matcher> matcher_;
};

}  // namespace
}  // namespace lathe

int main() {
  lathe::Driver driver;
  for (std::string line; std::getline(std::cin, line);) {
    lathe::Json reply;
    try {
      reply = driver.answer(lathe::parse_json(line, "line", 200));
    } catch (const lathe::Error& error) {
      reply = {{"error", error.what()}, {"code", lathe::to_string(error.code())}};
    }
    std::cout << lathe::dump_json(reply) << std::endl;
  }
}
