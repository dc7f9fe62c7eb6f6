// Questions and checker that a judge is mined on.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/loaded_model.h"
#include "compress/judge_miner.h"
#include "eval/humaneval.h"
#include "eval/user_task.h"

namespace lathe {

struct JudgeTaskFlags {
  std::string name;  // gsm8k, humaneval, or a file TASK.json
  std::string data;
  std::string checker = "gsm8k-strict-then-flexible";
  int64_t questions = 0;  // the first so many; 0: all
};

// What the labels depend on besides models and questions.
std::string judge_checker_name(const JudgeTaskFlags& flags);

class JudgeTask {
 public:
  // Throws for an unknown task, a checker that is none, and files that are wrong or empty.
  JudgeTask(const JudgeTaskFlags& flags, const LoadedModel& target);
  JudgeTask(const JudgeTask&) = delete;  // the checker refers to it
  JudgeTask& operator=(const JudgeTask&) = delete;
  const MiningTask& mining() const { return mining_; }

 private:
  void use_gsm8k(const JudgeTaskFlags& flags, const PromptMaker& make_prompt);
  void use_humaneval(const JudgeTaskFlags& flags, const PromptMaker& make_prompt, bool chat);
  void use_file(const JudgeTaskFlags& flags, const PromptMaker& make_prompt);

  MiningTask mining_;
  std::optional<Sandbox> sandbox_;
  std::vector<HumanEvalTask> humaneval_;
  std::vector<nlohmann::ordered_json> items_;
  std::unique_ptr<CheckerProcess> checker_;
};

}  // namespace lathe
