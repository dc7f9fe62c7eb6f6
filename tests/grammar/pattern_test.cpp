#include "grammar/pattern.h"

#include <gtest/gtest.h>

#include <ctime>
#include <string>
#include <vector>

#include "formats/expect_error.h"
#include "support/sanitizers.h"
#include "text/unicode.h"

namespace lathe {
namespace {

bool fits(const Dfa& dfa, std::string_view text) {
  if (dfa.is_empty()) return false;
  int32_t state = 0;
  for (std::size_t pos = 0; pos < text.size();) state = dfa.step(state, next_codepoint(text, pos));
  return state >= 0 && dfa.accepts[static_cast<std::size_t>(state)];
}

struct Case {
  const char* pattern;
  std::vector<std::string> yes, no;
};

TEST(Pattern, FindsWhatEcma262Finds) {
  const std::vector<Case> cases = {
      {"a", {"a", "bab", "xa"}, {"", "b"}},
      {"^a", {"a", "ab"}, {"ba", ""}},
      {"a$", {"a", "ba"}, {"ab"}},
      {"^$", {""}, {"a", "\n"}},
      {"^a|b$", {"a", "ax", "xb", "b"}, {"xa", "bx", ""}},
      {"^(?:a|b)$", {"a", "b"}, {"ab", ""}},
      {"^(?<year>[0-9]{4})$", {"2024"}, {"202", "20245"}},
      {"^a*b+c?$", {"b", "aabbc", "bc"}, {"ac", "", "bcc"}},
      {"^a{2}$", {"aa"}, {"a", "aaa"}},
      {"^a{2,}$", {"aa", "aaaaa"}, {"a"}},
      {"^a{0,2}$", {"", "a", "aa"}, {"aaa"}},
      {"^a{0}b$", {"b"}, {"ab"}},
      {"^(ab){2,3}$", {"abab", "ababab"}, {"ab", "abababab", "aba"}},
      {"^a+?b*?$", {"a", "aab"}, {"b"}},
      {"^[a-c_]$", {"a", "c", "_"}, {"d", "ab"}},
      {"^[^a-c]$", {"d", "\n", "é"}, {"a", ""}},
      {"^[]a]$", {}, {"]", "a"}},  // [] holds nothing
      {"^[\\]a-]$", {"]", "a", "-"}, {"b"}},
      {"^.$", {"a", "é", "😀"}, {"\n", "\r", "", "ab"}},
      {"^\\d\\D\\w\\W\\s\\S$", {"1x_- y"}, {"x1_- y"}},
      {"^\\t\\n\\x41\\u00e9\\u{1F600}\\uD83D\\uDE00$", {"\t\nAé😀😀"}, {""}},
      {"^\\.\\/\\{\\}$", {"./{}"}, {"x/{}"}},
      {"^a{,2}$", {"a{,2}"}, {"aa"}},  // as ECMA-262: not a repetition
      {"^日本?$", {"日", "日本"}, {"本"}},
      {"", {"", "anything"}, {}},
      {"(a|)b^c", {}, {"bc", "abc"}},  // ^ inside never holds
      {"x$y", {}, {"xy", "x"}},
      {"^^a$$", {"a"}, {"aa"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.pattern);
    const Dfa dfa = compile_pattern(c.pattern);
    for (const std::string& text : c.yes) EXPECT_TRUE(fits(dfa, text)) << text;
    for (const std::string& text : c.no) EXPECT_FALSE(fits(dfa, text)) << text;
  }
}

TEST(Pattern, RefusesWhatItCannotHold) {
  const std::vector<std::pair<const char*, ErrorCode>> cases = {
      {"(", ErrorCode::kInvalidArgument},           {")", ErrorCode::kInvalidArgument},
      {"[a", ErrorCode::kInvalidArgument},          {"*a", ErrorCode::kInvalidArgument},
      {"a**", ErrorCode::kInvalidArgument},         {"^*", ErrorCode::kInvalidArgument},
      {"[b-a]", ErrorCode::kInvalidArgument},       {"a{3,2}", ErrorCode::kInvalidArgument},
      {"\\", ErrorCode::kInvalidArgument},          {"\\x4", ErrorCode::kInvalidArgument},
      {"\\u{110000}", ErrorCode::kInvalidArgument}, {"\\q", ErrorCode::kInvalidArgument},
      {"(?<n", ErrorCode::kInvalidArgument},        {"\xff", ErrorCode::kInvalidArgument},
      {"[\\d-z]", ErrorCode::kInvalidArgument},     {"(?=a)", ErrorCode::kUnsupported},
      {"(?!a)", ErrorCode::kUnsupported},           {"(?<=a)", ErrorCode::kUnsupported},
      {"(?<!a)", ErrorCode::kUnsupported},          {"(a)\\1", ErrorCode::kUnsupported},
      {"\\bword", ErrorCode::kUnsupported},         {"\\p{L}", ErrorCode::kUnsupported},
      {"(?i)a", ErrorCode::kUnsupported},           {"\\k<n>", ErrorCode::kUnsupported},
  };
  for (const auto& [pattern, code] : cases) {
    SCOPED_TRACE(pattern);
    expect_error(code, "", [&, p = pattern] { compile_pattern(p); });
  }
}

// Patterns that explode are refused in bounded time and memory.
TEST(Pattern, BombsAreRefusedQuickly) {
  std::string deep;
  for (int i = 0; i < 5000; ++i) deep += "(";
  std::string many_classes;
  for (int i = 0; i < 3000; ++i) {
    many_classes += "(a|b)*[";
    append_utf8(static_cast<char32_t>(0x4E00 + 3 * i), many_classes);
    many_classes += "]?";
  }
  for (const std::string& pattern : std::vector<std::string>{
           "(a{1000}){1000}", "((a{100}){100}){100}", "(((((a{1,9}){1,9}){1,9}){1,9}){1,9}){1,9}",
           "(a|b)*a(a|b){30}", "^(a?){5000}a{5000}$", "(()*)*(()*){9999}", "a{999999999999}", deep,
           many_classes, ".*a.{25}b.{25}", "((((((.*)*)*)*)*)*)*x{9000}.*y{9000}"}) {
    SCOPED_TRACE(pattern.substr(0, 60));
    const std::clock_t start = std::clock();
    try {
      compile_pattern(pattern);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
    }
    // Of the processor: 0.5 s, and under a sanitizer some twenty times that.
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    EXPECT_LT(seconds, kSanitized ? 100 : 10);
  }
}

TEST(Automaton, SetOperations) {
  const Dfa a = compile_whole_pattern("[a-m]{1,3}"), b = compile_whole_pattern("[g-z]{2,4}");
  const Dfa both = intersect(a, b), only_a = subtract(a, b);
  for (const char* text : {"a", "gg", "gm", "ggg", "az", "zz", "gggg", ""}) {
    EXPECT_EQ(fits(both, text), fits(a, text) && fits(b, text)) << text;
    EXPECT_EQ(fits(only_a, text), fits(a, text) && !fits(b, text)) << text;
  }
  EXPECT_TRUE(intersect(compile_whole_pattern("a+"), compile_whole_pattern("b+")).is_empty());
  EXPECT_TRUE(subtract(a, a).is_empty());
  const Dfa two = words_of_length(2, 3, kCodePointEnd);
  EXPECT_TRUE(fits(two, "éé") && fits(two, "abc"));
  EXPECT_FALSE(fits(two, "a") || fits(two, "abcd"));
  EXPECT_TRUE(words_of_length(3, 2, kCodePointEnd).is_empty());
  EXPECT_TRUE(words_of({}, kCodePointEnd).is_empty());
}

}  // namespace
}  // namespace lathe
