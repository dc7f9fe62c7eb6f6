// Classes of characters by Unicode 15: categories and the derived properties Lowercase and
// Uppercase.
#pragma once

namespace lathe {

bool is_letter(char32_t codepoint);         // Lu, Ll, Lt, Lm, Lo
bool is_mark(char32_t codepoint);           // Mn, Mc, Me
bool is_decimal_digit(char32_t codepoint);  // Nd
bool is_letter_number(char32_t codepoint);  // Nl: Roman numerals and others
bool is_connector(char32_t codepoint);      // Pc: "_" and others

// The derived properties: with letters also Roman numerals, circled letters, modifier letters.
bool is_upper_case(char32_t codepoint);
bool is_lower_case(char32_t codepoint);
bool is_title_case(char32_t codepoint);  // Lt: one character for two letters, the first upper case

}  // namespace lathe
