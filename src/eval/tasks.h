// Tasks with checkable answers, generated in one batch by the engine: GSM8K, HumanEval, IFEval and
// the user's own.
#pragma once
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "eval/gsm8k.h"
#include "eval/humaneval.h"
#include "eval/ifeval.h"
#include "eval/prompt_maker.h"
#include "eval/user_task.h"

namespace lathe {

struct TaskItem {
  std::string id;
  std::string response;  // as generated
  std::string outcome;   // the extracted answer, why the code failed, verdicts
  std::string expected;  // gsm8k: the answer
  int64_t completion_tokens = 0;
  bool cut_off = false;  // ran into max_tokens
  bool right = false;
};

struct TaskResult {
  std::vector<TaskItem> items;
  int64_t num_right = 0;
  double accuracy = 0;
  double standard_error = 0;           // binomial
  int64_t invalid = 0;                 // items without an extractable answer
  int64_t unjudged = 0;                // of a checker that does not say what is correct; not right
  std::optional<IfevalCounts> ifeval;  // of ifeval
  int64_t completion_tokens = 0;
  double seconds = 0;  // of generation
  SpeculationUsage speculation;
};

using ItemDone = std::function<void()>;  // after each item has been generated

struct Gsm8kOptions {
  int64_t shots = 0;  // 0 to 8 worked examples
  Gsm8kChecker checker = Gsm8kChecker::kStrictThenFlexible;
  int64_t max_tokens = 1024;
};
// Greedy. Throws kInvalidArgument for a number of shots that cannot be.
TaskResult run_gsm8k(Engine& engine, const PromptMaker& make_prompt,
                     std::span<const Gsm8kItem> items, const Gsm8kOptions& options,
                     const ItemDone& done = nullptr);

struct HumanEvalOptions {
  bool chat = true;  // false: a base model completes the bare prompt
  int64_t max_tokens = 512;
};
// Greedy, pass@1. The code runs in the sandbox, one run a thread of the engine's pool.
TaskResult run_humaneval(Engine& engine, const PromptMaker& make_prompt,
                         std::span<const HumanEvalTask> tasks, const Sandbox& sandbox,
                         const HumanEvalOptions& options, Exec& exec,
                         const ItemDone& done = nullptr);

// Greedy. max_tokens of an answer. An item is right when every instruction of its prompt is
// followed strictly; its outcome has the verdict on each.
TaskResult run_ifeval(Engine& engine, const PromptMaker& make_prompt,
                      std::span<const IfevalItem> items, int64_t max_tokens,
                      const ItemDone& done = nullptr);

// Greedy. max_tokens of an answer. Throws what the checker does not bear (checker_process.h).
TaskResult run_user_task(Engine& engine, const PromptMaker& make_prompt, const UserTask& task,
                         std::span<const nlohmann::ordered_json> items, int64_t max_tokens,
                         const ItemDone& done = nullptr);

// right[i] of every item, for compare_accuracy().
std::vector<char> right_items(const TaskResult& result);

}  // namespace lathe
