#include "eval/gsm8k.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/json.h"
#include "eval/json_lines.h"

namespace lathe {
namespace {

constexpr std::string_view kStrictPrefix = "The final answer is ";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_number_char(char c) { return is_digit(c) || c == '$' || c == '.' || c == ','; }

// Length of (-?[$0-9.,]{2,})|(-?[0-9]+) at the start of `text`; 0: no match here. Both alternatives
// are greedy, and giving characters back never helps either of them to match.
std::size_t match_number(std::string_view text) {
  const std::size_t sign = !text.empty() && text[0] == '-' ? 1 : 0;
  std::size_t end = sign;
  while (end < text.size() && is_number_char(text[end])) ++end;
  if (end - sign >= 2) return end;
  end = sign;
  while (end < text.size() && is_digit(text[end])) ++end;
  return end > sign ? end : 0;
}

}  // namespace

std::vector<Gsm8kItem> load_gsm8k(const std::string& path) {
  std::vector<Gsm8kItem> items;
  for_each_json_line(path, [&](const Json& line) {
    items.push_back({string_field(line, "question"), string_field(line, "answer")});
  });
  return items;
}

std::string gsm8k_prompt(std::string_view question) {
  return str(
      "Given the following problem, reason and give a final answer to the problem.\nProblem: ",
      question,
      "\nYour response should end with \"The final answer is [answer]\" where [answer] is the "
      "response to the problem.");
}

std::span<const std::string_view> gsm8k_stop_strings() {
  static constexpr std::string_view kStops[] = {
      "<|eot_id|>", "<|start_header_id|>user<|end_header_id|>", "Q:", "</s>", "<|im_end|>"};
  return kStops;
}

Gsm8kChecker gsm8k_checker_from_name(std::string_view name) {
  if (name == "gsm8k-strict-then-flexible") return Gsm8kChecker::kStrictThenFlexible;
  if (name == "gsm8k-strict") return Gsm8kChecker::kStrict;
  if (name == "numeric") return Gsm8kChecker::kNumeric;
  fail(ErrorCode::kInvalidArgument, "unknown answer checker '", name,
       "': choose gsm8k-strict-then-flexible, gsm8k-strict or numeric");
}

std::optional<std::string> extract_strict(std::string_view text) {
  std::optional<std::string> last;
  std::size_t at = 0;
  while ((at = text.find(kStrictPrefix, at)) != std::string_view::npos) {
    const std::string_view number = text.substr(at + kStrictPrefix.size());
    const std::size_t length = match_number(number);
    if (length > 0) last = std::string(number.substr(0, length));
    at += length > 0 ? kStrictPrefix.size() + length : 1;
  }
  return last;
}

std::optional<std::string> extract_flexible(std::string_view text) {
  std::optional<std::string> last;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = match_number(text.substr(at));
    if (length > 0) last = std::string(text.substr(at, length));
    at += std::max<std::size_t>(length, 1);
  }
  return last;
}

std::string normalize_answer(std::string_view answer) {
  std::string kept;
  for (const char c : answer) {
    if (c != ',' && c != '$') kept += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  const std::size_t marker = kept.rfind("#### ");
  if (marker != std::string::npos) kept.erase(0, marker + 5);
  if (!kept.empty() && kept.back() == '.') kept.pop_back();
  return kept;
}

std::optional<std::string> canonical_decimal(std::string_view text) {
  const bool negative = !text.empty() && text[0] == '-';
  if (negative || (!text.empty() && text[0] == '+')) text.remove_prefix(1);
  const std::size_t point = std::min(text.find('.'), text.size());
  std::string_view whole = text.substr(0, point);
  std::string_view fraction = point < text.size() ? text.substr(point + 1) : std::string_view();
  if (whole.empty() && fraction.empty()) return std::nullopt;
  if (!std::all_of(whole.begin(), whole.end(), is_digit)) return std::nullopt;
  if (!std::all_of(fraction.begin(), fraction.end(), is_digit)) return std::nullopt;
  while (!whole.empty() && whole.front() == '0') whole.remove_prefix(1);
  while (!fraction.empty() && fraction.back() == '0') fraction.remove_suffix(1);
  if (whole.empty() && fraction.empty()) return "0";
  return str(negative ? "-" : "", whole.empty() ? "0" : whole, fraction.empty() ? "" : ".",
             fraction);
}

std::optional<std::string> gsm8k_outcome(Gsm8kChecker checker, std::string_view response) {
  std::optional<std::string> found = extract_strict(response);
  if (!found && checker != Gsm8kChecker::kStrict) found = extract_flexible(response);
  if (!found) return std::nullopt;
  const std::string answer = normalize_answer(*found);
  if (checker == Gsm8kChecker::kNumeric) return canonical_decimal(answer);
  return answer;
}

std::optional<std::string> gsm8k_gold(Gsm8kChecker checker, std::string_view answer_field) {
  const std::size_t marker = answer_field.rfind("####");
  if (marker == std::string_view::npos) return std::nullopt;
  std::string_view gold = answer_field.substr(marker + 4);
  while (!gold.empty() && (gold.front() == ' ' || gold.front() == '\n')) gold.remove_prefix(1);
  while (!gold.empty() && (gold.back() == ' ' || gold.back() == '\n')) gold.remove_suffix(1);
  const std::string answer = normalize_answer(gold);
  if (checker == Gsm8kChecker::kNumeric) return canonical_decimal(answer);
  return answer;
}

bool equivalent(const std::optional<std::string>& a, const std::optional<std::string>& b) {
  return a && b && *a == *b;
}

std::span<const Gsm8kShot> gsm8k_shots() {
  static constexpr std::array<Gsm8kShot, 8> kShots = {{
      {"There are 15 trees in the grove. Grove workers will plant trees in the grove today. After "
       "they are done, there will be 21 trees. How many trees did the grove workers plant today?",
       "There are 15 trees originally. Then there were 21 trees after some more were planted. So "
       "there must have been 21 - 15 = 6. The final answer is 6"},
      {"If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the "
       "parking lot?",
       "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The final answer is 5"},
      {"Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have "
       "left in total?",
       "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. "
       "After eating 35, they had 74 - 35 = 39. The final answer is 39"},
      {"Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many "
       "lollipops did Jason give to Denny?",
       "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave "
       "Denny 20 - 12 = 8. The final answer is 8"},
      {"Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many "
       "toys does he have now?",
       "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more "
       "toys. 5 + 4 = 9. The final answer is 9"},
      {"There were nine computers in the server room. Five more computers were installed each day, "
       "from monday to thursday. How many computers are now in the server room?",
       "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * "
       "4 = 20 computers were added. 9 + 20 is 29. The final answer is 29"},
      {"Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 "
       "more. How many golf balls did he have at the end of wednesday?",
       "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After "
       "losing 2 more, he had 35 - 2 = 33 golf balls. The final answer is 33"},
      {"Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
       "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has "
       "23 - 15 dollars left. 23 - 15 is 8. The final answer is 8"},
  }};
  return kShots;
}

}  // namespace lathe
