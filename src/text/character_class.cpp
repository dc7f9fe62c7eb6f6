#include "text/character_class.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <span>

namespace lathe {
namespace {

struct Range {
  char32_t first, last;
};

// Other_Uppercase and Other_Lowercase of PropList.txt, Unicode 15.0.
constexpr Range kOtherUpper[] = {
    {0x2160, 0x216F}, {0x24B6, 0x24CF}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};
constexpr Range kOtherLower[] = {
    {0xAA, 0xAA},       {0xBA, 0xBA},       {0x2B0, 0x2B8},     {0x2C0, 0x2C1},
    {0x2E0, 0x2E4},     {0x345, 0x345},     {0x37A, 0x37A},     {0x10FC, 0x10FC},
    {0x1D2C, 0x1D6A},   {0x1D78, 0x1D78},   {0x1D9B, 0x1DBF},   {0x2071, 0x2071},
    {0x207F, 0x207F},   {0x2090, 0x209C},   {0x2170, 0x217F},   {0x24D0, 0x24E9},
    {0x2C7C, 0x2C7D},   {0xA69C, 0xA69D},   {0xA770, 0xA770},   {0xA7F2, 0xA7F4},
    {0xA7F8, 0xA7F9},   {0xAB5C, 0xAB5F},   {0xAB69, 0xAB69},   {0x10780, 0x10780},
    {0x10783, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BA}, {0x1E030, 0x1E06D}};

bool contains(std::span<const Range> ranges, char32_t codepoint) {
  const auto after = std::partition_point(ranges.begin(), ranges.end(),
                                          [&](const Range& r) { return r.last < codepoint; });
  return after != ranges.end() && after->first <= codepoint;
}

utf8proc_category_t category(char32_t codepoint) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(codepoint));
}

}  // namespace

bool is_letter(char32_t codepoint) {
  const auto c = category(codepoint);
  return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

bool is_mark(char32_t codepoint) {
  const auto c = category(codepoint);
  return c >= UTF8PROC_CATEGORY_MN && c <= UTF8PROC_CATEGORY_ME;
}

bool is_decimal_digit(char32_t codepoint) { return category(codepoint) == UTF8PROC_CATEGORY_ND; }

bool is_letter_number(char32_t codepoint) { return category(codepoint) == UTF8PROC_CATEGORY_NL; }

bool is_connector(char32_t codepoint) { return category(codepoint) == UTF8PROC_CATEGORY_PC; }

bool is_upper_case(char32_t codepoint) {
  return category(codepoint) == UTF8PROC_CATEGORY_LU || contains(kOtherUpper, codepoint);
}

bool is_lower_case(char32_t codepoint) {
  return category(codepoint) == UTF8PROC_CATEGORY_LL || contains(kOtherLower, codepoint);
}

bool is_title_case(char32_t codepoint) { return category(codepoint) == UTF8PROC_CATEGORY_LT; }

}  // namespace lathe
