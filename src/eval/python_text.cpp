#include "eval/python_text.h"

#include "text/character_class.h"
#include "text/unicode.h"

namespace lathe {
namespace {

// The character in front of text[end].
char32_t last_codepoint(std::string_view text, std::size_t end, std::size_t& begin) {
  begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  std::size_t pos = begin;
  return next_codepoint(text, pos);
}

// A pushdown automaton over the bytes; whatever is 0x80 and above may only be inside of strings.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  bool accepts() {
    do {
      if (!value()) return false;
    } while (!open_.empty());
    skip_spaces();
    return pos_ == text_.size();
  }

 private:
  // A scalar with the ends of containers behind it, or the beginning of a container.
  bool value() {
    skip_spaces();
    if (take('{')) {
      open_.push_back('}');
      skip_spaces();
      return take('}') ? close() : key();
    }
    if (take('[')) {
      open_.push_back(']');
      skip_spaces();
      return !take(']') || close();
    }
    return scalar() && after_value();
  }

  bool close() {
    open_.pop_back();
    return after_value();
  }

  bool after_value() {
    while (!open_.empty()) {
      skip_spaces();
      if (take(',')) {
        if (open_.back() == ']') return true;
        skip_spaces();
        return key();
      }
      if (!take(open_.back())) return false;
      open_.pop_back();
    }
    return true;
  }

  bool key() {
    if (!string()) return false;
    skip_spaces();
    return take(':');
  }

  bool scalar() {
    if (text_.substr(pos_).starts_with('"')) return string();
    for (const std::string_view word : {"null", "true", "false", "NaN", "Infinity", "-Infinity"}) {
      if (text_.substr(pos_).starts_with(word)) {
        pos_ += word.size();
        return true;
      }
    }
    return number();
  }

  bool number() {
    take('-');
    if (!take('0') && !digits()) return false;
    if (take('.') && !digits()) return false;
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      return digits();
    }
    return true;
  }

  bool digits() {
    const std::size_t begin = pos_;
    while (pos_ < text_.size() && text_[pos_] >= '0' && text_[pos_] <= '9') ++pos_;
    return pos_ > begin;
  }

  bool string() {
    if (!take('"')) return false;
    while (pos_ < text_.size()) {
      const auto c = static_cast<uint8_t>(text_[pos_++]);
      if (c == '"') return true;
      if (c < 0x20) return false;
      if (c != '\\') continue;
      if (pos_ == text_.size()) return false;
      const char escaped = text_[pos_++];
      if (escaped == 'u') {
        if (text_.substr(pos_, 4).find_first_not_of("0123456789abcdefABCDEF") !=
                std::string_view::npos ||
            pos_ + 4 > text_.size()) {
          return false;
        }
        pos_ += 4;
      } else if (std::string_view("\"\\/bfnrt").find(escaped) == std::string_view::npos) {
        return false;
      }
    }
    return false;
  }

  void skip_spaces() {
    while (pos_ < text_.size() &&
           std::string_view(" \t\n\r").find(text_[pos_]) != std::string_view::npos) {
      ++pos_;
    }
  }

  bool take(char c) {
    if (pos_ == text_.size() || text_[pos_] != c) return false;
    ++pos_;
    return true;
  }

  std::string_view text_;
  std::size_t pos_ = 0;
  std::string open_;  // the ends that are due, innermost last
};

// Whether a character of `wanted` case comes and none of another one.
bool has_one_case(std::string_view text, bool (*wanted)(char32_t), bool (*other)(char32_t)) {
  bool found = false;
  for (std::size_t pos = 0; pos < text.size();) {
    const char32_t c = next_codepoint(text, pos);
    if (other(c) || is_title_case(c)) return false;
    found = found || wanted(c);
  }
  return found;
}

}  // namespace

bool is_python_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_nltk_word(char32_t c) {
  return is_letter(c) || is_mark(c) || is_decimal_digit(c) || is_letter_number(c) ||
         is_connector(c) || is_upper_case(c) || is_lower_case(c) || c == 0x200C || c == 0x200D;
}

std::string_view strip(std::string_view text) {
  std::size_t begin = 0;
  for (std::size_t pos = 0; pos < text.size() && is_python_space(next_codepoint(text, pos));) {
    begin = pos;
  }
  std::size_t end = text.size();
  for (std::size_t at = end; end > begin && is_python_space(last_codepoint(text, end, at));) {
    end = at;
  }
  return text.substr(begin, end - begin);
}

bool is_blank(std::string_view text) { return strip(text).empty(); }

std::vector<std::string_view> split_at_spaces(std::string_view text) {
  std::vector<std::string_view> words;
  std::size_t begin = 0;
  for (std::size_t pos = 0; pos < text.size();) {
    const std::size_t at = pos;
    if (!is_python_space(next_codepoint(text, pos))) continue;
    if (at > begin) words.push_back(text.substr(begin, at - begin));
    begin = pos;
  }
  if (begin < text.size()) words.push_back(text.substr(begin));
  return words;
}

std::vector<std::string_view> split_at(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> pieces;
  std::size_t begin = 0;
  for (std::size_t end; (end = text.find(separator, begin)) != std::string_view::npos;) {
    pieces.push_back(text.substr(begin, end - begin));
    begin = end + separator.size();
  }
  pieces.push_back(text.substr(begin));
  return pieces;
}

bool is_upper_text(std::string_view text) {
  return has_one_case(text, is_upper_case, is_lower_case);
}

bool is_lower_text(std::string_view text) {
  return has_one_case(text, is_lower_case, is_upper_case);
}

int64_t count_words(std::string_view text) {
  int64_t count = 0;
  bool inside = false;
  for (std::size_t pos = 0; pos < text.size();) {
    const bool is_word = is_nltk_word(next_codepoint(text, pos));
    count += is_word && !inside;
    inside = is_word;
  }
  return count;
}

bool is_python_json(std::string_view text) { return JsonReader(text).accepts(); }

}  // namespace lathe
