#include "eval/python_text.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

// Expected values are Python 3.11's.
TEST(PythonText, StripsEverySpace) {
  EXPECT_EQ(strip(""), "");
  EXPECT_EQ(strip(" \t\n"), "");
  EXPECT_EQ(strip("\x1C\u0085x"), "x");
  EXPECT_EQ(strip("\u3000 a b\u00A0\n"), "a b");
  EXPECT_EQ(strip("\u200Ba"), "\u200Ba");  // zero width: none
  EXPECT_EQ(strip("\u180E"), "\u180E");    // was one before Unicode 6.3
  EXPECT_TRUE(is_blank("\u2028\u202F\u205F\u1680\x1F\v\f"));
}

TEST(PythonText, Splits) {
  using Pieces = std::vector<std::string_view>;
  EXPECT_EQ(split_at_spaces(" a\u00A0bc\n"), (Pieces{"a", "bc"}));
  EXPECT_EQ(split_at_spaces(" "), Pieces{});
  EXPECT_EQ(split_at("", "**"), (Pieces{""}));
  EXPECT_EQ(split_at("a***b**", "**"), (Pieces{"a", "*b", ""}));
}

TEST(PythonText, KnowsCases) {
  for (const char* text :
       {"A", "A1!", "\u00C9\u00C8 X", "\u2167", "\u24B6", "\U0001F130", "\u03A9"}) {
    EXPECT_TRUE(is_upper_text(text)) << text;
    EXPECT_FALSE(is_lower_text(text)) << text;
  }
  for (const char* text :
       {"a", "a1!", "\u00DF", "\u00AA", "\u2177", "\u02B0", "\u1D43x", "\u0345", "\uA69C"}) {
    EXPECT_TRUE(is_lower_text(text)) << text;
    EXPECT_FALSE(is_upper_text(text)) << text;
  }
  // No case, two cases, title case, and modifier letters that are neither.
  for (const char* text : {"", "1", "\u65E5", "aA", "\u01C5", "A\u01C5", "a\u01C5", "\u02BB"}) {
    EXPECT_FALSE(is_upper_text(text)) << text;
    EXPECT_FALSE(is_lower_text(text)) << text;
  }
}

// Expected values are those of NLTK 3.10's RegexpTokenizer(r"\w+").
TEST(PythonText, CountsWords) {
  const std::pair<const char*, int64_t> cases[] = {
      {"", 0},
      {"don't well-known a_b", 5},
      {"\u0939\u093F\u0928\u094D\u0926\u0940", 1},  // marks
      {"\u00BD x\u00B2 \u0663", 2},                 // fractions and powers are none, digits are
      {"\u2167 \u24B6", 2},
      {"a\u200Db\u203Fc", 1},
      {"a\u200Bb", 2},
      {"\U0001F600", 0},
  };
  for (const auto& [text, words] : cases) EXPECT_EQ(count_words(text), words) << text;
}

TEST(PythonText, AcceptsTheJsonThatPythonDoes) {
  for (const char* text :
       {"{}", "[ ]", "0", "-1.5e+3", "\"a\\u00e9\\/\"", "NaN", "[-Infinity,null]",
        "{\"a\":{\"b\":[1,{}]},\"c\":\"\\ud800\"}", " \t\r\n true \n"}) {
    EXPECT_TRUE(is_python_json(text)) << text;
  }
  for (const char* text : {"",
                           "{",
                           "[1,]",
                           "{\"a\":1,}",
                           "{\"a\"}",
                           "{\"a\" 1}",
                           "{a:1}",
                           "01",
                           "1.",
                           ".5",
                           "+1",
                           "'a'",
                           "\"a",
                           "\"\t\"",
                           "\"\\x\"",
                           "\"\\u12g4\"",
                           "\"\\u12",
                           "tru",
                           "[1 2]",
                           "{} {}",
                           "[}",
                           "{]",
                           "nan",
                           "--1",
                           "-",
                           "1e",
                           "\xC2\xA0"
                           "1",
                           "[1]]",
                           "{\"a\":1]"}) {
    EXPECT_FALSE(is_python_json(text)) << text;
  }
  EXPECT_TRUE(is_python_json(std::string(1'000'000, '[') + std::string(1'000'000, ']')));
}

}  // namespace
}  // namespace lathe
