// GSM8K: prompts, answer extraction and comparison.
// Sources: Cobbe et al. 2021 (the task, the "#### " answer line); Wei et al. 2022 (the eight
// chain-of-thought examples); the public `gsm8k_cot_llama` evaluation (prompt wording, the two
// extraction patterns, the normalisation), which published numbers of Llama and Qwen follow.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

struct Gsm8kItem {
  std::string question;
  std::string answer;  // the worked solution; ends with "#### 18"
};

// From JSON lines, plain or gzip. Throws kCorruptData naming file and line.
std::vector<Gsm8kItem> load_gsm8k(const std::string& path);

// What a user turn asks for one question.
std::string gsm8k_prompt(std::string_view question);
// Worked examples to put before the question, as (user, assistant) turns.
struct Gsm8kShot {
  std::string_view question;
  std::string_view answer;  // ends with "The final answer is N"
};
std::span<const Gsm8kShot> gsm8k_shots();  // eight
// Where a response ends, besides the model's own end token.
std::span<const std::string_view> gsm8k_stop_strings();

enum class Gsm8kChecker {
  kStrictThenFlexible,  // strict pattern; where it finds nothing, the last number of the text
  kStrict,              // only after "The final answer is"
  kNumeric,             // as the first, compared as exact decimals: 72 = 72.0 = 72.00
};
// "gsm8k-strict-then-flexible", "gsm8k-strict", "numeric". Throws kInvalidArgument listing them.
Gsm8kChecker gsm8k_checker_from_name(std::string_view name);
inline constexpr int kGsm8kCheckerVersion = 1;  // goes into keys of cached verdicts

// The last match of  The final answer is ((-?[$0-9.,]{2,})|(-?[0-9]+)),  its number part.
std::optional<std::string> extract_strict(std::string_view text);
// The last match of  (-?[$0-9.,]{2,})|(-?[0-9]+).
// Both: leftmost, first alternative preferred, non-overlapping, then the last of them.
std::optional<std::string> extract_flexible(std::string_view text);

// Case-folded, without "," and "$", anything up to the last "#### ", and one trailing ".".
std::string normalize_answer(std::string_view answer);
// Canonical form of a decimal ("72.00" -> "72", "-0" -> "0", ".50" -> "0.5"); nullopt: not one.
std::optional<std::string> canonical_decimal(std::string_view text);

// The outcome of a response under a checker; nullopt: invalid (nothing that could be an answer).
std::optional<std::string> gsm8k_outcome(Gsm8kChecker checker, std::string_view response);
// The outcome that the answer field stands for (what follows its last "#### ").
std::optional<std::string> gsm8k_gold(Gsm8kChecker checker, std::string_view answer_field);
// Invalid is equivalent to nothing, not even to invalid.
bool equivalent(const std::optional<std::string>& a, const std::optional<std::string>& b);

}  // namespace lathe
