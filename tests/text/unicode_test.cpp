#include "text/unicode.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

// The table of the Unicode standard, section 3.9 ("U+FFFD substitution of maximal subparts"), and
// what Python's bytes.decode("utf-8", "replace") gives.
TEST(Unicode, ReplacesMaximalSubparts) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(to_valid_utf8("a\xF1\x80\x80\xE1\x80\xC2z"), "a" + r + r + r + "z");
  EXPECT_EQ(to_valid_utf8("\xC0\xAF"), r + r);                  // overlong
  EXPECT_EQ(to_valid_utf8("\xE0\x80\x80"), r + r + r);          // overlong
  EXPECT_EQ(to_valid_utf8("\xED\xA0\x80"), r + r + r);          // surrogate
  EXPECT_EQ(to_valid_utf8("\xF4\x90\x80\x80"), r + r + r + r);  // above U+10FFFF
  EXPECT_EQ(to_valid_utf8("\xF0\x9F\x98"), r);
  EXPECT_EQ(to_valid_utf8("\xF4\x8F\xBF\xBF"), "\xF4\x8F\xBF\xBF");
  EXPECT_EQ(to_valid_utf8(std::string("\0", 1)), std::string("\0", 1));
}

TEST(Unicode, KnowsCutOffCharacters) {
  EXPECT_TRUE(utf8_is_cut_off("\xF0\x9F\x98", 0));
  EXPECT_TRUE(utf8_is_cut_off("a\xE2", 1));
  EXPECT_FALSE(utf8_is_cut_off("\xE2\x28", 0));
  EXPECT_FALSE(utf8_is_cut_off("\xFF", 0));
  EXPECT_FALSE(utf8_is_cut_off("a", 0));
}

TEST(Unicode, EveryCodepointRoundTrips) {
  for (char32_t codepoint = 0; codepoint <= 0x10FFFF; ++codepoint) {
    std::string text;
    append_utf8(codepoint, text);
    const bool surrogate = codepoint >= 0xD800 && codepoint <= 0xDFFF;
    ASSERT_EQ(is_valid_utf8(text), !surrogate) << uint32_t{codepoint};
    if (surrogate) continue;
    size_t pos = 0;
    ASSERT_TRUE(next_codepoint(text, pos) == codepoint) << uint32_t{codepoint};
    ASSERT_EQ(pos, text.size());
  }
}

// Lines of Unicode's NormalizationTest.txt.
TEST(Unicode, Normalises) {
  struct Case {
    std::string source, nfc, nfd, nfkc, nfkd;
  };
  const Case cases[] = {
      {"\xE1\xBA\x9B\xCC\xA3", "\xE1\xBA\x9B\xCC\xA3", "\xC5\xBF\xCC\xA3\xCC\x87", "\xE1\xB9\xA9",
       "s\xCC\xA3\xCC\x87"},
      {"\xE2\x84\xAB", "\xC3\x85", "A\xCC\x8A", "\xC3\x85", "A\xCC\x8A"},
      {"\xEF\xAC\x81", "\xEF\xAC\x81", "\xEF\xAC\x81", "fi", "fi"},
      {"\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81",
       "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81",
       "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8"},
      {"a\xCC\x81\xCC\xA3", "\xE1\xBA\xA1\xCC\x81", "a\xCC\xA3\xCC\x81", "\xE1\xBA\xA1\xCC\x81",
       "a\xCC\xA3\xCC\x81"},
      {"\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC", "\xE0\xA4\x95\xE0\xA4\xBC",
       "\xE0\xA4\x95\xE0\xA4\xBC", "\xE0\xA4\x95\xE0\xA4\xBC"},  // excluded from composition
      {"\xC3\xA9", "\xC3\xA9", "e\xCC\x81", "\xC3\xA9", "e\xCC\x81"},
      {"plain", "plain", "plain", "plain", "plain"},
  };
  for (const Case& item : cases) {
    EXPECT_EQ(normalize(item.source, NormalForm::kNfc), item.nfc);
    EXPECT_EQ(normalize(item.source, NormalForm::kNfd), item.nfd);
    EXPECT_EQ(normalize(item.source, NormalForm::kNfkc), item.nfkc);
    EXPECT_EQ(normalize(item.source, NormalForm::kNfkd), item.nfkd);
  }
}

TEST(Unicode, ByteLevelAlphabetIsReversible) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  const std::string text = bytes_to_byte_level(bytes);
  EXPECT_TRUE(is_valid_utf8(text));
  EXPECT_EQ(bytes_to_byte_level(" \n"), "\xC4\xA0\xC4\x8A");  // as every GPT-2 vocabulary has them
  std::string back;
  ASSERT_TRUE(byte_level_to_bytes(text, back));
  EXPECT_EQ(back, bytes);
  EXPECT_FALSE(byte_level_to_bytes("a b", back));
  EXPECT_FALSE(byte_level_to_bytes("\xE4\xBD\xA0", back));
}

}  // namespace
}  // namespace lathe
