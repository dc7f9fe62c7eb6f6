#include "grammar/matcher.h"

#include <gtest/gtest.h>

#include <random>

#include "grammar/grammar_cases.h"
#include "support/counting_allocator.h"

namespace lathe {
namespace {

const std::vector<const char*> kSchemas = {
    R"({"type":"object","properties":{"a":{"type":"string"},"b":{"type":"integer","minimum":3}},"required":["a"]})",
    R"({"type":"object","additionalProperties":{"type":["number","null"]}})",
    R"({"type":"array","items":{"type":"string","minLength":2,"maxLength":5},"minItems":1,"maxItems":3})",
    R"({"type":"string","minLength":3,"maxLength":40})",
    R"({"type":"string","minLength":30})",
    R"({"type":"string","pattern":"^[a-z]+(, [0-9]{2})*$"})",
    R"({"anyOf":[{"type":"array","items":{"type":"integer"}},{"type":"array","items":{"type":"number"}},{"type":"string"}]})",
    R"({"type":"object","properties":{"n":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},"required":["n"],"additionalProperties":false})",
    R"({"enum":["a","abc",{"a":[1,"x"]},true,12,1.5,null]})",
    R"({})",
};

// The definition: a token is allowed when its bytes can follow one by one.
bool allowed_by_bytes(Matcher& matcher, const TokenTrie& trie, int32_t token) {
  const std::string_view bytes = trie.bytes(token);
  if (bytes.empty()) return false;
  int64_t taken = 0;
  bool good = true;
  for (const char c : bytes) {
    ++taken;
    if (!matcher.accept(static_cast<uint8_t>(c))) {  // token b of the vocabularies is byte b
      good = false;
      break;
    }
  }
  matcher.rollback(taken);
  return good;
}

int32_t random_token(const std::vector<uint64_t>& mask, int64_t vocab_size, std::mt19937& rng) {
  std::vector<int32_t> tokens;
  for (int64_t t = 0; t < vocab_size; ++t) {
    if (is_set(mask, t)) tokens.push_back(static_cast<int32_t>(t));
  }
  return tokens.empty() ? -1 : tokens[rng() % tokens.size()];
}

// Masks made from the tables, the token tree and the counts of characters, against the definition.
void check_masks(const std::shared_ptr<const TokenTrie>& trie, int steps, uint32_t seed) {
  const int64_t vocab_size = trie->vocab_size();
  for (const char* schema : kSchemas) {
    SCOPED_TRACE(schema);
    const auto grammar = std::make_shared<TokenGrammar>(schema_grammar(schema), trie);
    std::mt19937 rng(seed);
    Matcher matcher(grammar);
    std::string text;
    for (int step = 0; step < steps; ++step) {
      const std::vector<uint64_t> mask = mask_of(matcher, *trie);
      for (int32_t t = 0; t < vocab_size; ++t) {
        const bool expected =
            trie->is_end(t) ? matcher.is_complete() : allowed_by_bytes(matcher, *trie, t);
        ASSERT_EQ(is_set(mask, t), expected) << "token '" << trie->bytes(t) << "' behind " << text;
        ASSERT_EQ(matcher.allows(t), expected) << trie->bytes(t);
      }
      const int32_t token = random_token(mask, vocab_size, rng);
      ASSERT_GE(token, 0) << "nothing is allowed behind " << text;
      ASSERT_TRUE(matcher.accept(token));
      text += trie->bytes(token);
      if (matcher.has_ended()) {
        matcher = Matcher(grammar);
        text.clear();
      }
    }
  }
}

TEST(Matcher, MasksAreWhatTheBytesSay) { check_masks(small_vocabulary(), 60, 1); }
TEST(Matcher, MasksOfALargeVocabularyToo) { check_masks(large_vocabulary(6000, 5), 12, 2); }

// Tables of so many states that those far from the end share masks, at both ends and in the middle.
TEST(Matcher, MasksOfStatesThatAreAlike) {
  const auto trie = large_vocabulary(6000, 5);
  for (const char* pattern : {"^.{1,300}$", "^(n.{2,250}|[^n].{100,200}[0-9])$"}) {
    SCOPED_TRACE(pattern);
    const Json schema = {{"type", "string"}, {"pattern", pattern}};
    const auto grammar =
        std::make_shared<TokenGrammar>(json_schema_grammar(schema, Whitespace::kNone), trie);
    int64_t shared = 0, own = 0;
    for (StateId s = grammar->grammar().num_plain_states(); s < grammar->grammar().num_states();
         ++s) {
      if (!grammar->has_tokens(s)) continue;
      ++(grammar->tokens(s).min_depth > 0 ? shared : own);
    }
    EXPECT_GT(shared, 100);
    EXPECT_LT(own, 100);
    for (const char first : {'n', 'a'}) {
      Matcher matcher(grammar);
      ASSERT_TRUE(matcher.accept('"'));
      ASSERT_TRUE(matcher.accept(first));
      for (int length = 1; length < 300; ++length) {
        const bool looks = length % 50 == 1 || (length > 180 && length % 10 < 2) || length > 294;
        const std::vector<uint64_t> mask =
            looks ? mask_of(matcher, *trie) : std::vector<uint64_t>();
        for (int32_t t = 0; looks && t + 1 < trie->vocab_size(); ++t) {
          ASSERT_EQ(is_set(mask, t), allowed_by_bytes(matcher, *trie, t))
              << "token '" << trie->bytes(t) << "' behind " << length << " characters";
        }
        if (!matcher.accept('e')) break;
      }
    }
  }
}

TEST(Matcher, WordsBehindTheVocabularyAreCleared) {
  const auto trie = small_vocabulary();
  Matcher matcher(std::make_shared<TokenGrammar>(schema_grammar("{}"), trie));
  std::vector<uint64_t> words(40, ~uint64_t{0});
  matcher.allowed_tokens(words);
  for (int64_t t = trie->vocab_size(); t < 40 * 64; ++t) EXPECT_FALSE(is_set(words, t));
  std::vector<uint64_t> few(1);
  matcher.allowed_tokens(few);  // logits may have fewer entries, too
  EXPECT_EQ(few[0], words[0]);
}

// Going back gives the state from before, whatever was tried in between.
TEST(Matcher, RollbackIsExact) {
  const auto trie = small_vocabulary();
  for (const char* schema : kSchemas) {
    SCOPED_TRACE(schema);
    const auto grammar = std::make_shared<TokenGrammar>(schema_grammar(schema), trie);
    std::mt19937 rng(7);
    Matcher matcher(grammar);
    std::vector<int32_t> tokens;
    for (int round = 0; round < 150; ++round) {
      const int count = 1 + static_cast<int>(rng() % 6);
      for (int i = 0; i < count; ++i) {
        // Now and then a token that is forbidden, or the end in the middle of a window.
        const int32_t token =
            rng() % 8 == 0 ? static_cast<int32_t>(rng() % static_cast<uint64_t>(trie->vocab_size()))
                           : random_token(mask_of(matcher, *trie), trie->vocab_size(), rng);
        const bool allowed = matcher.allows(token);
        EXPECT_EQ(matcher.accept(token), allowed);
        EXPECT_EQ(matcher.has_ended(), !allowed || trie->is_end(token));
        tokens.push_back(token);
      }
      int64_t back = static_cast<int64_t>(rng() % 7);
      if (matcher.has_ended()) back = std::max<int64_t>(back, count);
      back = std::min<int64_t>(back, std::ssize(tokens));
      matcher.rollback(back);
      tokens.resize(tokens.size() - static_cast<std::size_t>(back));
      Matcher fresh(grammar);
      for (const int32_t token : tokens) fresh.accept(token);
      ASSERT_EQ(mask_of(matcher, *trie), mask_of(fresh, *trie)) << round;
      ASSERT_EQ(matcher.is_complete(), fresh.is_complete());
      if (std::ssize(tokens) > 60) {
        matcher = Matcher(grammar);
        tokens.clear();
      }
    }
  }
}

TEST(Matcher, TheEndAndWhatIsForbidden) {
  const auto trie = small_vocabulary();
  const auto end = static_cast<int32_t>(trie->vocab_size() - 1);
  const auto grammar = std::make_shared<TokenGrammar>(schema_grammar(R"({"const":"ab"})"), trie);
  Matcher matcher(grammar);
  EXPECT_FALSE(matcher.allows(end));
  for (const char c : std::string("\"ab\"")) EXPECT_TRUE(matcher.accept(c));
  EXPECT_TRUE(matcher.is_complete());
  std::vector<uint64_t> only_end(mask_of(matcher, *trie).size(), 0);
  only_end[static_cast<std::size_t>(end / 64)] = uint64_t{1} << (end % 64);
  EXPECT_EQ(mask_of(matcher, *trie), only_end);
  EXPECT_TRUE(matcher.accept(end));
  EXPECT_EQ(mask_of(matcher, *trie), only_end);  // an engine that ignores the end goes on with it
  EXPECT_TRUE(matcher.accept(end));
  matcher.rollback(3);
  EXPECT_FALSE(matcher.is_complete());
  EXPECT_FALSE(matcher.accept('x'));
  EXPECT_EQ(mask_of(matcher, *trie), only_end);
  matcher.rollback(1);
  EXPECT_TRUE(matcher.accept('"'));
  EXPECT_FALSE(Matcher(grammar).accept(-5));
  EXPECT_FALSE(Matcher(grammar).accept(1 << 30));
}

// A vocabulary that cannot spell what the grammar wants leaves the end token, not an empty mask.
TEST(Matcher, NothingFits) {
  const auto trie = std::make_shared<const TokenTrie>(std::vector<std::string>{"a", "b", ""},
                                                      std::vector<int32_t>{2});
  Matcher matcher(std::make_shared<TokenGrammar>(schema_grammar("{}"), trie));
  EXPECT_EQ(mask_of(matcher, *trie), std::vector<uint64_t>{4});
}

// Long texts: memory is given back, the state stays right, and the mask takes no memory at all.
TEST(Matcher, LongTextsWithoutGrowth) {
  const auto trie = small_vocabulary();
  const auto grammar = std::make_shared<TokenGrammar>(json_object_grammar(), trie);
  Matcher matcher(grammar);
  const auto accept = [&](std::string_view text) {
    for (const char c : text) ASSERT_TRUE(matcher.accept(static_cast<uint8_t>(c))) << text;
  };
  std::vector<uint64_t> words((static_cast<std::size_t>(trie->vocab_size()) + 63) / 64);
  std::vector<uint64_t> expected;
  accept("{\"deep\": [[[[{\"x\": ");
  int64_t allocations = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::string_view text = "{\"k\": [1, true, \"text\"]}, \"y\": ";
    accept(i == 0 ? text.substr(0, text.size() - 6) : text.substr(0, 10));
    if (i > 0) {
      // A window of drafts that is dropped, again and again.
      accept("2, [{\"z\"");
      matcher.rollback(8);
      accept(text.substr(10, text.size() - 16));
      matcher.rollback(5);
      accept(text.substr(text.size() - 11, 5));
    }
    accept(text.substr(text.size() - 6));
    const int64_t before = num_allocations();
    matcher.allowed_tokens(words);
    matcher.allows(static_cast<int32_t>(i % trie->vocab_size()));
    allocations += num_allocations() - before;
    if (i == 0) expected = words;
    ASSERT_EQ(words, expected) << i;
  }
  if (counting_allocator_available()) {
    EXPECT_EQ(allocations, 0);
  }
  accept("1}]]]]}");
  EXPECT_TRUE(matcher.is_complete());
}

// Alternatives that begin alike are followed side by side; their number does not grow with depth.
TEST(Matcher, AmbiguityIsPolynomial) {
  const auto grammar = schema_grammar(
      R"({"anyOf":[{"type":"array","items":{"$ref":"#"}},{"type":"array","items":{"$ref":"#"},"maxItems":9},
          {"type":"array","items":{"$ref":"#"},"minItems":0},{"type":"integer"}]})");
  const auto trie = small_vocabulary();
  Matcher matcher(std::make_shared<TokenGrammar>(grammar, trie));
  for (int depth = 0; depth < 300; ++depth) ASSERT_TRUE(matcher.accept('['));
  const std::vector<uint64_t> mask = mask_of(matcher, *trie);
  EXPECT_TRUE(is_set(mask, '1') && is_set(mask, '[') && is_set(mask, ']'));
  for (int depth = 0; depth < 300; ++depth) ASSERT_TRUE(matcher.accept(']'));
  EXPECT_TRUE(matcher.is_complete());
}

}  // namespace
}  // namespace lathe
