#include "eval/ifeval_checks.h"

#include <algorithm>
#include <initializer_list>

#include "base/error.h"
#include "base/json.h"
#include "eval/language.h"
#include "eval/python_text.h"
#include "eval/sentences.h"
#include "text/character_class.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace lathe {
namespace {

using Instruction = IfevalInstruction;
constexpr std::size_t kNotFound = std::string_view::npos;

bool compare(const Instruction& instruction, int64_t found) {
  return instruction.at_least ? found >= instruction.count : found < instruction.count;
}

// Letters, digits and the rest of a keyword as a pattern that means nothing but itself, whatever
// the case.
Regex keyword_pattern(std::string_view word, bool whole) {
  std::string pattern = whole ? "(?i)(?<![\\p{L}\\p{N}_])" : "(?i)";
  for (const char c : word) {
    const bool is_punctuation = static_cast<uint8_t>(c) < 0x80 &&
                                std::string_view("\\^$.[]|()?*+{}#&-").find(c) != kNotFound;
    if (is_punctuation) pattern += '\\';
    pattern += c;
  }
  if (whole) pattern += "(?![\\p{L}\\p{N}_])";
  return Regex(pattern);
}

int64_t count_matches(std::string_view word, bool whole, std::string_view response, int64_t most) {
  const Regex regex = keyword_pattern(word, whole);
  Regex::Scanner scanner(regex, response);
  std::size_t begin = 0, end = 0;
  int64_t count = 0;
  while (count < most && scanner.next(begin, end)) ++count;
  return count;
}

bool has_keywords(const Instruction& instruction, std::string_view response) {
  return std::all_of(instruction.words.begin(), instruction.words.end(),
                     [&](const auto& word) { return count_matches(word, false, response, 1) > 0; });
}

bool has_no_forbidden_word(const Instruction& instruction, std::string_view response) {
  return std::none_of(instruction.words.begin(), instruction.words.end(),
                      [&](const auto& word) { return count_matches(word, true, response, 1) > 0; });
}

bool has_keyword_frequency(const Instruction& instruction, std::string_view response) {
  return compare(instruction, count_matches(instruction.text, false, response, instruction.count));
}

bool has_letter_frequency(const Instruction& instruction, std::string_view response) {
  const std::string lower = to_lower(response);
  int64_t count = 0;
  for (std::size_t at = 0; (at = lower.find(instruction.text, at)) != kNotFound;
       at += instruction.text.size()) {
    ++count;
  }
  return compare(instruction, count);
}

bool is_in_language(const Instruction& instruction, std::string_view response) {
  const std::string_view language = detect_language(response);
  return language.empty() || language == instruction.text;
}

bool has_sentences(const Instruction& instruction, std::string_view response) {
  return compare(instruction, static_cast<int64_t>(split_sentences(response).size()));
}

bool has_words(const Instruction& instruction, std::string_view response) {
  return compare(instruction, count_words(response));
}

// Separated by "***". An empty one at either end does not count; one in the middle is a fault.
bool has_paragraphs(const Instruction& instruction, std::string_view response) {
  const auto paragraphs = split_at(response, "***");
  auto count = static_cast<int64_t>(paragraphs.size());
  for (std::size_t i = 0; i < paragraphs.size(); ++i) {
    if (!is_blank(paragraphs[i])) continue;
    if (i != 0 && i + 1 != paragraphs.size()) return false;
    --count;
  }
  return count == instruction.count;
}

// The first word of a paragraph that is not blank, in lower case, without quotation marks before
// and from the first punctuation mark on.
std::string bare_first_word(std::string_view paragraph) {
  std::string_view word = split_at_spaces(paragraph)[0];
  while (word.starts_with('\'')) word.remove_prefix(1);
  while (word.starts_with('"')) word.remove_prefix(1);
  return to_lower(word.substr(0, word.find_first_of(".,?!'\"")));
}

// Paragraphs are separated by an empty line; blank ones do not count, but have their number.
bool has_first_word_in_paragraph(const Instruction& instruction, std::string_view response) {
  const auto paragraphs = split_at(response, "\n\n");
  const auto count = std::count_if(paragraphs.begin(), paragraphs.end(),
                                   [](std::string_view paragraph) { return !is_blank(paragraph); });
  if (instruction.nth > count) return false;
  const std::string_view paragraph = paragraphs[static_cast<std::size_t>(instruction.nth - 1)];
  return !is_blank(paragraph) && count == instruction.count &&
         bare_first_word(paragraph) == instruction.text;
}

// [such as this], within a line.
bool has_placeholders(const Instruction& instruction, std::string_view response) {
  int64_t count = 0;
  for (std::size_t at = 0; (at = response.find('[', at)) != kNotFound;) {
    at = response.find_first_of("]\n", at);
    if (at == kNotFound) break;
    count += response[at] == ']';
  }
  return count >= instruction.count;
}

// Whether `parts` come behind one another with at most one space character in between.
bool has_spaced(std::string_view text, std::initializer_list<std::string_view> parts) {
  const std::string_view first = *parts.begin();
  for (std::size_t found = 0; (found = text.find(first, found)) != kNotFound; ++found) {
    std::size_t at = found;
    bool is_whole = true;
    for (const std::string_view part : parts) {
      if (!text.substr(at).starts_with(part) && at < text.size()) {
        std::size_t behind = at;
        if (is_python_space(next_codepoint(text, behind))) at = behind;
      }
      is_whole = is_whole && text.substr(at).starts_with(part);
      if (is_whole) at += part.size();
    }
    if (is_whole) return true;
  }
  return false;
}

bool has_postscript(const Instruction& instruction, std::string_view response) {
  const std::string lower = to_lower(response);
  if (instruction.text == "P.P.S") return has_spaced(lower, {"p.", "p.", "s"});
  if (instruction.text == "P.S.") return has_spaced(lower, {"p.", "s."});
  return lower.find(to_lower(instruction.text)) != kNotFound;
}

// Lines that begin with `mark`, spaces in front aside; blank lines in front belong to the line.
// With `no_second`, another mark must not follow, and what follows belongs to the line even when
// it is the line's end.
int64_t count_marked_lines(std::string_view text, char mark, bool no_second) {
  int64_t count = 0;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t begin = at;  // of the first character that is no space
    for (std::size_t pos = at; pos < text.size() && is_python_space(next_codepoint(text, pos));) {
      begin = pos;
    }
    std::size_t from = begin;  // where the search for the line's end begins
    if (begin < text.size() && text[begin] == mark &&
        (!no_second || (begin + 1 < text.size() && text[begin + 1] != mark))) {
      ++count;
      from = begin + (no_second ? 2 : 1);
    }
    const std::size_t line_end = text.find('\n', from);
    if (line_end == kNotFound) break;
    at = line_end + 1;
  }
  return count;
}

bool has_bullets(const Instruction& instruction, std::string_view response) {
  return count_marked_lines(response, '*', true) + count_marked_lines(response, '-', false) ==
         instruction.count;
}

bool has_constrained_response(const Instruction&, std::string_view response) {
  for (const std::string_view option :
       {"My answer is yes.", "My answer is no.", "My answer is maybe."}) {
    if (response.find(option) != kNotFound) return true;
  }
  return false;
}

// Parts of a line between `mark` and `mark` without a star in between and not blank.
int64_t count_between(std::string_view text, std::string_view mark) {
  int64_t count = 0;
  for (std::size_t at = 0; (at = text.find(mark, at)) != kNotFound;) {
    const std::size_t begin = at + mark.size();
    const std::size_t end = text.find_first_of("*\n", begin);
    if (end == kNotFound) break;
    if (text.substr(end).starts_with(mark)) {
      count += !is_blank(text.substr(begin, end - begin));
      at = end + mark.size();
    } else {
      at += 1;
    }
  }
  return count;
}

bool has_highlights(const Instruction& instruction, std::string_view response) {
  return count_between(response, "*") + count_between(response, "**") >= instruction.count;
}

// "Section 1": the name, at most one space character, a number.
bool has_sections(const Instruction& instruction, std::string_view response) {
  int64_t count = 0;
  for (std::size_t at = 0; (at = response.find(instruction.text, at)) != kNotFound;) {
    std::size_t pos = at + instruction.text.size();
    std::size_t behind = pos;
    if (pos < response.size() && is_python_space(next_codepoint(response, behind))) pos = behind;
    const std::size_t digits = pos;
    for (behind = pos;
         behind < response.size() && is_decimal_digit(next_codepoint(response, behind));) {
      pos = behind;
    }
    count += pos > digits;
    at = pos > digits ? pos : at + 1;
  }
  return count >= instruction.count;
}

bool is_json(const Instruction&, std::string_view response) {
  std::string_view text = strip(response);
  for (const std::string_view fence : {"```json", "```Json", "```JSON", "```"}) {
    if (text.starts_with(fence)) text.remove_prefix(fence.size());
  }
  if (text.ends_with("```")) text.remove_suffix(3);
  return is_python_json(strip(text));
}

// <<a title>>, within a line.
bool has_title(const Instruction&, std::string_view response) {
  for (std::string_view line : split_at(response, "\n")) {
    const std::size_t begin = line.find("<<");
    const std::size_t end = line.rfind(">>");
    if (begin == kNotFound || end == kNotFound || end < begin + 3) continue;
    line = line.substr(begin, end + 2 - begin);
    while (line.starts_with('<')) line.remove_prefix(1);
    while (line.ends_with('>')) line.remove_suffix(1);
    if (!is_blank(line)) return true;
  }
  return false;
}

// Separated by six stars; blank parts may stand at either end only.
bool has_two_responses(const Instruction&, std::string_view response) {
  std::vector<std::string_view> parts;
  const auto all = split_at(response, "******");
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!is_blank(all[i])) {
      parts.push_back(strip(all[i]));
    } else if (i != 0 && i + 1 != all.size()) {
      return false;
    }
  }
  return parts.size() == 2 && parts[0] != parts[1];
}

bool repeats_prompt(const Instruction& instruction, std::string_view response) {
  return to_lower(strip(response)).starts_with(to_lower(strip(instruction.text)));
}

bool ends_with_phrase(const Instruction& instruction, std::string_view response) {
  std::string_view text = strip(response);
  while (text.starts_with('"')) text.remove_prefix(1);
  while (text.ends_with('"')) text.remove_suffix(1);
  return to_lower(text).ends_with(to_lower(strip(instruction.text)));
}

bool has_capital_words(const Instruction& instruction, std::string_view response) {
  return compare(instruction, count_capital_words(response));
}

bool is_english(std::string_view response) {
  const std::string_view language = detect_language(response);
  return language.empty() || language == "en";
}

bool is_english_capital(const Instruction&, std::string_view response) {
  return is_upper_text(response) && is_english(response);
}

bool is_english_lowercase(const Instruction&, std::string_view response) {
  return is_lower_text(response) && is_english(response);
}

bool has_no_comma(const Instruction&, std::string_view response) {
  return response.find(',') == kNotFound;
}

bool is_quoted(const Instruction&, std::string_view response) {
  const std::string_view text = strip(response);
  return text.size() > 1 && text.front() == '"' && text.back() == '"';
}

enum class Argument { kCount, kNth, kText, kWord, kLetter, kLanguage, kWords, kRelation };
struct Parameter {
  std::string_view name;  // in kwargs
  Argument argument;
};

}  // namespace

struct IfevalRule {
  std::string_view id;
  bool (*check)(const IfevalInstruction& instruction, std::string_view response);
  std::vector<Parameter> parameters;
};

namespace {

const std::vector<IfevalRule>& rules() {
  using enum Argument;
  static const std::vector<IfevalRule> table = {
      {"keywords:existence", has_keywords, {{"keywords", kWords}}},
      {"keywords:frequency",
       has_keyword_frequency,
       {{"keyword", kWord}, {"frequency", kCount}, {"relation", kRelation}}},
      {"keywords:forbidden_words", has_no_forbidden_word, {{"forbidden_words", kWords}}},
      {"keywords:letter_frequency",
       has_letter_frequency,
       {{"letter", kLetter}, {"let_frequency", kCount}, {"let_relation", kRelation}}},
      {"language:response_language", is_in_language, {{"language", kLanguage}}},
      {"length_constraints:number_sentences",
       has_sentences,
       {{"num_sentences", kCount}, {"relation", kRelation}}},
      {"length_constraints:number_paragraphs", has_paragraphs, {{"num_paragraphs", kCount}}},
      {"length_constraints:number_words",
       has_words,
       {{"num_words", kCount}, {"relation", kRelation}}},
      {"length_constraints:nth_paragraph_first_word",
       has_first_word_in_paragraph,
       {{"num_paragraphs", kCount}, {"nth_paragraph", kNth}, {"first_word", kText}}},
      {"detectable_content:number_placeholders", has_placeholders, {{"num_placeholders", kCount}}},
      {"detectable_content:postscript", has_postscript, {{"postscript_marker", kWord}}},
      {"detectable_format:number_bullet_lists", has_bullets, {{"num_bullets", kCount}}},
      {"detectable_format:constrained_response", has_constrained_response, {}},
      {"detectable_format:number_highlighted_sections",
       has_highlights,
       {{"num_highlights", kCount}}},
      {"detectable_format:multiple_sections",
       has_sections,
       {{"section_spliter", kWord}, {"num_sections", kCount}}},
      {"detectable_format:json_format", is_json, {}},
      {"detectable_format:title", has_title, {}},
      {"combination:two_responses", has_two_responses, {}},
      {"combination:repeat_prompt", repeats_prompt, {{"prompt_to_repeat", kText}}},
      {"startend:end_checker", ends_with_phrase, {{"end_phrase", kText}}},
      {"startend:quotation", is_quoted, {}},
      {"change_case:capital_word_frequency",
       has_capital_words,
       {{"capital_frequency", kCount}, {"capital_relation", kRelation}}},
      {"change_case:english_capital", is_english_capital, {}},
      {"change_case:english_lowercase", is_english_lowercase, {}},
      {"punctuation:no_comma", has_no_comma, {}},
  };
  return table;
}

// A word is searched at every place of a response: their lengths multiply.
constexpr std::size_t kMaxWordBytes = 200;
constexpr std::size_t kMaxWords = 100;
constexpr std::size_t kMaxTextBytes = 100'000;
constexpr int64_t kMaxCount = 1'000'000'000;

std::string parse_text(const Json& value, std::string_view name, std::size_t max_bytes) {
  if (!value.is_string()) fail(ErrorCode::kCorruptData, "'", name, "' must be text");
  std::string text(strip(value.get_ref<const std::string&>()));
  if (text.empty() || text.size() > max_bytes) {
    fail(ErrorCode::kCorruptData, "'", name, "' must have 1 to ", max_bytes, " bytes, not ",
         text.size());
  }
  return text;
}

int64_t parse_count(const Json& value, std::string_view name) {
  const int64_t count = value.is_number_integer() ? value.get<int64_t>() : 0;
  if (count < 1 || count > kMaxCount) {
    fail(ErrorCode::kCorruptData, "'", name, "' must be a whole number, 1 to ", kMaxCount, ", not ",
         dump_json(value).substr(0, 100));
  }
  return count;
}

std::vector<std::string> parse_words(const Json& value, std::string_view name) {
  if (!value.is_array() || value.empty() || value.size() > kMaxWords) {
    fail(ErrorCode::kCorruptData, "'", name, "' must be a list of 1 to ", kMaxWords, " words");
  }
  std::vector<std::string> words;
  for (const Json& word : value) {
    const bool is_good = word.is_string() && !word.get_ref<const std::string&>().empty() &&
                         word.get_ref<const std::string&>().size() <= kMaxWordBytes;
    if (!is_good) {
      fail(ErrorCode::kCorruptData, "'", name, "' must be words of 1 to ", kMaxWordBytes,
           " bytes, not ", dump_json(word).substr(0, 100));
    }
    words.push_back(word.get<std::string>());
  }
  return words;
}

void parse_argument(const Parameter& parameter, const Json& value, Instruction& instruction) {
  const std::string_view name = parameter.name;
  switch (parameter.argument) {
    case Argument::kCount:
      instruction.count = parse_count(value, name);
      return;
    case Argument::kNth:
      instruction.nth = parse_count(value, name);
      return;
    case Argument::kText:
      instruction.text = parse_text(value, name, kMaxTextBytes);
      return;
    case Argument::kWord:
      instruction.text = parse_text(value, name, kMaxWordBytes);
      return;
    case Argument::kWords:
      instruction.words = parse_words(value, name);
      return;
    case Argument::kLetter: {
      instruction.text = to_lower(parse_text(value, name, 4));
      std::size_t pos = 0;
      next_codepoint(instruction.text, pos);
      if (pos == instruction.text.size()) return;
      fail(ErrorCode::kCorruptData, "'", name, "' must be one letter, not ", dump_json(value));
    }
    case Argument::kLanguage:
      instruction.text = parse_text(value, name, kMaxWordBytes);
      if (is_known_language(instruction.text)) return;
      fail(ErrorCode::kUnsupported, "'", name, "' is '", instruction.text,
           "', a language that is not detected here");
    case Argument::kRelation:
      if (value != "at least" && value != "less than") {
        fail(ErrorCode::kCorruptData, "'", name, "' must be \"at least\" or \"less than\", not ",
             dump_json(value).substr(0, 100));
      }
      instruction.at_least = value == "at least";
      return;
  }
}

void parse_arguments(const Json& kwargs, Instruction& instruction) {
  if (!kwargs.is_object()) fail(ErrorCode::kCorruptData, "its kwargs must be an object");
  const auto& parameters = instruction.rule->parameters;
  for (const auto& [name, value] : kwargs.items()) {
    const auto is_it = [&name = name](const Parameter& known) { return known.name == name; };
    const bool is_known = std::any_of(parameters.begin(), parameters.end(), is_it);
    if (!is_known && !value.is_null()) {
      fail(ErrorCode::kCorruptData, "it has no argument '", name.substr(0, 100), "'");
    }
  }
  for (const Parameter& parameter : parameters) {
    const auto found = kwargs.find(std::string(parameter.name));
    if (found == kwargs.end() || found->is_null()) {
      fail(ErrorCode::kCorruptData, "its kwargs lack '", parameter.name, "'");
    }
    parse_argument(parameter, *found, instruction);
  }
  if (instruction.nth > instruction.count) {
    fail(ErrorCode::kCorruptData, "'nth_paragraph' is ", instruction.nth, " of ", instruction.count,
         " paragraphs");
  }
}

}  // namespace

IfevalInstruction parse_ifeval_instruction(const std::string& id, const Json& kwargs) {
  const auto rule = std::find_if(rules().begin(), rules().end(),
                                 [&](const IfevalRule& known) { return known.id == id; });
  if (rule == rules().end()) {
    fail(ErrorCode::kCorruptData, "unknown instruction '", id.substr(0, 100), "'");
  }
  IfevalInstruction instruction;
  instruction.rule = &*rule;
  with_context(id, [&] { parse_arguments(kwargs, instruction); });
  if (id == "length_constraints:nth_paragraph_first_word") {
    instruction.text = to_lower(instruction.text);
  }
  return instruction;
}

std::string_view ifeval_id(const IfevalInstruction& instruction) { return instruction.rule->id; }

bool follows(const IfevalInstruction& instruction, std::string_view response) {
  return instruction.rule->check(instruction, response);
}

}  // namespace lathe
