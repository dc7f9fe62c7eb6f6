// Languages with the words and letters that tell them from others of their script.
#pragma once
#include <cstddef>
#include <span>
#include <string_view>

namespace lathe {

enum class Script {
  kNone,
  kLatin,
  kGreek,
  kCyrillic,
  kHebrew,
  kArabic,
  kDevanagari,
  kBengali,
  kGurmukhi,
  kGujarati,
  kTamil,
  kTelugu,
  kKannada,
  kMalayalam,
  kThai,
  kHangul,
  kKana,
  kHan,
};
inline constexpr std::size_t kNumScripts = 18;

struct Language {
  std::string_view code;
  Script script;
  std::string_view words;    // frequent ones in lower case, separated by spaces
  std::string_view letters;  // which its neighbours have rarely or not; lower case
};
// The first of each script is what a text with none of the words is taken for.
std::span<const Language> languages();

// A telling letter beside a frequent word: a word with one is as good as half a known word.
inline constexpr double kLetterWeight = 0.5;

}  // namespace lathe
