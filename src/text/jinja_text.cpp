#include "text/jinja_text.h"

#include <utf8proc.h>

#include <algorithm>

#include "text/unicode.h"

namespace lathe::jinja {
namespace {

utf8proc_category_t category(char32_t codepoint) {
  return utf8proc_category(static_cast<int>(codepoint));
}

bool is_letter(char32_t codepoint) {
  const auto kind = category(codepoint);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

// Letters with two cases, which is where a word of str.title goes on.
bool is_cased(char32_t codepoint) {
  const auto kind = category(codepoint);
  return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LL ||
         kind == UTF8PROC_CATEGORY_LT;
}

void append_upper(char32_t codepoint, std::string& out) {
  if (codepoint == 0xDF) {  // utf8proc would give the capital sharp s; Unicode's full mapping is SS
    out += "SS";
    return;
  }
  append_utf8(static_cast<char32_t>(utf8proc_toupper(static_cast<int>(codepoint))), out);
}

void append_title(char32_t codepoint, std::string& out) {
  if (codepoint == 0xDF) {
    out += "Ss";
    return;
  }
  append_utf8(static_cast<char32_t>(utf8proc_totitle(static_cast<int>(codepoint))), out);
}

void append_lower(char32_t codepoint, std::string& out) {
  std::string one;
  append_utf8(codepoint, one);
  out += to_lower(one);
}

}  // namespace

bool is_space(char32_t codepoint) {
  if (codepoint < 0x80)
    return codepoint == ' ' || (codepoint >= 9 && codepoint <= 13) ||
           (codepoint >= 0x1C && codepoint <= 0x1F);
  if (codepoint == 0x85) return true;
  const auto kind = category(codepoint);
  return kind == UTF8PROC_CATEGORY_ZS || kind == UTF8PROC_CATEGORY_ZL ||
         kind == UTF8PROC_CATEGORY_ZP;
}

bool is_printable(char32_t codepoint) {
  if (codepoint == ' ') return true;
  switch (category(codepoint)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

int64_t count_codepoints(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

size_t codepoint_offset(std::string_view text, int64_t index) {
  size_t pos = 0;
  for (; index > 0 && pos < text.size(); --index) next_codepoint(text, pos);
  return pos;
}

std::string_view strip(std::string_view text, bool left, bool right,
                       const std::string* characters) {
  const auto is_stripped = [&](std::string_view character) {
    size_t pos = 0;
    return characters != nullptr ? characters->find(character) != std::string::npos
                                 : is_space(next_codepoint(character, pos));
  };
  while (left && !text.empty()) {
    size_t end = 0;
    next_codepoint(text, end);
    if (!is_stripped(text.substr(0, end))) break;
    text.remove_prefix(end);
  }
  while (right && !text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!is_stripped(text.substr(begin))) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

std::string upper(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) append_upper(next_codepoint(text, pos), out);
  return out;
}

std::string lower(std::string_view text) { return to_lower(text); }

std::string capitalize(std::string_view text) {
  if (text.empty()) return "";
  size_t pos = 0;
  std::string out;
  append_title(next_codepoint(text, pos), out);
  return out + to_lower(text.substr(pos));
}

std::string title(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (size_t pos = 0; pos < text.size();) {
    const char32_t codepoint = next_codepoint(text, pos);
    in_word ? append_lower(codepoint, out) : append_title(codepoint, out);
    in_word = is_cased(codepoint);
  }
  return out;
}

std::string title_words(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (size_t pos = 0; pos < text.size();) {
    const char32_t codepoint = next_codepoint(text, pos);
    in_word ? append_lower(codepoint, out) : append_upper(codepoint, out);
    const bool breaks = is_space(codepoint) || codepoint == '-' || codepoint == '(' ||
                        codepoint == '{' || codepoint == '[' || codepoint == '<';
    in_word = !breaks;
  }
  return out;
}

namespace {

std::vector<std::string_view> split_at_spaces(std::string_view text, int64_t max_splits,
                                              bool from_right) {
  std::vector<std::string_view> parts;
  if (from_right) {
    std::string_view rest = strip(text, false, true, nullptr);
    while (!rest.empty() && (max_splits < 0 || std::ssize(parts) < max_splits)) {
      size_t begin = rest.size();
      while (begin > 0) {
        size_t before = begin - 1;
        while (before > 0 && (static_cast<uint8_t>(rest[before]) & 0xC0) == 0x80) --before;
        size_t pos = before;
        if (is_space(next_codepoint(rest, pos))) break;
        begin = before;
      }
      parts.push_back(rest.substr(begin));
      rest = strip(rest.substr(0, begin), false, true, nullptr);
    }
    if (!rest.empty()) parts.push_back(rest);
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  std::string_view rest = strip(text, true, false, nullptr);
  while (!rest.empty() && (max_splits < 0 || std::ssize(parts) < max_splits)) {
    size_t end = 0;
    while (end < rest.size()) {
      size_t next = end;
      if (is_space(next_codepoint(rest, next))) break;
      end = next;
    }
    parts.push_back(rest.substr(0, end));
    rest = strip(rest.substr(end), true, false, nullptr);
  }
  if (!rest.empty()) parts.push_back(rest);
  return parts;
}

}  // namespace

std::vector<std::string_view> split(std::string_view text, const std::string* separator,
                                    int64_t max_splits, bool from_right) {
  if (separator == nullptr) return split_at_spaces(text, max_splits, from_right);
  std::vector<std::string_view> parts;
  std::string_view rest = text;
  while (max_splits < 0 || std::ssize(parts) < max_splits) {
    const size_t found = from_right ? rest.rfind(*separator) : rest.find(*separator);
    if (found == std::string_view::npos) break;
    const size_t behind = found + separator->size();
    parts.push_back(from_right ? rest.substr(behind) : rest.substr(0, found));
    rest = from_right ? rest.substr(0, found) : rest.substr(behind);
  }
  parts.push_back(rest);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = pos;
    const char32_t codepoint = next_codepoint(text, pos);
    const bool breaks = (codepoint >= 10 && codepoint <= 13) ||
                        (codepoint >= 0x1C && codepoint <= 0x1E) || codepoint == 0x85 ||
                        codepoint == 0x2028 || codepoint == 0x2029;
    if (!breaks) continue;
    if (codepoint == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    lines.push_back(text.substr(begin, (keep_ends ? pos : end) - begin));
    begin = pos;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

bool all_of_kind(std::string_view text, std::string_view method) {
  bool cased = false;
  if (text.empty()) return method == "isascii";
  for (size_t pos = 0; pos < text.size();) {
    const char32_t codepoint = next_codepoint(text, pos);
    const auto kind = category(codepoint);
    const bool digit = kind == UTF8PROC_CATEGORY_ND;
    if (kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LT) {
      if (method == "islower") return false;
      cased = true;
    } else if (kind == UTF8PROC_CATEGORY_LL) {
      if (method == "isupper") return false;
      cased = true;
    }
    if (method == "isupper" || method == "islower") continue;
    const bool fits = method == "isdigit" || method == "isdecimal" ? digit
                      : method == "isnumeric"
                          ? digit || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO
                      : method == "isalpha" ? is_letter(codepoint)
                      : method == "isalnum"
                          ? is_letter(codepoint) || digit || kind == UTF8PROC_CATEGORY_NL ||
                                kind == UTF8PROC_CATEGORY_NO
                      : method == "isspace" ? is_space(codepoint)
                                            : codepoint < 0x80;
    if (!fits) return false;
  }
  return method == "isupper" || method == "islower" ? cased : true;
}

}  // namespace lathe::jinja
