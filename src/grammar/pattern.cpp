#include "grammar/pattern.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "text/unicode.h"

namespace lathe {
namespace {

constexpr int kMaxNesting = 100;
constexpr int64_t kMaxRepetition = 10000;

using CharSet = std::vector<SymbolRange>;  // sorted and disjoint once normalized

CharSet normalized(CharSet set) {
  std::sort(set.begin(), set.end(), [](auto a, auto b) { return a.first < b.first; });
  CharSet out;
  for (const SymbolRange range : set) {
    if (!out.empty() && range.first <= out.back().last + 1) {
      out.back().last = std::max(out.back().last, range.last);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

CharSet complement(const CharSet& set) {
  CharSet out;
  uint32_t from = 0;
  for (const SymbolRange range : normalized(set)) {
    if (range.first > from) out.push_back({from, range.first - 1});
    from = range.last + 1;
  }
  if (from < kCodePointEnd) out.push_back({from, kCodePointEnd - 1});
  return out;
}

const CharSet kDigits = {{'0', '9'}};
const CharSet kWordCharacters = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
// WhiteSpace and LineTerminator of ECMA-262.
const CharSet kSpaces = {{9, 13},          {32, 32},         {0xA0, 0xA0},     {0x1680, 0x1680},
                         {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                         {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
const CharSet kLineEnds = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

// Parses and builds the automaton in one pass; a repetition parses its operand again for each copy.
class PatternCompiler {
 public:
  explicit PatternCompiler(std::string_view pattern) : text_(pattern) {
    if (!is_valid_utf8(pattern)) bad("it is not valid UTF-8");
  }

  Dfa run(bool whole) {
    const int32_t start = nfa_.add_state();
    const int32_t begin = nfa_.add_state();
    const int32_t final_state = nfa_.add_state();
    nfa_.add_epsilon(start, begin);
    if (!whole) {
      // Anything in front, which ^ forbids (it holds at the very start only), and anything behind.
      const int32_t in_front = nfa_.add_state();
      nfa_.add_edge(start, kAny, in_front);
      nfa_.add_edge(in_front, kAny, in_front);
      nfa_.add_epsilon(in_front, begin);
      nfa_.add_edge(final_state, kAny, final_state);
    }
    const int32_t end = alternatives(begin, 0);
    if (pos_ < text_.size()) bad("there is a ) without its (");
    // Behind $ nothing may follow, and nothing is left to be read there.
    nfa_.add_epsilon(end, final_state);
    return determinize(nfa_, start, final_state, kCodePointEnd);
  }

 private:
  static constexpr SymbolRange kAny = {0, kCodePointEnd - 1};

  [[noreturn]] void bad(std::string_view why) const {
    fail(ErrorCode::kInvalidArgument, "not a regular expression: ", why, " (at byte ", pos_, ")");
  }
  [[noreturn]] void unsupported(std::string_view what) const {
    fail(ErrorCode::kUnsupported, what, " cannot be used in a pattern here (at byte ", pos_, ")");
  }

  bool at_end() const { return pos_ >= text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[pos_]; }
  bool take(char c) {
    if (at_end() || text_[pos_] != c) return false;
    ++pos_;
    return true;
  }
  bool take(std::string_view s) {
    if (!text_.substr(pos_).starts_with(s)) return false;
    pos_ += s.size();
    return true;
  }

  // Each parsing function continues the automaton from `from` and returns the state behind.
  int32_t alternatives(int32_t from, int depth) {
    if (depth > kMaxNesting) unsupported("nesting of more than 100 groups");
    const int32_t end = nfa_.add_state();
    do {
      const int32_t begin = nfa_.add_state();
      nfa_.add_epsilon(from, begin);
      int32_t at = begin;
      while (!at_end() && peek() != '|' && peek() != ')') at = repeated(at, depth);
      nfa_.add_epsilon(at, end);
    } while (take('|'));
    return end;
  }

  int32_t repeated(int32_t from, int depth) {
    const std::size_t operand = pos_;
    if (take('^')) return assertion(from, Nfa::When::kAtStart);
    if (take('$')) return assertion(from, Nfa::When::kAtEnd);
    const std::size_t mark = nfa_.states().size();
    const int32_t loop = nfa_.add_state();  // where a copy begins
    nfa_.add_epsilon(from, loop);
    const int32_t once = atom(loop, depth);
    const std::size_t operand_end = pos_;
    const int64_t copy_states = static_cast<int64_t>(nfa_.states().size() - mark);
    int64_t min = 1, max = 1;
    if (!quantifier(min, max)) return once;
    if (!at_end() && (peek() == '*' || peek() == '+')) bad("two repetitions in a row");
    const std::size_t behind = pos_;
    const int64_t copies = max < 0 ? std::max<int64_t>(min, 1) : max;
    if (copies > kMaxRepetition || copies * copy_states > kMaxNfaStates) {
      fail(ErrorCode::kUnsupported, "a repetition up to ", copies,
           " times is too large; use smaller bounds");
    }
    const int32_t end = nfa_.add_state();
    if (min == 0) nfa_.add_epsilon(from, end);
    int32_t begin = loop;
    int32_t at = once;
    for (int64_t copy = 1; copy <= copies; ++copy) {
      if (copy > 1) {
        begin = nfa_.add_state();
        nfa_.add_epsilon(at, begin);
        pos_ = operand;
        at = atom(begin, depth);
        if (pos_ != operand_end) bad("a group is not closed");
      }
      if (copy >= min) nfa_.add_epsilon(at, end);
    }
    if (copies == 0) {  // {0}: the copy that was parsed is not reachable any more
      pos_ = behind;
      const int32_t empty = nfa_.add_state();
      nfa_.add_epsilon(from, empty);
      return empty;
    }
    if (max < 0) nfa_.add_epsilon(at, begin);
    pos_ = behind;
    return end;
  }

  int32_t assertion(int32_t from, Nfa::When when) {
    const int32_t to = nfa_.add_state();
    nfa_.add_epsilon(from, to, when);
    int64_t min, max;
    if (quantifier(min, max)) bad("nothing to repeat");
    return to;
  }

  bool quantifier(int64_t& min, int64_t& max) {
    if (take('*')) {
      min = 0, max = -1;
    } else if (take('+')) {
      min = 1, max = -1;
    } else if (take('?')) {
      min = 0, max = 1;
    } else if (!braces(min, max)) {
      return false;
    }
    take('?');  // lazy: the same strings
    return true;
  }

  bool braces(int64_t& min, int64_t& max) {
    const std::size_t begin = pos_;
    if (!take('{')) return false;
    if (number(min)) {
      max = min;
      bool good = true;
      if (take(',') && !number(max)) max = -1;
      good = take('}');
      if (good && max >= 0 && max < min) bad("a repetition {n,m} with n > m");
      if (good) return true;
    }
    pos_ = begin;  // a brace that is not a repetition stands for itself
    return false;
  }

  bool number(int64_t& value) {
    const std::size_t begin = pos_;
    value = 0;
    while (!at_end() && peek() >= '0' && peek() <= '9') {
      value = std::min<int64_t>(value * 10 + (peek() - '0'), 1'000'000);
      ++pos_;
    }
    return pos_ > begin;
  }

  int32_t atom(int32_t from, int depth) {
    if (take('(')) {
      if (take("?:") || take("?<")) {
        if (text_[pos_ - 1] == '<') {
          if (peek() == '=' || peek() == '!') unsupported("look-behind (?<= (?<!");
          while (!at_end() && peek() != '>') ++pos_;
          if (!take('>')) bad("the name of a group is not closed");
        }
      } else if (take("?=") || take("?!")) {
        unsupported("look-ahead (?= (?!");
      } else if (peek() == '?') {
        unsupported("a group (?...) that changes flags");
      }
      const int32_t end = alternatives(from, depth + 1);
      if (!take(')')) bad("a ( without its )");
      return end;
    }
    const int32_t to = nfa_.add_state();
    for (const SymbolRange range : characters()) nfa_.add_edge(from, range, to);
    return to;
  }

  CharSet characters() {
    if (take('.')) return complement(kLineEnds);
    if (take('[')) return bracket();
    if (take('\\')) return escape(/*in_bracket=*/false);
    if (peek() == '*' || peek() == '+' || peek() == '?') bad("nothing to repeat");
    const char32_t c = next_codepoint(text_, pos_);
    return {{c, c}};
  }

  CharSet bracket() {
    const bool negated = take('^');
    CharSet set;
    while (!take(']')) {
      if (at_end()) bad("a [ without its ]");
      const CharSet first = bracket_part();
      const bool is_range = peek() == '-' && pos_ + 1 < text_.size() && text_[pos_ + 1] != ']';
      if (!is_range) {
        set.insert(set.end(), first.begin(), first.end());
        continue;
      }
      ++pos_;
      const CharSet last = bracket_part();
      if (first.size() != 1 || last.size() != 1 || first[0].first != first[0].last ||
          last[0].first != last[0].last) {
        bad("a range in [...] that does not go from a character to a character");
      }
      if (first[0].first > last[0].first) bad("a range in [...] that goes backwards");
      set.push_back({first[0].first, last[0].first});
    }
    return negated ? complement(set) : normalized(std::move(set));
  }

  CharSet bracket_part() {
    if (at_end()) bad("a [ without its ]");
    if (take('\\')) return escape(/*in_bracket=*/true);
    const char32_t c = next_codepoint(text_, pos_);
    return {{c, c}};
  }

  CharSet escape(bool in_bracket) {
    if (at_end()) bad("a backslash at the end");
    const char32_t c = next_codepoint(text_, pos_);
    const auto one = [](char32_t symbol) { return CharSet{{symbol, symbol}}; };
    switch (c) {
      case 'd':
        return kDigits;
      case 'D':
        return complement(kDigits);
      case 'w':
        return kWordCharacters;
      case 'W':
        return complement(kWordCharacters);
      case 's':
        return kSpaces;
      case 'S':
        return complement(kSpaces);
      case 't':
        return one('\t');
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case 'b':
        if (in_bracket) return one('\b');
        unsupported("a word boundary \\b");
      case 'B':
        unsupported("a word boundary \\B");
      case 'p':
      case 'P':
        unsupported("a Unicode property \\p{...}");
      case 'k':
        unsupported("a back reference");
      case 'c': {
        const char letter = peek();
        if (!((letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z'))) {
          bad("\\c without a letter");
        }
        ++pos_;
        return one(static_cast<char32_t>(letter % 32));
      }
      case 'x':
        return one(hex(2));
      case 'u':
        return one(unicode_escape());
      case '0':
        if (peek() >= '0' && peek() <= '9') unsupported("an octal escape");
        return one(0);
      default:
        break;
    }
    if (c >= '1' && c <= '9') unsupported("a back reference");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) bad("an unknown escape");
    return one(c);
  }

  char32_t hex(int digits) {
    char32_t value = 0;
    for (int i = 0; i < digits; ++i) value = value * 16 + hex_digit();
    return value;
  }

  char32_t hex_digit() {
    const char c = peek();
    ++pos_;
    if (c >= '0' && c <= '9') return static_cast<char32_t>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<char32_t>(c - 'a' + 10);
    if (c >= 'A' && c <= 'F') return static_cast<char32_t>(c - 'A' + 10);
    bad("a hexadecimal escape with too few digits");
  }

  char32_t unicode_escape() {
    if (take('{')) {
      char32_t value = 0;
      do {
        value = value * 16 + hex_digit();
        if (value >= kCodePointEnd) bad("\\u{...} beyond the last code point");
      } while (peek() != '}');
      ++pos_;
      return value;
    }
    const char32_t high = hex(4);
    if (high < 0xD800 || high > 0xDBFF || !take("\\u")) return high;
    const char32_t low = hex(4);
    if (low < 0xDC00 || low > 0xDFFF) bad("half of a surrogate pair");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
  }

  std::string_view text_;
  std::size_t pos_ = 0;
  Nfa nfa_;
};

}  // namespace

Dfa compile_pattern(std::string_view pattern) { return PatternCompiler(pattern).run(false); }
Dfa compile_whole_pattern(std::string_view pattern) { return PatternCompiler(pattern).run(true); }

}  // namespace lathe
