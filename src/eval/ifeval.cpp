#include "eval/ifeval.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "eval/json_lines.h"
#include "eval/python_text.h"
#include "text/unicode.h"

namespace lathe {
namespace {

std::string parse_key(const Json& line) {
  const auto key = line.find("key");
  if (key != line.end() && key->is_number_integer()) return dump_json(*key);
  if (key != line.end() && key->is_string()) return key->get<std::string>();
  fail(ErrorCode::kCorruptData, "no 'key', a number or text");
}

const Json& list_field(const Json& line, const char* name) {
  const auto list = line.find(name);
  if (list == line.end() || !list->is_array() || list->empty()) {
    fail(ErrorCode::kCorruptData, "no list '", name, "'");
  }
  return *list;
}

IfevalItem parse_item(const Json& line) {
  IfevalItem item;
  item.prompt = string_field(line, "prompt");
  item.key = parse_key(line);
  const Json& ids = list_field(line, "instruction_id_list");
  const Json& kwargs = list_field(line, "kwargs");
  if (ids.size() != kwargs.size()) {
    fail(ErrorCode::kCorruptData, ids.size(), " instructions with ", kwargs.size(), " kwargs");
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (!ids[i].is_string()) {
      fail(ErrorCode::kCorruptData, "'instruction_id_list' must be texts");
    }
    item.instructions.push_back(
        parse_ifeval_instruction(ids[i].get_ref<const std::string&>(), kwargs[i]));
  }
  return item;
}

std::string without_stars(std::string_view text) {
  std::string kept(text);
  kept.erase(std::remove(kept.begin(), kept.end(), '*'), kept.end());
  return kept;
}

// What the loose verdict accepts beside the response itself.
std::vector<std::string> loose_responses(std::string_view response) {
  const std::size_t first_end = response.find('\n');
  const std::size_t last_begin = response.rfind('\n');
  std::string_view no_first, no_last, neither;  // of a single line nothing is left
  if (first_end != std::string_view::npos) {
    no_first = strip(response.substr(first_end + 1));
    no_last = strip(response.substr(0, last_begin));
    if (last_begin > first_end) {
      neither = strip(response.substr(first_end + 1, last_begin - first_end - 1));
    }
  }
  std::vector<std::string> responses = {without_stars(response)};
  for (const std::string_view part : {no_first, no_last, neither}) {
    responses.emplace_back(part);
    responses.push_back(without_stars(part));
  }
  return responses;
}

bool follows_unless_blank(const IfevalInstruction& instruction, std::string_view response) {
  return !is_blank(response) && follows(instruction, response);
}

int64_t count_true(const std::vector<char>& verdicts) {
  return std::count(verdicts.begin(), verdicts.end(), 1);
}

}  // namespace

std::vector<IfevalItem> load_ifeval(const std::string& path) {
  std::vector<IfevalItem> items;
  for_each_json_line(path, [&](const Json& line) { items.push_back(parse_item(line)); });
  return items;
}

IfevalVerdict check_ifeval(const IfevalItem& item, std::string_view bytes) {
  const std::string response = to_valid_utf8(bytes);
  const std::vector<std::string> others = loose_responses(response);
  IfevalVerdict verdict;
  for (const IfevalInstruction& instruction : item.instructions) {
    const bool strict = follows_unless_blank(instruction, response);
    const bool loose =
        strict || std::any_of(others.begin(), others.end(), [&](const std::string& other) {
          return follows_unless_blank(instruction, other);
        });
    verdict.strict.push_back(strict);
    verdict.loose.push_back(loose);
  }
  return verdict;
}

std::string to_string(const IfevalItem& item, const IfevalVerdict& verdict) {
  std::string text;
  for (std::size_t i = 0; i < item.instructions.size(); ++i) {
    text.append(i == 0 ? "" : " ").append(ifeval_id(item.instructions[i]));
    text += verdict.strict[i] ? "=strict" : verdict.loose[i] ? "=loose" : "=no";
  }
  return text;
}

void IfevalCounts::add(const IfevalVerdict& verdict) {
  const auto size = static_cast<int64_t>(verdict.strict.size());
  const int64_t strict = count_true(verdict.strict);
  const int64_t loose = count_true(verdict.loose);
  ++prompts;
  strict_prompts += strict == size;
  loose_prompts += loose == size;
  instructions += size;
  strict_instructions += strict;
  loose_instructions += loose;
}

}  // namespace lathe
