// What `lathe eval` was asked to do, and its tasks that generate answers.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "cli/draft_flags.h"
#include "cli/flags.h"
#include "cli/loaded_model.h"
#include "eval/passkey.h"
#include "eval/windows.h"

namespace lathe {

struct EvalFlags {
  CommonFlags common;
  ModelFlags model;
  std::string task;
  std::vector<std::string> paths;
  std::string reference;
  std::vector<std::string> caches;  // names of --kv, files of codecs
  std::string data;
  WindowOptions windows = {.seq_len = 2048, .max_windows = 0};
  int64_t limit = 0;
  int64_t max_tokens = 0;  // 0: the task's
  int64_t shots = 0;
  int64_t batch = 16;
  std::string checker = "gsm8k-strict-then-flexible";
  std::string items_file;
  DraftFlags draft;
  int64_t chunk = 0;  // perplexity, kld, passkey: positions computed at once; 0: as in decoding
  PasskeyOptions passkey;
  // Options of some tasks alone, and which: "gsm8k, humaneval". The command's own.
  std::vector<std::pair<const CLI::Option*, const char*>> task_options;
};

// The result as eval prints it. Throws kInvalidArgument for a file without items.
nlohmann::ordered_json eval_passkey(const EvalFlags& flags, Exec& exec);
nlohmann::ordered_json eval_gsm8k(const EvalFlags& flags, Exec& exec);
nlohmann::ordered_json eval_humaneval(const EvalFlags& flags, Exec& exec);
nlohmann::ordered_json eval_ifeval(const EvalFlags& flags, Exec& exec);
nlohmann::ordered_json eval_user_task(const EvalFlags& flags, Exec& exec);

}  // namespace lathe
