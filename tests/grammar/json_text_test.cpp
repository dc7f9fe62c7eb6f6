#include "grammar/json_text.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "formats/expect_error.h"
#include "grammar/pattern.h"

namespace lathe {
namespace {

bool fits(const Dfa& bytes, std::string_view text) {
  if (bytes.is_empty()) return false;
  int32_t state = 0;
  for (const char c : text) state = bytes.step(state, static_cast<uint8_t>(c));
  return state >= 0 && bytes.accepts[static_cast<std::size_t>(state)];
}

TEST(JsonText, AnyString) {
  const Dfa string = any_json_string();
  for (const char* text : {"\"\"", "\"a b\"", "\"\\n\\\"\\\\\\/\\u00e9\\uD83D\\uDE00\"", "\"é日😀\"",
                           "\"\x7f\"", "\"\\ud7ff\\ue000\\uABCD\""}) {
    EXPECT_TRUE(fits(string, text)) << text;
  }
  for (const char* text : {"", "\"", "a", "\"a\"b", "\"\n\"", "\"\x1f\"", "\"\\x\"", "\"\\u12\"",
                           "\"\\uD83D\"", "\"\\uD83Dx\"", "\"\\uDE00\"", "\"\\uD83D\\uD83D\"",
                           "\"\xff\"", "\"\xC0\xAF\"", "\"\xE0\x80\x80\"", "\"\xED\xA0\x80\"",
                           "\"\xF4\x90\x80\x80\"", "\"\xE6\x97\"", "\"\x97\""}) {
    EXPECT_FALSE(fits(string, text)) << text;
  }
}

TEST(JsonText, StringsOfAPatternHaveOneSpelling) {
  const Dfa strings = json_strings_of(compile_whole_pattern("(.|\n|\\\\){0,2}é?"));
  for (const char* text : {"\"\"", "\"ab\"", "\"\\n\\\"\"", "\"\\\\é\"", "\"日😀é\""}) {
    EXPECT_TRUE(fits(strings, text)) << text;
  }
  for (const char* text : {"\"\\u00e9\"", "\"\n\"", "\"abc\"", "\"\\/\"", "ab", "\"\xE6\x97\""}) {
    EXPECT_FALSE(fits(strings, text)) << text;
  }
  // Every code point but the surrogates and the control characters without a short escape.
  const Dfa any = json_strings_of(compile_whole_pattern("[^]"));
  EXPECT_FALSE(fits(any, "\"\x01\""));
  EXPECT_TRUE(fits(any, "\"\xF4\x8F\xBF\xBF\"") && fits(any, "\"\xEF\xBF\xBF\"") &&
              fits(any, "\"\xEE\x80\x80\"") && fits(any, "\"\xED\x9F\xBF\""));
  EXPECT_FALSE(fits(any, "\"\xED\xA0\x80\""));
}

// Against arithmetic: numbers around each bound, written in several ways.
TEST(JsonText, BoundsOfNumbers) {
  const std::vector<std::string> numbers = {
      "0",     "-0",    "1",    "-1",     "2",    "9",     "10",   "11",    "99",
      "100",   "101",   "0.0",  "0.1",    "0.5",  "0.50",  "0.49", "0.51",  "-0.5",
      "1.0",   "1.5",   "1.50", "1.49",   "1.51", "-1.5",  "-1.0", "-1.51", "-10",
      "-9.99", "12.25", "12.2", "12.250", "1234", "-0.001"};
  const std::vector<std::string> bounds = {"0",    "0.5", "-0.5",    "1",    "1.5",
                                           "-1.5", "10",  "-10",     "99.9", "12.25",
                                           "100",  "1e1", "-2.5e-1", "5e-1", "-0.0"};
  for (const std::string& bound : bounds) {
    for (const bool exclusive : {false, true}) {
      NumberBounds low, high;
      low.minimum = high.maximum = bound;
      low.excludes_minimum = high.excludes_maximum = exclusive;
      const Dfa at_least = json_numbers(low), at_most = json_numbers(high);
      const Dfa integers_from = json_integers(low, 1), integers_to = json_integers(high, 1);
      const double b = std::strtod(bound.c_str(), nullptr);
      for (const std::string& number : numbers) {
        SCOPED_TRACE(number + " and bound " + bound + (exclusive ? ", exclusive" : ""));
        const double x = std::strtod(number.c_str(), nullptr);
        const bool is_integer = number.find('.') == std::string::npos;
        // A negative zero may be left out where its sign says "below the bound".
        if (number == "-0" && !fits(at_least, number)) continue;
        EXPECT_EQ(fits(at_least, number), exclusive ? x > b : x >= b);
        EXPECT_EQ(fits(at_most, number), exclusive ? x < b : x <= b);
        EXPECT_EQ(fits(integers_from, number), is_integer && (exclusive ? x > b : x >= b));
        EXPECT_EQ(fits(integers_to, number), is_integer && (exclusive ? x < b : x <= b));
      }
    }
  }
}

TEST(JsonText, IntegersInARangeAndMultiples) {
  NumberBounds bounds;
  bounds.minimum = "-37";
  bounds.maximum = "1204";
  const Dfa range = json_integers(bounds, 1), sevens = json_integers(bounds, 7);
  for (int x = -2000; x <= 13000; ++x) {
    const bool inside = x >= -37 && x <= 1204;
    ASSERT_EQ(fits(range, std::to_string(x)), inside) << x;
    ASSERT_EQ(fits(sevens, std::to_string(x)), inside && x % 7 == 0) << x;
  }
  EXPECT_FALSE(fits(range, "007"));
  EXPECT_FALSE(fits(range, "+1"));
  EXPECT_FALSE(fits(range, ""));
  EXPECT_FALSE(fits(range, "-"));
}

TEST(JsonText, FreeNumbers) {
  const Dfa numbers = json_numbers({});
  for (const char* text : {"0", "-1.5e+10", "1E5", "123456789012345678", "0.123456789012345"}) {
    EXPECT_TRUE(fits(numbers, text)) << text;
  }
  for (const char* text :
       {"", "-", "01", "1.", ".5", "1e", "1e400", "1234567890123456789", "NaN"}) {
    EXPECT_FALSE(fits(numbers, text)) << text;
  }
  NumberBounds bounds;
  bounds.minimum = "1234567890123456789";
  expect_error(ErrorCode::kUnsupported, "18 digits", [&] { json_numbers(bounds); });
  expect_error(ErrorCode::kUnsupported, "at most 1000", [&] { json_integers({}, 1001); });
  EXPECT_EQ(compare_decimals("1e2", "100.0"), 0);
  EXPECT_EQ(compare_decimals("-3", "-2.5"), -1);
  EXPECT_EQ(compare_decimals("0.10", "0.09"), 1);
  expect_error(ErrorCode::kUnsupported, "10^300", [] { compare_decimals("1e99999999", "0"); });
}

}  // namespace
}  // namespace lathe
