#include "grammar/json_text.h"

#include <algorithm>
#include <array>
#include <map>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "grammar/pattern.h"
#include "text/unicode.h"

namespace lathe {
namespace {

// Builds the paths of characters in UTF-8 that end in the same state, sharing their last bytes.
class Utf8Paths {
 public:
  explicit Utf8Paths(Nfa& nfa) : nfa_(nfa) {}

  // Characters first..last from one state to the other; surrogates are left out.
  void add(int32_t from, SymbolRange range, int32_t to) {
    const auto part = [&](uint32_t low, uint32_t high) {
      const uint32_t first = std::max(range.first, low);
      const uint32_t last = std::min(range.last, high);
      if (first <= last) add_of_one_length(from, first, last, to);
    };
    part(0, 0x7F);
    part(0x80, 0x7FF);
    part(0x800, 0xD7FF);
    part(0xE000, 0xFFFF);
    part(0x10000, 0x10FFFF);
  }

 private:
  using Bytes = std::string;

  static Bytes encode(uint32_t c) {
    Bytes out;
    append_utf8(static_cast<char32_t>(c), out);
    return out;
  }

  void add_of_one_length(int32_t from, uint32_t first, uint32_t last, int32_t to) {
    add_bytes(from, encode(first), encode(last), to);
  }

  static SymbolRange bytes(char a, char b) {
    return {static_cast<uint8_t>(a), static_cast<uint8_t>(b)};
  }

  // Byte strings of equal length from `a` to `b` in order, last bytes 80..BF.
  void add_bytes(int32_t from, const Bytes& a, const Bytes& b, int32_t to) {
    if (a.size() == 1) {
      nfa_.add_edge(from, bytes(a[0], b[0]), to);
      return;
    }
    const Bytes rest_a = a.substr(1), rest_b = b.substr(1);
    const Bytes low(rest_a.size(), '\x80'), high(rest_a.size(), '\xBF');
    if (a[0] == b[0] || (rest_a == low && rest_b == high)) {
      nfa_.add_edge(from, bytes(a[0], b[0]), tail(rest_a, rest_b, to));
      return;
    }
    char first = a[0], last = b[0];
    if (rest_a != low) {
      nfa_.add_edge(from, bytes(a[0], a[0]), tail(rest_a, high, to));
      ++first;
    }
    if (rest_b != high) {
      nfa_.add_edge(from, bytes(b[0], b[0]), tail(low, rest_b, to));
      --last;
    }
    if (static_cast<uint8_t>(first) <= static_cast<uint8_t>(last)) {
      nfa_.add_edge(from, bytes(first, last), tail(low, high, to));
    }
  }

  int32_t tail(const Bytes& a, const Bytes& b, int32_t to) {
    const auto key = std::make_tuple(a, b, to);
    const auto found = tails_.find(key);
    if (found != tails_.end()) return found->second;
    const int32_t state = nfa_.add_state();
    tails_[key] = state;
    add_bytes(state, a, b, to);
    return state;
  }

  Nfa& nfa_;
  std::map<std::tuple<Bytes, Bytes, int32_t>, int32_t> tails_;
};

struct ShortEscape {
  uint32_t character;
  char letter;
};
constexpr ShortEscape kShortEscapes[] = {{'"', '"'},  {'\\', '\\'}, {'\b', 'b'}, {'\t', 't'},
                                         {'\n', 'n'}, {'\f', 'f'},  {'\r', 'r'}};

void add_hex(Nfa& nfa, int32_t from, std::string_view hex_set, int32_t to) {
  for (const char c : hex_set) {
    const auto lower = static_cast<uint8_t>(c);
    nfa.add_edge(from, {lower, lower}, to);
    if (c >= 'a') nfa.add_edge(from, {lower - 32u, lower - 32u}, to);
  }
}

// A decimal number: sign, digits in front of the point and behind it, without superfluous zeros.
struct Decimal {
  bool negative = false;
  std::string whole;     // "0" or without leading zeros
  std::string fraction;  // without trailing zeros
  bool is_zero() const { return whole == "0" && fraction.empty(); }
};

Decimal parse_decimal(std::string_view text) {
  Decimal out;
  std::size_t pos = 0;
  const auto digits = [&] {
    const std::size_t begin = pos;
    while (pos < text.size() && text[pos] >= '0' && text[pos] <= '9') ++pos;
    return text.substr(begin, pos - begin);
  };
  if (pos < text.size() && text[pos] == '-') ++pos, out.negative = true;
  std::string all(digits());
  int64_t point = std::ssize(all);
  if (pos < text.size() && text[pos] == '.') {
    ++pos;
    all += digits();
  }
  int64_t exponent = 0;
  if (pos < text.size() && (text[pos] == 'e' || text[pos] == 'E')) {
    ++pos;
    const bool negative = pos < text.size() && text[pos] == '-';
    if (pos < text.size() && (text[pos] == '-' || text[pos] == '+')) ++pos;
    for (const char c : digits()) exponent = std::min<int64_t>(exponent * 10 + (c - '0'), 10000);
    if (negative) exponent = -exponent;
  }
  if (pos != text.size() || all.empty()) {
    fail(ErrorCode::kInvalidArgument, "not a number: ", text.substr(0, 40));
  }
  if (exponent < -300 || exponent > 300 || all.size() > 400) {
    fail(ErrorCode::kUnsupported, "the number ", text.substr(0, 40),
         " is beyond 10^300 or 10^-300");
  }
  point += exponent;
  if (point < 0) all.insert(0, static_cast<std::size_t>(-point), '0'), point = 0;
  if (point > std::ssize(all)) all.append(static_cast<std::size_t>(point) - all.size(), '0');
  out.whole = all.substr(0, static_cast<std::size_t>(point));
  out.fraction = all.substr(static_cast<std::size_t>(point));
  out.whole.erase(0, std::min(out.whole.find_first_not_of('0'), out.whole.size()));
  if (out.whole.empty()) out.whole = "0";
  out.fraction.erase(out.fraction.find_last_not_of('0') + 1);
  if (out.is_zero()) out.negative = false;
  return out;
}

int compare_magnitudes(const Decimal& a, const Decimal& b) {
  if (a.whole.size() != b.whole.size()) return a.whole.size() < b.whole.size() ? -1 : 1;
  const int whole = a.whole.compare(b.whole);
  if (whole != 0) return whole < 0 ? -1 : 1;
  const int fraction = a.fraction.compare(b.fraction);  // no trailing zeros
  return fraction < 0 ? -1 : fraction > 0 ? 1 : 0;
}

// The automaton of decimal numbers on one side of a bound, digit by digit:
//   x = -? whole (. fraction)?      compared with bound = whole.fraction
class BoundAutomaton {
 public:
  // x >= bound (at_least) or x <= bound; strict: without equality.
  static Dfa make(const Decimal& bound, bool at_least, bool strict) {
    BoundAutomaton a;
    const int32_t start = a.nfa_.add_state();
    a.end_ = a.nfa_.add_state();
    const int32_t minus = a.nfa_.add_state();
    a.nfa_.add_edge(start, {'-', '-'}, minus);
    // |x| >= |bound| on the bound's side of zero when both look away from zero.
    if (bound.negative) {
      if (at_least) {
        a.any_magnitude(start);
        a.magnitude(minus, bound, /*at_least=*/false, strict);
      } else {
        a.magnitude(minus, bound, /*at_least=*/true, strict);
      }
    } else if (at_least) {
      a.magnitude(start, bound, /*at_least=*/true, strict);
    } else {
      // -0 is no less than 0.
      if (strict && bound.is_zero()) {
        a.magnitude(minus, bound, /*at_least=*/true, /*strict=*/true);
      } else {
        a.any_magnitude(minus);
      }
      a.magnitude(start, bound, /*at_least=*/false, strict);
    }
    return determinize(a.nfa_, start, a.end_, kByteEnd);
  }

 private:
  void digit(int32_t from, int low, int high, int32_t to) {
    if (low > high) return;
    nfa_.add_edge(from, {static_cast<uint32_t>('0' + low), static_cast<uint32_t>('0' + high)}, to);
  }
  // Any digits, none among them, then the end.
  int32_t any_fraction() {
    const int32_t state = nfa_.add_state();
    digit(state, 0, 9, state);
    nfa_.add_epsilon(state, end_);
    return state;
  }
  int32_t optional_fraction() {
    const int32_t state = nfa_.add_state();
    const int32_t first = nfa_.add_state();
    nfa_.add_edge(state, {'.', '.'}, first);
    digit(first, 0, 9, any_fraction());
    nfa_.add_epsilon(state, end_);
    return state;
  }
  void any_magnitude(int32_t from) {
    const int32_t more = nfa_.add_state();
    const int32_t behind = optional_fraction();
    digit(from, 0, 0, behind);
    digit(from, 1, 9, more);
    digit(more, 0, 9, more);
    nfa_.add_epsilon(more, behind);
  }

  void magnitude(int32_t from, const Decimal& bound, bool at_least, bool strict) {
    const auto size = static_cast<int64_t>(bound.whole.size());
    // Whole parts of another number of digits.
    const int32_t free = optional_fraction();
    if (at_least) {
      int32_t at = nfa_.add_state();
      digit(from, 1, 9, at);
      for (int64_t i = 1; i <= size; ++i) {
        const int32_t next = nfa_.add_state();
        digit(at, 0, 9, next);
        at = next;
      }
      digit(at, 0, 9, at);
      nfa_.add_epsilon(at, free);
    } else if (size > 1) {
      digit(from, 0, 0, free);
      int32_t at = nfa_.add_state();
      digit(from, 1, 9, at);
      for (int64_t i = 1; i < size; ++i) {
        nfa_.add_epsilon(at, free);
        if (i + 1 == size) break;
        const int32_t next = nfa_.add_state();
        digit(at, 0, 9, next);
        at = next;
      }
    }
    // The same number of digits: equal so far, until one differs.
    int32_t equal = from;
    for (int64_t i = 0; i < size; ++i) {
      const int d = bound.whole[static_cast<std::size_t>(i)] - '0';
      const int lowest = i == 0 && size > 1 ? 1 : 0;
      int32_t apart = free;
      for (int64_t left = size - i - 1; left > 0; --left) {
        const int32_t before = nfa_.add_state();
        digit(before, 0, 9, apart);
        apart = before;
      }
      if (at_least) {
        digit(equal, d + 1, 9, apart);
      } else {
        digit(equal, lowest, d - 1, apart);
      }
      const int32_t next = nfa_.add_state();
      digit(equal, d, d, next);
      equal = next;
    }
    fraction(equal, bound.fraction, at_least, strict);
  }

  // The whole part is equal to the bound's.
  void fraction(int32_t from, const std::string& bound, bool at_least, bool strict) {
    if (at_least ? bound.empty() && !strict : !bound.empty() || !strict) {
      nfa_.add_epsilon(from, end_);  // no fraction at all
    }
    int32_t equal = nfa_.add_state();
    nfa_.add_edge(from, {'.', '.'}, equal);
    for (std::size_t i = 0; i < bound.size(); ++i) {
      const int d = bound[i] - '0';
      if (at_least) {
        digit(equal, d + 1, 9, any_fraction());
      } else {
        digit(equal, 0, d - 1, any_fraction());
      }
      const int32_t next = nfa_.add_state();
      digit(equal, d, d, next);
      equal = next;
      // Shorter than the bound, so below it.
      if (!at_least && i + 1 < bound.size()) nfa_.add_epsilon(equal, end_);
    }
    // Equal so far: zeros, then perhaps a digit that makes it larger. A point needs a digit.
    const int32_t zeros = nfa_.add_state();
    digit(equal, 0, 0, zeros);
    digit(zeros, 0, 0, zeros);
    if (!strict) {
      nfa_.add_epsilon(zeros, end_);
      if (!bound.empty()) nfa_.add_epsilon(equal, end_);
    }
    if (at_least) {
      const int32_t larger = any_fraction();
      digit(equal, 1, 9, larger);
      digit(zeros, 1, 9, larger);
    }
  }

  Nfa nfa_;
  int32_t end_ = 0;
};

// A pattern of ASCII characters, over bytes.
Dfa byte_pattern(const std::string& pattern) {
  Dfa dfa = compile_whole_pattern(pattern);
  std::size_t count = 0;
  while (count < dfa.class_starts.size() && dfa.class_starts[count] < kByteEnd) ++count;
  Dfa out;
  out.symbol_end = kByteEnd;
  out.class_starts.assign(dfa.class_starts.begin(),
                          dfa.class_starts.begin() + static_cast<int64_t>(count));
  for (int64_t s = 0; s < dfa.num_states(); ++s) {
    const auto row = dfa.next.begin() + s * dfa.num_classes();
    out.next.insert(out.next.end(), row, row + static_cast<int64_t>(count));
  }
  out.accepts = dfa.accepts;
  return out;
}

Dfa within(Dfa numbers, const NumberBounds& bounds) {
  if (bounds.minimum) {
    numbers = intersect(numbers, BoundAutomaton::make(parse_decimal(*bounds.minimum), true,
                                                      bounds.excludes_minimum));
  }
  if (bounds.maximum) {
    numbers = intersect(numbers, BoundAutomaton::make(parse_decimal(*bounds.maximum), false,
                                                      bounds.excludes_maximum));
  }
  return numbers;
}

void check_digits(const NumberBounds& bounds) {
  for (const auto& bound : {bounds.minimum, bounds.maximum}) {
    if (bound && parse_decimal(*bound).whole.size() > 18) {
      fail(ErrorCode::kUnsupported, "the bound ", *bound, " has more than 18 digits");
    }
  }
}

// -? digits, whose value is a multiple of m.
Dfa multiples(int64_t m) {
  Nfa nfa;
  const int32_t start = nfa.add_state();
  const int32_t behind_sign = nfa.add_state();
  const int32_t end = nfa.add_state();
  nfa.add_edge(start, {'-', '-'}, behind_sign);
  nfa.add_epsilon(start, behind_sign);
  const auto first = static_cast<int32_t>(nfa.states().size());
  for (int64_t r = 0; r < m; ++r) nfa.add_state();  // remainder r
  for (uint32_t d = 0; d <= 9; ++d) {
    nfa.add_edge(behind_sign, {'0' + d, '0' + d}, first + static_cast<int32_t>(d % m));
    for (int64_t r = 0; r < m; ++r) {
      nfa.add_edge(first + static_cast<int32_t>(r), {'0' + d, '0' + d},
                   first + static_cast<int32_t>((r * 10 + d) % m));
    }
  }
  nfa.add_epsilon(first, end);
  return determinize(nfa, start, end, kByteEnd);
}

}  // namespace

Dfa any_json_string() {
  Nfa nfa;
  const int32_t start = nfa.add_state();
  const int32_t body = nfa.add_state();
  const int32_t end = nfa.add_state();
  nfa.add_edge(start, {'"', '"'}, body);
  nfa.add_edge(body, {'"', '"'}, end);
  Utf8Paths paths(nfa);
  paths.add(body, {0x20, '"' - 1}, body);
  paths.add(body, {'"' + 1, '\\' - 1}, body);
  paths.add(body, {'\\' + 1, kCodePointEnd - 1}, body);
  const int32_t escape = nfa.add_state();
  nfa.add_edge(body, {'\\', '\\'}, escape);
  for (const char c : std::string_view("\"\\/bfnrt")) {
    nfa.add_edge(escape, {static_cast<uint8_t>(c), static_cast<uint8_t>(c)}, body);
  }
  const std::string_view any = "0123456789abcdef";
  // \uXXXX; D800..DBFF only in front of \uDC00..DFFF.
  const int32_t u = nfa.add_state();
  nfa.add_edge(escape, {'u', 'u'}, u);
  const auto then_any = [&](int count, int32_t to) {  // count hexadecimal digits, then `to`
    for (int i = 0; i < count; ++i) {
      const int32_t state = nfa.add_state();
      add_hex(nfa, state, any, to);
      to = state;
    }
    return to;
  };
  const int32_t three = then_any(3, body);
  add_hex(nfa, u, "0123456789abcef", three);
  const int32_t d = nfa.add_state();
  add_hex(nfa, u, "d", d);
  add_hex(nfa, d, "01234567", then_any(2, body));
  const int32_t low_d = nfa.add_state(), low_high = nfa.add_state();
  const int32_t second_escape = nfa.add_state(), second_u = nfa.add_state();
  add_hex(nfa, d, "89ab", then_any(2, second_escape));
  nfa.add_edge(second_escape, {'\\', '\\'}, second_u);
  nfa.add_edge(second_u, {'u', 'u'}, low_d);
  add_hex(nfa, low_d, "d", low_high);
  add_hex(nfa, low_high, "cdef", then_any(2, body));
  return determinize(nfa, start, end, kByteEnd);
}

int32_t any_json_string_body(const Dfa& any_string) { return any_string.step(0, '"'); }

Dfa json_strings_of(const Dfa& characters) {
  Nfa nfa;
  Utf8Paths paths(nfa);
  const int32_t start = nfa.add_state();
  const int32_t end = nfa.add_state();
  const auto first = static_cast<int32_t>(nfa.states().size());
  for (int64_t s = 0; s < characters.num_states(); ++s) nfa.add_state();
  if (!characters.is_empty()) nfa.add_edge(start, {'"', '"'}, first);
  const auto num_classes = characters.num_classes();
  for (int64_t s = 0; s < characters.num_states(); ++s) {
    const auto from = first + static_cast<int32_t>(s);
    if (characters.accepts[static_cast<std::size_t>(s)]) nfa.add_edge(from, {'"', '"'}, end);
    for (int64_t k = 0; k < num_classes; ++k) {
      const int32_t target = characters.next[static_cast<std::size_t>(s * num_classes + k)];
      if (target < 0) continue;
      const int32_t to = first + target;
      SymbolRange range = {characters.class_starts[static_cast<std::size_t>(k)], 0};
      // Neighbouring classes with the same target are one range.
      while (k + 1 < num_classes &&
             characters.next[static_cast<std::size_t>(s * num_classes + k + 1)] == target) {
        ++k;
      }
      range.last = characters.class_last(k);
      for (const ShortEscape& e : kShortEscapes) {
        if (e.character < range.first || e.character > range.last) continue;
        const char spelling[] = {'\\', e.letter};
        nfa.add_text(from, {spelling, 2}, to);
      }
      uint32_t low = std::max<uint32_t>(range.first, 0x20);
      for (const uint32_t special : {uint32_t{'"'}, uint32_t{'\\'}, kCodePointEnd}) {
        if (low >= kCodePointEnd || low > range.last) break;
        if (special > low) paths.add(from, {low, std::min(range.last, special - 1)}, to);
        low = std::max(low, special + 1);
      }
    }
  }
  return determinize(nfa, start, end, kByteEnd);
}

Dfa json_integers(const NumberBounds& bounds, int64_t multiple_of) {
  if (multiple_of > 1000) {
    fail(ErrorCode::kUnsupported, "multipleOf ", multiple_of, " is too large; at most 1000");
  }
  check_digits(bounds);
  Dfa integers = within(byte_pattern("-?(0|[1-9][0-9]{0,17})"), bounds);
  if (multiple_of > 1) integers = intersect(integers, multiples(multiple_of));
  return integers;
}

Dfa json_numbers(const NumberBounds& bounds) {
  if (!bounds.minimum && !bounds.maximum) {
    return byte_pattern("-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?");
  }
  check_digits(bounds);
  // A double holds 15 digits: as many behind the point as are left by those of the bound.
  int64_t digits = 15;
  int64_t needed = 1;
  for (const auto& bound : {bounds.minimum, bounds.maximum}) {
    if (!bound) continue;
    const Decimal decimal = parse_decimal(*bound);
    digits = std::min<int64_t>(digits, 15 - std::ssize(decimal.whole));
    needed = std::max<int64_t>(needed, std::ssize(decimal.fraction));
  }
  digits = std::min<int64_t>(std::max(digits, needed), 300);
  const Dfa shape = byte_pattern(str("-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,", digits, "})?"));
  return within(shape, bounds);
}

int compare_decimals(std::string_view a, std::string_view b) {
  const Decimal x = parse_decimal(a), y = parse_decimal(b);
  if (x.negative != y.negative) return x.negative ? -1 : 1;
  const int magnitudes = compare_magnitudes(x, y);
  return x.negative ? -magnitudes : magnitudes;
}

}  // namespace lathe
