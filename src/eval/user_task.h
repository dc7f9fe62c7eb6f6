// A task of the user's own: a JSON file that names a checker, and items as JSON lines.
//
//   {"checker": ["python3", "check.py"], "stop": ["\n\n"], "timeout": 10}
// runs in the file's directory (checker_process.h has what it reads and answers). Only `checker` is
// needed.
//   {"messages": [{"role": "user", "content": "..."}], ...}    a conversation to answer
//   {"prompt": "...", ...}                                     a text to continue as it is
// Whatever else an item has is for its checker.
#pragma once
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "eval/checker_process.h"
#include "eval/prompt_maker.h"

namespace lathe {

struct UserTask {
  std::string path;
  std::vector<std::string> checker;
  std::vector<std::string> stop;  // where a response ends, besides end tokens
  double timeout = 10;            // seconds of one answer's check
  std::string sha256;             // of the file and of the files that `checker` names

  std::unique_ptr<CheckerProcess> start_checker() const;
};
// Whether --task or eval's TASK names a file rather than a task of ours.
bool names_user_task(const std::string& task);
// Throws kNotFound, kIo, kCorruptData (no JSON) or kInvalidArgument naming the field.
UserTask load_user_task(const std::string& path);

// Throws kCorruptData or kInvalidArgument naming file and line.
std::vector<nlohmann::ordered_json> load_user_items(const std::string& path);
std::vector<int32_t> user_prompt(const nlohmann::ordered_json& item,
                                 const PromptMaker& make_prompt);

}  // namespace lathe
