// IFEval (Zhou et al. 2023, arXiv 2311.07911): prompts with instructions that a program can check.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "eval/ifeval_checks.h"

namespace lathe {

// Room for an answer, as in the published evaluations with lm-eval.
inline constexpr int64_t kIfevalMaxTokens = 1280;

struct IfevalItem {
  std::string key;
  std::string prompt;
  std::vector<IfevalInstruction> instructions;  // at least one
};

// From JSON lines, plain or gzip, with key, prompt, instruction_id_list and kwargs. Throws
// kCorruptData (a language that cannot be detected: kUnsupported) naming file and line.
std::vector<IfevalItem> load_ifeval(const std::string& path);

// By instruction, in the item's order.
struct IfevalVerdict {
  std::vector<char> strict;  // the response follows it
  // The response does, or does without its first line, its last line or both, or any of those four
  // does without its stars (a greeting, a closing question and markdown are forgiven).
  std::vector<char> loose;
};
// Bytes that are no UTF-8 become U+FFFD first. A blank response follows nothing.
IfevalVerdict check_ifeval(const IfevalItem& item, std::string_view response);

// "punctuation:no_comma=strict keywords:existence=loose startend:quotation=no".
std::string to_string(const IfevalItem& item, const IfevalVerdict& verdict);

// Of many items. A prompt is followed when all its instructions are.
struct IfevalCounts {
  int64_t prompts = 0;
  int64_t strict_prompts = 0;
  int64_t loose_prompts = 0;
  int64_t instructions = 0;
  int64_t strict_instructions = 0;
  int64_t loose_instructions = 0;

  void add(const IfevalVerdict& verdict);
};

}  // namespace lathe
