// The regular expressions of JSON schema's "pattern": ECMA-262's syntax, the part that is regular.
//
//   . [...] \d \w \s \D \W \S \t \n \r \f \v \0 \xHH \uHHHH \u{H...} \cX   characters
//   * + ? {n} {n,} {n,m} (and their lazy forms, which mean the same here)   repetition
//   | (...) (?:...) (?<name>...)  ^ $                                       structure
//
// Not there (kUnsupported): look-around, back references, \b, \B, \p{...}, flags.
// \d and \w are ASCII, as ECMA-262 says.
#pragma once
#include <string_view>

#include "grammar/automaton.h"

namespace lathe {

// The strings, as code points, in which the pattern is found. As in JSON schema a pattern is not
// anchored: "a" fits "bab". Throws kInvalidArgument for bad syntax, kUnsupported as above and for a
// pattern that is too large; the caller names the pattern.
Dfa compile_pattern(std::string_view pattern);
// The strings that the pattern fits as a whole, for patterns of our own.
Dfa compile_whole_pattern(std::string_view pattern);

}  // namespace lathe
