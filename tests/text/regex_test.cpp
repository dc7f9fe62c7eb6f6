#include "text/regex.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/error.h"
#include "text/split_patterns.h"

namespace lathe {
namespace {

std::vector<std::string> matches(const Regex& regex, const std::string& text) {
  std::vector<std::string> found;
  size_t begin = 0, end = 0;
  for (Regex::Scanner scanner(regex, text); scanner.next(begin, end);) {
    found.push_back(text.substr(begin, end - begin));
  }
  return found;
}

using Strings = std::vector<std::string>;

TEST(Regex, SplitsAsThePublishedPatternsDo) {
  EXPECT_EQ(matches(Regex(std::string(kGpt2Split)), "I'll go  now!\n"),
            (Strings{"I", "'ll", " go", " ", " now", "!", "\n"}));
  EXPECT_EQ(matches(Regex(std::string(kQwen2Split)), "x=12  y\n\n z"),
            (Strings{"x", "=", "1", "2", " ", " y", "\n\n", " z"}));
  EXPECT_EQ(matches(Regex(std::string(kLlama3Split)), "12345"), (Strings{"123", "45"}));
  EXPECT_EQ(matches(Regex(std::string(kO200kSplit)), "camelCase's"), (Strings{"camel", "Case's"}));
  EXPECT_EQ(matches(Regex(std::string(kTekkenSplit)), "HTMLParser 12"),
            (Strings{"HTMLParser", " ", "1", "2"}));
}

TEST(Regex, WhiteSpaceIsUnicodes) {
  // U+180E is white space for PCRE2, not for Unicode; U+0085 is for both.
  EXPECT_EQ(matches(Regex("\\s"), "a\xE1\xA0\x8E \xC2\x85\xE3\x80\x80\t"),
            (Strings{" ", "\xC2\x85", "\xE3\x80\x80", "\t"}));
  EXPECT_EQ(matches(Regex("[^\\s]+"), "a\xE1\xA0\x8E b"), (Strings{"a\xE1\xA0\x8E", "b"}));
  EXPECT_EQ(matches(Regex("\\S+"), "a\xE1\xA0\x8E b"), (Strings{"a\xE1\xA0\x8E", "b"}));
}

TEST(Regex, LiteralsAreNotExpressions) {
  EXPECT_EQ(matches(Regex("a.c", true), "abc a.c"), (Strings{"a.c"}));
}

TEST(Regex, EmptyMatchesAreSkipped) {
  EXPECT_EQ(matches(Regex("a*"), "baac"), (Strings{"aa"}));
  EXPECT_TRUE(matches(Regex("x"), "").empty());
}

TEST(Regex, RefusesWhatItCannotRun) {
  for (const char* pattern : {"(", "[a-z&&[^b]]", "[a[bc]]", "\\p{NoSuchScript}", "\\C"}) {
    try {
      Regex regex{pattern};
      ADD_FAILURE() << pattern;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << pattern;
    }
  }
  // Exponential backtracking ends at the limit.
  const Regex hostile("(a|aa)*(a|aa)*(a|aa)*[bc]");
  EXPECT_THROW(matches(hostile, std::string(200, 'a')), Error);
}

}  // namespace
}  // namespace lathe
