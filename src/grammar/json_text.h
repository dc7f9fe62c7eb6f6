// Strings and numbers as JSON writes them: automata over bytes.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "grammar/automaton.h"

namespace lathe {

// Any JSON string with its quotes: every escape, raw characters as well-formed UTF-8 (RFC 3629),
// \u surrogates in pairs only.
Dfa any_json_string();
// State of any_json_string() between two characters: where a character or the closing quote comes.
int32_t any_json_string_body(const Dfa& any_string);

// The JSON strings whose content is a word of `characters` (over code points). Every character has
// one spelling: raw, or \" \\ \b \t \n \f \r. The other control characters, and the surrogates, are
// left out.
Dfa json_strings_of(const Dfa& characters);

// Limits of a number; the bounds are decimal numbers as JSON writes them ("1.5", "-3e2").
struct NumberBounds {
  std::optional<std::string> minimum, maximum;
  bool excludes_minimum = false, excludes_maximum = false;
};

// Integers without fraction or exponent, at most 18 digits (so they fit int64). multiple_of >= 1.
// Throws kUnsupported for bounds of more than 18 digits and multiples beyond 1000.
Dfa json_integers(const NumberBounds& bounds, int64_t multiple_of);
// Numbers. Without bounds: at most 18 digits, a fraction of at most 15, an exponent of at most two
// digits (so no value is infinite). With a bound: no exponent, and only as many digits behind the
// point that a double still tells the number from the bound.
Dfa json_numbers(const NumberBounds& bounds);

// Compares by value. kInvalidArgument when a text is not a JSON number, kUnsupported beyond
// 10^±300.
int compare_decimals(std::string_view a, std::string_view b);

}  // namespace lathe
