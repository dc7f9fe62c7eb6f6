#include "engine/grammar_constraint.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "engine/tiny_engine.h"
#include "grammar/json_schema.h"
#include "grammar/matcher.h"

namespace lathe {
namespace {

// A random model knows nothing of JSON, so the grammar alone makes these.
TEST(GrammarConstraint, AnswersOfARandomModelValidate) {
  const std::vector<int64_t> end_ids = {300};
  TinyEngine tiny;
  const auto trie = std::make_shared<TokenTrie>(tiny.tokenizer, end_ids);
  const auto grammar = std::make_shared<TokenGrammar>(
      json_schema_grammar(parse_json(R"({"type":"object","properties":{"city":{"type":"string",
          "maxLength":6},"tags":{"type":"array","items":{"enum":["a","bb"]},"maxItems":2}},
          "required":["city","tags"],"additionalProperties":false})",
                                     "schema"),
                          Whitespace::kNone),
      trie);
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SamplingParams params;
    params.max_tokens = 100;
    params.temperature = seed % 3 == 0 ? 0 : 1.5;
    params.seed = seed;
    params.stop_token_ids = {300};
    const Generation generation =
        generate(tiny.engine, random_prompt(9, static_cast<uint32_t>(seed)), params, nullptr,
                 make_grammar_constraint(grammar));
    ASSERT_EQ(generation.finish_reason, FinishReason::kStop);
    ASSERT_EQ(generation.token_ids.back(), 300);
    const std::string& text = generation.text;
    const Json json = parse_json(text, "answer");
    EXPECT_TRUE(json["city"].is_string() && json["tags"].is_array()) << text;
    EXPECT_EQ(json.size(), 2u) << text;
    EXPECT_LE(json["tags"].size(), 2u) << text;
  }
}

TEST(GrammarConstraint, RollsBack) {
  const std::vector<int64_t> end_ids = {300};
  const Tokenizer tokenizer = byte_tokenizer(320);
  const auto grammar = std::make_shared<TokenGrammar>(
      json_schema_grammar(parse_json(R"({"enum":["ab","ac"]})", "schema")),
      std::make_shared<TokenTrie>(tokenizer, end_ids));
  const auto constraint = make_grammar_constraint(grammar);
  const auto allowed = [&] {
    std::vector<uint64_t> words(5);
    constraint->allowed_tokens(words);
    std::string tokens;
    for (int t = 0; t < 320; ++t) {
      if ((words[static_cast<std::size_t>(t / 64)] >> (t % 64) & 1) != 0) {
        tokens += t < 256 ? std::string(1, static_cast<char>(t)) : "<" + std::to_string(t) + ">";
      }
    }
    return tokens;
  };
  for (const char c : std::string("\"a")) constraint->accept(c);
  EXPECT_EQ(allowed(), "bc");
  constraint->accept('b');
  constraint->accept('"');
  EXPECT_EQ(allowed(), "<300>");
  constraint->accept(300);
  constraint->rollback(3);
  EXPECT_EQ(allowed(), "bc");
  constraint->accept('x');  // forbidden: only the end is left
  EXPECT_EQ(allowed(), "<300>");
  constraint->rollback(1);
  constraint->accept('c');
  EXPECT_EQ(allowed(), "\"");
}

}  // namespace
}  // namespace lathe
