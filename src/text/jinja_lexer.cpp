#include "text/jinja_lexer.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/error.h"
#include "text/jinja_text.h"
#include "text/unicode.h"

namespace lathe::jinja {
namespace {

using Kind = Token::Kind;

constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};

bool is_name_start(char c) {
  return std::isalpha(static_cast<uint8_t>(c)) || c == '_' || static_cast<uint8_t>(c) >= 0x80;
}
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_part(char c) { return is_name_start(c) || is_digit(c); }

// All newlines become \n, and one at the very end goes.
std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
      continue;
    }
    out.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source)
      : source_(normalize_newlines(is_valid_utf8(source) ? source : to_valid_utf8(source))) {}

  std::vector<Token> run() {
    while (pos_ < source_.size()) {
      const size_t tag = find_tag();
      lex_text(tag);
      if (tag == std::string::npos) break;
      lex_tag();
    }
    add(Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void error(std::string_view what) const {
    fail(ErrorCode::kCorruptData, "chat template, line ", line_, ": ", what);
  }

  void add(Kind kind, std::string text) {
    tokens_.push_back({.kind = kind, .text = std::move(text), .line = line_});
  }

  bool at(std::string_view text) const { return source_.compare(pos_, text.size(), text) == 0; }

  void advance(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(pos_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    pos_ = end;
  }

  size_t find_tag() const {
    for (size_t at = pos_; (at = source_.find('{', at)) != std::string::npos; ++at) {
      if (at + 1 >= source_.size()) break;
      const char second = source_[at + 1];
      if (second == '{' || second == '%' || second == '#') return at;
    }
    return std::string::npos;
  }

  // Text up to the tag (or the end), cut as the tag's sign and the settings say.
  void lex_text(size_t tag) {
    const std::string_view source = source_;
    std::string_view text = source.substr(pos_, tag == std::string::npos ? tag : tag - pos_);
    if (tag != std::string::npos) {
      const char sign = tag + 2 < source.size() ? source[tag + 2] : ' ';
      if (sign == '-') {
        text = strip(text, false, true, nullptr);
      } else if (sign != '+' && source[tag + 1] != '{') {
        const size_t newline = text.rfind('\n');
        const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
        const std::string_view indent = text.substr(line);
        if ((line > 0 || line_starting_) && strip(indent, true, true, nullptr).empty()) {
          text = text.substr(0, line);
        }
      }
    }
    if (!text.empty()) add(Kind::kText, std::string(text));
    advance(tag == std::string::npos ? source_.size() : tag);
  }

  void skip_sign() {
    if (at("-") || at("+")) ++pos_;
  }

  size_t end_of_spaces(size_t from) const {
    const std::string_view rest = std::string_view(source_).substr(from);
    return from + (rest.size() - strip(rest, true, false, nullptr).size());
  }

  // Behind the end of a tag, which had a minus sign or not.
  void finish_tag(bool strips, bool trims_newline) {
    const size_t begin = pos_;
    if (strips) {
      advance(end_of_spaces(pos_));
    } else if (trims_newline && at("\n")) {
      advance(pos_ + 1);
    }
    line_starting_ = pos_ > begin && source_[pos_ - 1] == '\n';
  }

  void lex_tag() {
    const char kind = source_[pos_ + 1];
    if (kind == '#') return lex_comment();
    if (kind == '%' && lex_raw()) return;
    add(kind == '{' ? Kind::kVariableBegin : Kind::kBlockBegin, "");
    pos_ += 2;
    skip_sign();
    lex_code(kind == '{');
  }

  void lex_comment() {
    const size_t end = source_.find("#}", pos_ + 2);
    if (end == std::string::npos) error("missing end of comment tag");
    const char sign = source_[end - 1];
    advance(end + 2);
    finish_tag(sign == '-', sign != '+');
  }

  // "{%", a sign and the word at `at`: its end, or npos.
  size_t match_word_tag(size_t at, std::string_view word, bool& strips) const {
    size_t pos = at + 2;
    if (pos < source_.size() && (source_[pos] == '-' || source_[pos] == '+')) ++pos;
    pos = end_of_spaces(pos);
    if (source_.compare(pos, word.size(), word) != 0) return std::string::npos;
    pos = end_of_spaces(pos + word.size());
    strips = pos < source_.size() && source_[pos] == '-';
    if (pos < source_.size() && (source_[pos] == '-' || source_[pos] == '+')) ++pos;
    return source_.compare(pos, 2, "%}") == 0 ? pos + 2 : std::string::npos;
  }

  // {% raw %} ... {% endraw %}: text as it stands.
  bool lex_raw() {
    bool strips = false;
    const size_t body = match_word_tag(pos_, "raw", strips);
    if (body == std::string::npos) return false;
    size_t begin = strips ? end_of_spaces(body) : body;
    for (size_t at = begin; (at = source_.find("{%", at)) != std::string::npos; at += 2) {
      const size_t end = match_word_tag(at, "endraw", strips);
      if (end == std::string::npos) continue;
      std::string_view text = std::string_view(source_).substr(begin, at - begin);
      if (source_[at + 2] == '-') text = strip(text, false, true, nullptr);
      if (!text.empty()) add(Kind::kText, std::string(text));
      advance(end);
      finish_tag(strips, true);
      return true;
    }
    error("missing end of raw directive");
  }

  void lex_code(bool is_variable) {
    const std::string_view end_tag = is_variable ? "}}" : "%}";
    std::string open;  // brackets that wait for their end; inside, "}}" ends no tag
    for (;;) {
      advance(end_of_spaces(pos_));
      if (pos_ >= source_.size()) error("unexpected end of template inside a tag");
      if (open.empty()) {
        const bool strips = at("-") && source_.compare(pos_ + 1, 2, end_tag) == 0;
        const bool keeps = !is_variable && at("+") && source_.compare(pos_ + 1, 2, end_tag) == 0;
        if (strips || keeps || at(end_tag)) {
          add(is_variable ? Kind::kVariableEnd : Kind::kBlockEnd, "");
          pos_ += strips || keeps ? 3 : 2;
          return finish_tag(strips, !is_variable && !keeps);
        }
      }
      lex_token(open);
    }
  }

  void lex_token(std::string& open) {
    const char c = source_[pos_];
    if (is_name_start(c)) {
      size_t end = pos_;
      while (end < source_.size() && is_name_part(source_[end])) ++end;
      add(Kind::kName, source_.substr(pos_, end - pos_));
      pos_ = end;
    } else if (is_digit(c)) {
      lex_number();
    } else if (c == '\'' || c == '"') {
      lex_string(c);
    } else {
      for (const std::string_view op : kOperators) {
        if (!at(op)) continue;
        balance(op, open);
        add(Kind::kOperator, std::string(op));
        pos_ += op.size();
        return;
      }
      error(str("unexpected character '", source_.substr(pos_, 1), "'"));
    }
  }

  void balance(std::string_view op, std::string& open) const {
    const char c = op[0];
    if (op.size() != 1) return;
    if (c == '(' || c == '[' || c == '{') {
      open.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    } else if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) error(str("unexpected '", op, "'"));
      open.pop_back();
    }
  }

  void lex_number() {
    size_t end = pos_;
    std::string digits;
    const auto take_digits = [&] {
      while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) {
        if (source_[end] != '_') digits.push_back(source_[end]);
        ++end;
      }
    };
    Token token{.kind = Kind::kInteger, .line = line_};
    int base = 10;
    if (source_[pos_] == '0' && pos_ + 1 < source_.size()) {
      const char kind = static_cast<char>(source_[pos_ + 1] | 0x20);
      base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
    }
    if (base != 10) {
      end += 2;
      while (end < source_.size() &&
             (std::isxdigit(static_cast<uint8_t>(source_[end])) || source_[end] == '_')) {
        if (source_[end] != '_') digits.push_back(source_[end]);
        ++end;
      }
    } else {
      take_digits();
      if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
        token.kind = Kind::kFloat;
        digits.push_back('.');
        ++end;
        take_digits();
      }
      size_t exponent = end;
      if (exponent < source_.size() && (source_[exponent] | 0x20) == 'e') {
        ++exponent;
        if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-'))
          ++exponent;
        if (exponent < source_.size() && is_digit(source_[exponent])) {
          token.kind = Kind::kFloat;
          digits.push_back('e');
          if (source_[exponent - 1] == '-') digits.push_back('-');
          end = exponent;
          take_digits();
        }
      }
    }
    const char* last = digits.data() + digits.size();
    const auto result = token.kind == Kind::kFloat
                            ? std::from_chars(digits.data(), last, token.number)
                            : std::from_chars(digits.data(), last, token.integer, base);
    if (result.ec != std::errc() || result.ptr != last) error("number out of range");
    tokens_.push_back(token);
    pos_ = end;
  }

  void lex_string(char quote) {
    size_t end = pos_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) error("string without an end");
    add(Kind::kString, unescape(std::string_view(source_).substr(pos_ + 1, end - pos_ - 1)));
    advance(end + 1);
  }

  // Python's escapes. An unknown one keeps its backslash.
  std::string unescape(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\' || i + 1 == text.size()) {
        out.push_back(text[i]);
        continue;
      }
      const char c = text[++i];
      static constexpr std::string_view kPlain = "\\'\"abfnrtv";
      static constexpr std::string_view kMeaning = "\\'\"\a\b\f\n\r\t\v";
      if (const size_t found = kPlain.find(c); found != std::string_view::npos) {
        out.push_back(kMeaning[found]);
      } else if (c == '\n') {
        continue;
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t length = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        i += append_escaped(text.substr(i + 1, length), length, 16, out);
      } else if (c >= '0' && c <= '7') {
        size_t length = 1;
        while (length < 3 && i + length < text.size() && text[i + length] >= '0' &&
               text[i + length] <= '7') {
          ++length;
        }
        append_escaped(text.substr(i, length), length, 8, out);
        i += length - 1;
      } else {
        out.push_back('\\');
        out.push_back(c);
      }
    }
    return out;
  }

  size_t append_escaped(std::string_view digits, size_t length, int base, std::string& out) const {
    uint32_t codepoint = 0;
    const auto result =
        std::from_chars(digits.data(), digits.data() + digits.size(), codepoint, base);
    if (digits.size() != length || result.ec != std::errc() ||
        result.ptr != digits.data() + digits.size()) {
      error("bad escape in a string");
    }
    const bool valid = codepoint <= 0x10FFFF && (codepoint < 0xD800 || codepoint > 0xDFFF);
    append_utf8(valid ? static_cast<char32_t>(codepoint) : U'\uFFFD', out);
    return length;
  }

  std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source) { return Lexer(source).run(); }

}  // namespace lathe::jinja
