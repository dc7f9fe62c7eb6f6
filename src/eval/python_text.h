// Text as Python's str, re and json see it: what published checkers written in Python count, strip
// and accept. Every text is valid UTF-8.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

// str.isspace() of one character, and \s of re: White_Space and U+001C to U+001F.
bool is_python_space(char32_t codepoint);
// \w of the `regex` package, which NLTK uses since 3.10: whatever is alphabetic, marks, digits,
// connectors such as "_", and joiners. \w of re, which NLTK used before, ends a word at a combining
// mark and has fractions in words.
bool is_nltk_word(char32_t codepoint);

std::string_view strip(std::string_view text);  // str.strip()
bool is_blank(std::string_view text);           // not str.strip()
// str.split() without arguments: the runs of characters that are no spaces.
std::vector<std::string_view> split_at_spaces(std::string_view text);
// str.split(separator); separator is not empty.
std::vector<std::string_view> split_at(std::string_view text, std::string_view separator);

// str.isupper(), str.islower(): a cased character, and none of another case.
bool is_upper_text(std::string_view text);
bool is_lower_text(std::string_view text);

// Runs of those: NLTK's RegexpTokenizer(r"\w+").
int64_t count_words(std::string_view text);

// Whether json.loads() takes the text: RFC 8259 with NaN, Infinity and lone surrogates, nested to
// any depth.
bool is_python_json(std::string_view text);

}  // namespace lathe
