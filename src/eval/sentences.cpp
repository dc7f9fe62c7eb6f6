#include "eval/sentences.h"

#include <algorithm>
#include <span>
#include <string>
#include <unordered_set>
#include <utility>

#include "eval/python_text.h"
#include "text/character_class.h"
#include "text/unicode.h"

namespace lathe {
namespace {

using Words = std::unordered_set<std::string_view>;

Words words_of(std::string_view list) {
  Words words;
  for (const std::string_view word : split_at_spaces(list)) words.insert(word);
  return words;
}

// Titles, months, days, states, companies: what stands before a name or behind one.
bool is_abbreviation(std::string_view word) {
  static const Words words = words_of(
      "mr mrs ms messrs dr prof gen sen sens rep reps gov lt col sgt capt maj adm rev hon jr sr st "
      "ave blvd inc ltd co cos corp bros jan feb aug sep sept oct nov dec tues wed thurs fri "
      "ala ariz calif colo conn fla ga ill kan ky mich minn okla ore pa tenn va vt wash wis "
      "u.s u.k u.n u.s.a u.s.s.r d.c n.y n.j n.c n.m n.h s.c l.a w.va a.m p.m ph.d m.b.a vs ft");
  return words.contains(word);
}

// Words that, capitalised behind an abbreviation or an ellipsis, begin a sentence: they are no
// names.
bool begins_sentences(std::string_view word) {
  static const Words words = words_of(
      "the a an he she it they we you i this that these those there here in on at for from with "
      "when while after before as if but and so then however also now what who how why where all "
      "most many some no not our his her my their its your both each every since because although "
      "though once under during despite instead still yet nor indeed moreover meanwhile "
      "nevertheless perhaps please even another let maybe just only");
  return words.contains(word);
}

// The letters that are no abbreviations to Punkt: an initial like the others before a name, but a
// sentence may end with one of these.
bool may_end_sentence(std::string_view letter) {
  return std::string_view("abijkopqxyz").find(letter) != std::string_view::npos;
}

// Quotation marks outside of ASCII: ‘ ’ “ ” « ».
bool is_fancy_quote(char32_t c) {
  return c == 0x2018 || c == 0x2019 || c == 0x201C || c == 0x201D || c == 0xAB || c == 0xBB;
}
bool is_one_of(char32_t c, std::string_view set) {
  return c < 0x80 && set.find(static_cast<char>(c)) != std::string_view::npos;
}
// What no word goes on over.
bool ends_word(char32_t c) { return is_one_of(c, ")\";}]*:@'({[?!") || is_fancy_quote(c); }
// What no word begins with.
bool begins_no_word(char32_t c) { return is_one_of(c, "(\"`{[:;&#*@)}]-,"); }

bool is_doubled(std::string_view text, std::size_t at) {
  return at + 1 < text.size() && text[at] == text[at + 1] && (text[at] == '.' || text[at] == '-');
}

// The last word of a chunk without spaces.
std::string_view last_word(std::string_view chunk) {
  std::size_t begin = 0;
  for (std::size_t pos = 0; pos < chunk.size();) {
    const std::size_t at = pos;
    if (is_doubled(chunk, at)) {
      while (pos < chunk.size() && chunk[pos] == chunk[at]) ++pos;
      begin = pos;
      continue;
    }
    const char32_t c = next_codepoint(chunk, pos);
    if (begins_no_word(c) && (at == begin || ends_word(c))) {
      begin = pos;
    } else if (ends_word(c)) {
      begin = at;
    }
  }
  return chunk.substr(begin);
}

std::string_view first_word(std::string_view chunk) {
  for (std::size_t pos = 0; pos < chunk.size();) {
    const std::size_t at = pos;
    const char32_t c = next_codepoint(chunk, pos);
    if (at == 0 ? begins_no_word(c) : ends_word(c) || is_doubled(chunk, at)) {
      return chunk.substr(0, at == 0 ? pos : at);
    }
  }
  while (chunk.size() > 1 && (chunk.back() == ',' || chunk.back() == '.')) chunk.remove_suffix(1);
  return chunk;
}

bool is_single_letter(std::string_view word) {
  std::size_t pos = 0;
  if (word.empty()) return false;
  const char32_t c = next_codepoint(word, pos);
  return pos == word.size() && is_nltk_word(c) && !is_decimal_digit(c);
}

// -1,234.5 and the like: a sign, a separator, a digit, then digits and separators.
bool is_numeral(std::string_view word) {
  if (word.starts_with('-')) word.remove_prefix(1);
  if (word.starts_with('.') || word.starts_with(',')) word.remove_prefix(1);
  return !word.empty() && word[0] >= '0' && word[0] <= '9' &&
         word.find_first_not_of("0123456789,.-") == std::string_view::npos;
}

// Whether the text may end a sentence behind `head`, a chunk's beginning up to a period, question
// mark or exclamation mark; `next` follows it, behind spaces or as punctuation.
bool ends_sentence(std::string_view head, std::string_view next) {
  if (head.back() != '.') return true;
  const bool is_ellipsis = head.ends_with("..");
  head.remove_suffix(1);
  const std::string word = to_lower(last_word(head));
  const std::string_view follower = first_word(next);
  std::size_t pos = 0;
  const char32_t first = next_codepoint(follower, pos);
  const bool is_capital = is_upper_case(first);
  const bool never_begins = is_lower_case(first) || is_one_of(first, ";:,.!?");
  const bool begins = is_capital && begins_sentences(to_lower(follower));
  if (is_ellipsis) return begins;
  if (is_single_letter(word)) {
    if (!may_end_sentence(word)) return false;
    return !never_begins && (!is_capital || begins);
  }
  if (is_abbreviation(word) || is_abbreviation(word.substr(word.rfind('-') + 1))) return begins;
  return !is_numeral(word) || !never_begins;
}

struct Slice {
  std::size_t begin, end;
};

// Closing quotation marks and brackets at the beginning of a sentence's text that belong to the
// sentence before: their length, and their length with the spaces behind them. 0 when they are
// followed by anything but spaces, "--" or the end.
std::pair<std::size_t, std::size_t> closing_marks(std::string_view text) {
  for (std::size_t pos = 0; pos < text.size();) {
    const char32_t c = next_codepoint(text, pos);
    if (!is_one_of(c, "\"')]}") && !is_fancy_quote(c)) break;
    std::size_t end = pos;
    for (std::size_t at = pos; at < text.size() && is_python_space(next_codepoint(text, at));) {
      end = at;
    }
    if (end > pos || pos == text.size() || text.substr(pos).starts_with("--")) return {pos, end};
  }
  return {0, 0};
}

// Where the text is cut, before quotation marks find their sentence.
std::vector<Slice> cut_at_sentence_ends(std::string_view text) {
  const auto chunks = split_at_spaces(text);
  std::vector<Slice> slices;
  const auto offset = [&](std::string_view chunk) {
    return static_cast<std::size_t>(chunk.data() - text.data());
  };
  std::size_t begin = 0;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    const std::string_view chunk = chunks[i];
    const bool is_last = i + 1 == chunks.size();
    // The last place that may be an end; one chunk never holds two.
    for (std::size_t at = chunk.find_last_of(".?!"); at != std::string_view::npos;
         at = at == 0 ? std::string_view::npos : chunk.find_last_of(".?!", at - 1)) {
      std::size_t pos = at + 1;
      const bool is_behind_chunk = pos == chunk.size();
      if (is_behind_chunk ? is_last : !ends_word(next_codepoint(chunk, pos))) continue;
      const std::string_view next =
          is_behind_chunk ? chunks[i + 1] : chunk.substr(at + 1, pos - at - 1);
      if (ends_sentence(chunk.substr(0, at + 1), next)) {
        slices.push_back({begin, offset(chunk) + at + 1});
        begin = is_behind_chunk ? offset(chunks[i + 1]) : offset(chunk) + at + 1;
      }
      break;
    }
  }
  if (!chunks.empty()) slices.push_back({begin, offset(chunks.back()) + chunks.back().size()});
  return slices;
}

// ASCII alone has its case ignored.
bool begins_with(std::string_view text, std::string_view lower) {
  return text.size() >= lower.size() &&
         std::equal(lower.begin(), lower.end(), text.begin(), [](char l, char c) {
           return l == (c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
         });
}

// A sentence by character, to be cut into tokens.
class TokenCutter {
 public:
  explicit TokenCutter(std::string_view text) : text_(text) {
    for (std::size_t pos = 0; pos < text.size();) {
      offsets_.push_back(pos);
      characters_.push_back(next_codepoint(text, pos));
    }
    offsets_.push_back(text.size());
    cuts_.assign(offsets_.size(), 0);
  }

  std::vector<std::string_view> tokens() {
    for (std::size_t i = 0; i < characters_.size(); ++i) cut_at(i);
    cut_final_period();
    std::vector<std::string_view> tokens;
    std::size_t begin = 0;
    for (std::size_t i = 0; i <= characters_.size(); ++i) {
      const bool is_space = i < characters_.size() && is_python_space(characters_[i]);
      if (!is_space && !cuts_[i] && i < characters_.size()) continue;
      if (i > begin) tokens.push_back(piece(begin, i));
      begin = is_space ? i + 1 : i;
    }
    return tokens;
  }

 private:
  char32_t at(std::size_t i) const { return i < characters_.size() ? characters_[i] : 0; }
  std::string_view piece(std::size_t begin, std::size_t end) const {
    return text_.substr(offsets_[begin], offsets_[end] - offsets_[begin]);
  }
  void isolate(std::size_t begin, std::size_t end) { cuts_[begin] = cuts_[end] = 1; }

  void cut_at(std::size_t i) {
    const char32_t c = characters_[i];
    if (is_one_of(c, "`;@#$%&?!*[](){}<>\"") || is_fancy_quote(c) || c == 0x201E ||
        (c >= 0x2012 && c <= 0x2015)) {
      isolate(i, i + 1);
    } else if (c == ',' || c == ':') {
      if (i + 1 == characters_.size() || !is_decimal_digit(at(i + 1))) isolate(i, i + 1);
    } else if (c == '.' && at(i + 1) == '.') {
      cuts_[i] = cuts_[i] || i == 0 || at(i - 1) != '.';
      if (at(i + 2) != '.') cuts_[i + 2] = 1;
    } else if ((c == '-' || c == '\'') && at(i + 1) == c && !(i > 0 && paired_ == i)) {
      isolate(i, i + 2);
      paired_ = i + 1;
    } else if (c == '\'' && is_opening_apostrophe(i)) {
      cuts_[i + 1] = 1;
    }
  }

  // Before a word, behind none, and not that of a contraction.
  bool is_opening_apostrophe(std::size_t i) const {
    if (i > 0 && is_nltk_word(characters_[i - 1])) return false;
    if (i + 1 == characters_.size() || !is_nltk_word(characters_[i + 1])) return false;
    for (const std::string_view ending : {"re", "ve", "ll", "m", "t", "s", "d", "n"}) {
      const std::size_t end = i + 1 + ending.size();
      if (end <= characters_.size() && to_lower(piece(i + 1, end)) == ending &&
          !(end < characters_.size() && is_nltk_word(characters_[end]))) {
        return false;
      }
    }
    return true;
  }

  void cut_final_period() {
    std::size_t i = characters_.size();
    while (i > 0 && is_python_space(characters_[i - 1])) --i;
    while (i > 0 && (is_one_of(characters_[i - 1], "])}>\"' ") || characters_[i - 1] == 0xBB ||
                     characters_[i - 1] == 0x201D || characters_[i - 1] == 0x2019)) {
      --i;
    }
    if (i >= 2 && characters_[i - 1] == '.' && characters_[i - 2] != '.') isolate(i - 1, i);
  }

  std::string_view text_;
  std::vector<char32_t> characters_;
  std::vector<std::size_t> offsets_;  // of each character, and the end
  std::vector<char> cuts_;            // in front of each character, and at the end
  std::size_t paired_ = 0;            // the second of the last "--" or "''"
};

// Where a token's ending begins when it is one of those and follows something that is no
// apostrophe; else the token's end.
std::size_t ending_at(std::string_view token, std::span<const std::string_view> endings) {
  for (const std::string_view ending : endings) {
    if (token.size() <= ending.size() || !token.ends_with(ending)) continue;
    const std::size_t at = token.size() - ending.size();
    if (token[at - 1] != '\'') return at;
  }
  return token.size();
}

int64_t is_capital(std::string_view text) { return is_upper_text(text) ? 1 : 0; }

bool is_word_at(std::string_view text, std::size_t at) {
  return at < text.size() && is_nltk_word(next_codepoint(text, at));
}
bool is_word_before(std::string_view text, std::size_t at) {
  if (at == 0) return false;
  do --at;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return is_word_at(text, at);
}

// The length of the first half when text[at..] begins with a word that the Treebank cuts in two,
// and of the whole; 0 when it does not.
std::pair<std::size_t, std::size_t> two_words_at(std::string_view text, std::size_t at) {
  struct TwoWords {
    std::string_view first, second;
    bool at_end;  // only as the end of a token
  };
  static constexpr TwoWords kTwoWords[] = {
      {"can", "not", false}, {"d", "'ye", false},  {"gim", "me", false},  {"gon", "na", false},
      {"got", "ta", false},  {"lem", "me", false}, {"more", "'n", false}, {"wan", "na", true}};
  if (std::string_view("cdglmwCDGLMW").find(text[at]) == std::string_view::npos) return {0, 0};
  if (is_word_before(text, at)) return {0, 0};
  for (const TwoWords& two : kTwoWords) {
    const std::size_t middle = at + two.first.size();
    const std::size_t end = middle + two.second.size();
    if (end > text.size() || !begins_with(text.substr(at), two.first) ||
        !begins_with(text.substr(middle), two.second)) {
      continue;
    }
    if (two.at_end ? end == text.size() : !is_word_at(text, end)) return {middle - at, end - at};
  }
  return {0, 0};
}

int64_t count_capitals(std::string_view token) {
  int64_t count = 0;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < token.size(); ++at) {
    const auto [first, whole] = two_words_at(token, at);
    if (whole == 0) continue;
    count += is_capital(token.substr(begin, at - begin)) + is_capital(token.substr(at, first)) +
             is_capital(token.substr(at + first, whole - first));
    begin = at + whole;
    at = begin - 1;
  }
  return count + is_capital(token.substr(begin));
}

}  // namespace

std::vector<std::string_view> split_sentences(std::string_view text) {
  const auto slices = cut_at_sentence_ends(text);
  std::vector<std::string_view> sentences;
  std::size_t moved = 0;  // characters of the slice that the sentence before has taken
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const std::size_t begin = slices[i].begin + moved;
    std::size_t end = slices[i].end;
    moved = 0;
    if (i + 1 < slices.size()) {
      const Slice& next = slices[i + 1];
      const auto [marks, with_spaces] =
          closing_marks(text.substr(next.begin, next.end - next.begin));
      if (marks > 0) end = next.begin + marks;
      moved = with_spaces;
    }
    if (end > begin) sentences.push_back(text.substr(begin, end - begin));
  }
  return sentences;
}

int64_t count_capital_words(std::string_view text) {
  static constexpr std::string_view kShort[] = {"'s", "'S", "'m", "'M", "'d", "'D"};
  static constexpr std::string_view kLong[] = {"'ll", "'LL", "'re", "'RE",
                                               "'ve", "'VE", "n't", "N'T"};
  const std::span<const std::string_view> endings_in_turn[] = {kShort, kLong};
  int64_t count = 0;
  for (const std::string_view sentence : split_sentences(text)) {
    for (std::string_view token : TokenCutter(sentence).tokens()) {
      for (const std::span<const std::string_view> endings : endings_in_turn) {
        const std::size_t at = ending_at(token, endings);
        count += is_capital(token.substr(at));
        token = token.substr(0, at);
      }
      count += count_capitals(token);
    }
  }
  return count;
}

}  // namespace lathe
