// Python's str methods on UTF-8, as far as chat templates use them. Positions count code points.
// Text is valid UTF-8 throughout.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lathe::jinja {

bool is_space(char32_t codepoint);      // str.isspace
bool is_printable(char32_t codepoint);  // str.isprintable

int64_t count_codepoints(std::string_view text);
// Byte offset of the codepoint with this index, text.size() when there are not so many.
size_t codepoint_offset(std::string_view text, int64_t index);

// Removes white space, or the characters listed, at either end.
std::string_view strip(std::string_view text, bool left, bool right, const std::string* characters);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);        // str.title: after anything that is not a letter
std::string title_words(std::string_view text);  // Jinja's filter: after white space and - ( { [ <

// separator null: at runs of white space, as str.split(None). max_splits < 0: no limit.
std::vector<std::string_view> split(std::string_view text, const std::string* separator,
                                    int64_t max_splits, bool from_right);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

bool all_of_kind(std::string_view text, std::string_view method);  // isdigit, isalpha, isupper, ...

}  // namespace lathe::jinja
