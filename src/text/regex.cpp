#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

#include "base/error.h"

namespace lathe {
namespace {

// Steps that one match may take. The published patterns need a few per character of a piece; a
// hostile one ((a*)*b) would take 2^n.
constexpr uint32_t kMatchLimit = 10'000'000;

// Oniguruma's \s is the White_Space property; PCRE2's also has U+180E, which stopped being a space
// in Unicode 6.3. Spelled out as a class, so that both split alike. Class intersection (&&) would
// be read as two literal ampersands and a nested class as a bracket, so both are refused.
std::string translate(const std::string& pattern) {
  static constexpr std::string_view kSpaces = "\\t-\\r\\x{85}\\p{Z}";
  std::string out;
  int class_depth = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        out.append(class_depth > 0 ? "" : "[").append(kSpaces).append(class_depth > 0 ? "" : "]");
      } else if (escaped == 'S' && class_depth == 0) {
        out.append("[^").append(kSpaces).append("]");
      } else {
        out.push_back('\\');
        out.push_back(escaped);
      }
      continue;
    }
    if (class_depth > 0 && c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') {
      fail(ErrorCode::kUnsupported, "regular expression '", pattern.substr(0, 200),
           "': class intersection (&&) is not supported");
    }
    if (c == '[' && class_depth > 0) {
      const size_t close = pattern.find(":]", i);
      if (i + 1 < pattern.size() && pattern[i + 1] == ':' && close != std::string::npos) {
        out.append(pattern, i, close + 2 - i);
        i = close + 1;
        continue;
      }
      fail(ErrorCode::kUnsupported, "regular expression '", pattern.substr(0, 200),
           "': nested character classes are not supported");
    }
    if (c == '[' && class_depth == 0) {
      class_depth = 1;
      out.push_back(c);
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out.push_back(pattern[++i]);
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') {  // a literal first bracket
        out.push_back(pattern[++i]);
      }
      continue;
    }
    if (c == ']' && class_depth > 0) class_depth = 0;
    out.push_back(c);
  }
  return out;
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  std::string pattern;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(const std::string& pattern, bool literal) : code_(std::make_unique<Code>()) {
  code_->pattern = pattern;
  const std::string translated = literal ? pattern : translate(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // \C would match half a character.
  const uint32_t options =
      PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              options, &error, &offset, nullptr);
  if (code_->code == nullptr) {
    PCRE2_UCHAR text[200] = {};
    pcre2_get_error_message(error, text, sizeof text);
    fail(ErrorCode::kUnsupported, "regular expression '", pattern.substr(0, 200),
         "' does not compile: ", reinterpret_cast<const char*>(text));
  }
  pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE);  // without JIT it is slower, not wrong
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

struct Regex::Scanner::State {
  const Code* code;
  std::string_view text;
  size_t pos = 0;
  pcre2_match_data* match_data = nullptr;
  pcre2_match_context* context = nullptr;
  ~State() {
    pcre2_match_data_free(match_data);
    pcre2_match_context_free(context);
  }
};

Regex::Scanner::Scanner(const Regex& regex, std::string_view text)
    : state_(std::make_unique<State>()) {
  state_->code = regex.code_.get();
  state_->text = text;
  state_->match_data = pcre2_match_data_create_from_pattern(regex.code_->code, nullptr);
  state_->context = pcre2_match_context_create(nullptr);
  if (state_->match_data == nullptr || state_->context == nullptr) {
    fail(ErrorCode::kOutOfMemory, "no memory to match a regular expression");
  }
  pcre2_set_match_limit(state_->context, kMatchLimit);
  pcre2_set_heap_limit(state_->context, 64 << 10);  // KiB
}

Regex::Scanner::~Scanner() = default;

bool Regex::Scanner::next(size_t& begin, size_t& end) {
  State& s = *state_;
  while (s.pos < s.text.size()) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(s.code->code, reinterpret_cast<PCRE2_SPTR>(s.text.data()), s.text.size(),
                         s.pos, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | options, s.match_data,
                         s.context);
    };
    int result = match(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      fail(ErrorCode::kUnsupported, "regular expression '", s.code->pattern.substr(0, 200),
           "' takes too many steps on this text (PCRE2 error ", result, ")");
    }
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(s.match_data);
    begin = offsets[0];
    end = offsets[1];
    // \K can make a match begin before the search or end before its own start.
    if (begin < s.pos || end <= begin) {
      fail(ErrorCode::kUnsupported, "regular expression '", s.code->pattern.substr(0, 200),
           "' matches behind its own start");
    }
    s.pos = end;
    return true;
  }
  s.pos = s.text.size();
  return false;
}

}  // namespace lathe
