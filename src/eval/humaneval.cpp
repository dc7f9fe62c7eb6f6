#include "eval/humaneval.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "eval/json_lines.h"

namespace lathe {

std::vector<HumanEvalTask> load_humaneval(const std::string& path) {
  std::vector<HumanEvalTask> tasks;
  for_each_json_line(path, [&](const Json& line) {
    tasks.push_back({string_field(line, "task_id"), string_field(line, "prompt"),
                     string_field(line, "entry_point"), string_field(line, "canonical_solution"),
                     string_field(line, "test")});
  });
  return tasks;
}

std::span<const std::string_view> humaneval_stop_strings() {
  static constexpr std::string_view kStops[] = {"\nclass", "\ndef", "\n#", "\nif", "\nprint"};
  return kStops;
}

std::string cut_completion(std::string_view completion, bool in_code_fence) {
  std::size_t end = completion.size();
  for (const std::string_view stop : humaneval_stop_strings()) {
    end = std::min(end, completion.find(stop));
  }
  if (in_code_fence) end = std::min(end, completion.find("```"));
  return std::string(completion.substr(0, end));
}

std::string humaneval_user_turn(const HumanEvalTask& task) {
  return str(
      "Write a solution to the following problem and make sure that it passes the tests:\n"
      "```python\n",
      task.prompt, "\n```\n");
}

std::string humaneval_answer_prefix(const HumanEvalTask& task) {
  return str("Here is the completed function:\n```python\n", task.prompt);
}

std::string assemble_program(const HumanEvalTask& task, std::string_view completion) {
  return str(task.prompt, completion, "\n", task.test, "\ncheck(", task.entry_point, ")\n");
}

Verdict check_completion(const HumanEvalTask& task, std::string_view completion,
                         const Sandbox& sandbox) {
  SandboxLimits limits;
  limits.wall_seconds = kHumanEvalSeconds;
  const SandboxResult result = sandbox.run_python(assemble_program(task, completion), limits);
  return {result.completed, result.completed ? "passed" : result.reason()};
}

}  // namespace lathe
