#include "eval/language.h"

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "eval/language_words.h"
#include "eval/python_text.h"
#include "text/character_class.h"
#include "text/unicode.h"

namespace lathe {
namespace {

constexpr std::size_t kMaxCharacters = 10'000;

struct Block {
  char32_t first, last;
  Script script;
};
constexpr Block kBlocks[] = {
    {'A', 0x24F, Script::kLatin},       {0x1E00, 0x1EFF, Script::kLatin},
    {0x370, 0x3FF, Script::kGreek},     {0x400, 0x52F, Script::kCyrillic},
    {0x590, 0x5FF, Script::kHebrew},    {0x600, 0x6FF, Script::kArabic},
    {0x750, 0x77F, Script::kArabic},    {0xFB50, 0xFDFF, Script::kArabic},
    {0xFE70, 0xFEFF, Script::kArabic},  {0x900, 0x97F, Script::kDevanagari},
    {0x980, 0x9FF, Script::kBengali},   {0xA00, 0xA7F, Script::kGurmukhi},
    {0xA80, 0xAFF, Script::kGujarati},  {0xB80, 0xBFF, Script::kTamil},
    {0xC00, 0xC7F, Script::kTelugu},    {0xC80, 0xCFF, Script::kKannada},
    {0xD00, 0xD7F, Script::kMalayalam}, {0xE00, 0xE7F, Script::kThai},
    {0x1100, 0x11FF, Script::kHangul},  {0xAC00, 0xD7AF, Script::kHangul},
    {0x3041, 0x30FF, Script::kKana},    {0x31F0, 0x31FF, Script::kKana},
    {0x3400, 0x4DBF, Script::kHan},     {0x4E00, 0x9FFF, Script::kHan},
    {0xF900, 0xFAFF, Script::kHan},     {0x20000, 0x323AF, Script::kHan},
};

// The script of a letter or mark; kNone: not one, or of a script that no language here is in.
Script script_of(char32_t c) {
  if (!is_letter(c) && !is_mark(c)) return Script::kNone;
  for (const Block& block : kBlocks) {
    if (c >= block.first && c <= block.last) return block.script;
  }
  return Script::kNone;
}

struct Word {
  std::string text;
  Script script;
};

std::vector<Word> words_of(std::string_view text) {
  std::vector<Word> words;
  Script last = Script::kNone;
  for (std::size_t pos = 0; pos < text.size();) {
    const std::size_t at = pos;
    const Script script = script_of(next_codepoint(text, pos));
    if (script != Script::kNone) {
      if (script != last) words.push_back({"", script});
      words.back().text += text.substr(at, pos - at);
    }
    last = script;
  }
  return words;
}

std::string_view without_long_tail(std::string_view text) {
  std::size_t pos = 0;
  for (std::size_t i = 0; i < kMaxCharacters && pos < text.size(); ++i) next_codepoint(text, pos);
  return text.substr(0, pos);
}

// Addresses of pages and of people say nothing of the language around them.
std::string without_addresses(std::string_view text) {
  std::string kept;
  for (const std::string_view word : split_at_spaces(text)) {
    if (word.find("://") != std::string_view::npos || word.find('@') != std::string_view::npos) {
      continue;
    }
    kept.append(word).append(" ");
  }
  return kept;
}

using LanguageWords = std::unordered_map<std::string_view, std::vector<const Language*>>;

// Each frequent word with the languages that have it.
const LanguageWords& language_words() {
  static const LanguageWords table = [] {
    LanguageWords words;
    for (const Language& language : languages()) {
      for (const std::string_view word : split_at_spaces(language.words)) {
        words[word].push_back(&language);
      }
    }
    return words;
  }();
  return table;
}

// Each telling letter with the languages that have it.
const std::unordered_map<char32_t, std::vector<const Language*>>& language_letters() {
  static const auto table = [] {
    std::unordered_map<char32_t, std::vector<const Language*>> letters;
    for (const Language& language : languages()) {
      for (std::size_t pos = 0; pos < language.letters.size();) {
        letters[next_codepoint(language.letters, pos)].push_back(&language);
      }
    }
    return letters;
  }();
  return table;
}

std::string_view best_of_script(std::span<const Word> words, Script script) {
  std::vector<double> scores(languages().size(), 0.0);
  const auto credit = [&](const std::vector<const Language*>& owners, double weight) {
    for (const Language* owner : owners) {
      if (owner->script == script) {
        scores[static_cast<std::size_t>(owner - languages().data())] +=
            weight / static_cast<double>(owners.size());
      }
    }
  };
  for (const Word& word : words) {
    if (word.script != script) continue;
    const auto found = language_words().find(word.text);
    if (found != language_words().end()) credit(found->second, 1);
    for (std::size_t pos = 0; pos < word.text.size();) {
      const auto letter = language_letters().find(next_codepoint(word.text, pos));
      if (letter != language_letters().end()) credit(letter->second, kLetterWeight);
    }
  }
  // The first of the script, unless another has more.
  const Language* best = nullptr;
  double best_score = 0;
  for (std::size_t i = 0; i < languages().size(); ++i) {
    if (languages()[i].script != script) continue;
    if (best == nullptr || scores[i] > best_score) {
      best = &languages()[i];
      best_score = scores[i];
    }
  }
  return best->code;
}

}  // namespace

std::string_view detect_language(std::string_view text) {
  const std::string lower =
      to_lower(normalize(without_addresses(without_long_tail(text)), NormalForm::kNfc));
  const std::vector<Word> words = words_of(lower);
  std::array<std::size_t, kNumScripts> letters{};
  for (const Word& word : words) {
    auto& count = letters[static_cast<std::size_t>(word.script)];
    for (std::size_t pos = 0; pos < word.text.size(); ++count) next_codepoint(word.text, pos);
  }
  const auto count = [&](Script script) -> std::size_t& {
    return letters[static_cast<std::size_t>(script)];
  };
  // Japanese is often mostly Han.
  if (count(Script::kKana) * 8 > count(Script::kHan)) {
    count(Script::kKana) += count(Script::kHan);
    count(Script::kHan) = 0;
  }
  const auto most = std::max_element(letters.begin(), letters.end());
  return *most == 0 ? "" : best_of_script(words, static_cast<Script>(most - letters.begin()));
}

bool is_known_language(std::string_view code) {
  return std::any_of(languages().begin(), languages().end(),
                     [&](const Language& language) { return language.code == code; });
}

}  // namespace lathe
