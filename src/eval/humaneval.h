// HumanEval (Chen et al. 2021): 164 Python functions to complete, each with its tests.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/sandbox.h"

namespace lathe {

struct HumanEvalTask {
  std::string task_id;
  std::string prompt;       // imports, signature and docstring
  std::string entry_point;  // the function's name
  std::string canonical_solution;
  std::string test;  // defines check(candidate)
};

// From JSON lines, plain or gzip. Throws kCorruptData naming file and line.
std::vector<HumanEvalTask> load_humaneval(const std::string& path);

// A completion ends at the first of these: newline + "class", "def", "#", "if", "print".
std::span<const std::string_view> humaneval_stop_strings();
// Cuts at the first stop string; for the answer of a chat model, which sits in a code fence, at the
// closing "```" as well.
std::string cut_completion(std::string_view completion, bool in_code_fence);

// The user turn for a chat model, and how its answer is begun for it (so that what follows is a
// completion of the prompt, as for a base model).
std::string humaneval_user_turn(const HumanEvalTask& task);
std::string humaneval_answer_prefix(const HumanEvalTask& task);

// prompt + completion + tests + check(entry_point).
std::string assemble_program(const HumanEvalTask& task, std::string_view cut_completion);

inline constexpr double kHumanEvalSeconds = 3;
struct Verdict {
  bool passed = false;
  std::string reason;  // "passed", "AssertionError", "timed out after 3 s", ...
};
// Runs assemble_program(...) in the sandbox.
Verdict check_completion(const HumanEvalTask& task, std::string_view cut_completion,
                         const Sandbox& sandbox);

}  // namespace lathe
