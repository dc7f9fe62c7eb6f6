#include "eval/user_task.h"

#include <algorithm>
#include <filesystem>
#include <span>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/sha256.h"
#include "eval/json_lines.h"

namespace lathe {
namespace {

std::vector<std::string> string_list(const Json& object, const char* name,
                                     const std::string& where) {
  std::vector<std::string> list;
  const auto found = object.find(name);
  if (found == object.end()) return list;
  const bool is_good =
      found->is_array() && std::all_of(found->begin(), found->end(), [](const Json& value) {
        return value.is_string() && !value.get_ref<const std::string&>().empty();
      });
  if (!is_good) {
    fail(ErrorCode::kInvalidArgument, where, ": \"", name, "\" must be a list of texts");
  }
  for (const Json& value : *found) list.push_back(value.get<std::string>());
  return list;
}

// The role as text that outlives the item: there are three.
std::string_view role_of(const Json& message) {
  const std::string role = string_field(message, "role");
  for (const std::string_view known : {"system", "user", "assistant"}) {
    if (role == known) return known;
  }
  fail(ErrorCode::kInvalidArgument, "the role '", role, "' is none of system, user, assistant");
}

std::vector<Turn> turns_of(const Json& messages) {
  if (!messages.is_array() || messages.empty()) {
    fail(ErrorCode::kInvalidArgument, "\"messages\" must be a list of messages");
  }
  std::vector<Turn> turns;
  for (const Json& message : messages) {
    if (!message.is_object()) fail(ErrorCode::kInvalidArgument, "a message must be an object");
    turns.push_back({role_of(message), string_field(message, "content")});
  }
  return turns;
}

}  // namespace

bool names_user_task(const std::string& task) { return task.ends_with(".json"); }

UserTask load_user_task(const std::string& path) {
  const std::string text = read_text_file(path, int64_t{1} << 20);
  const Json json = parse_json(text, path);
  if (!json.is_object()) fail(ErrorCode::kInvalidArgument, path, ": must be a JSON object");
  for (const auto& [name, value] : json.items()) {
    if (name != "checker" && name != "stop" && name != "timeout") {
      fail(ErrorCode::kInvalidArgument, path, ": \"", name, "\" is none of checker, stop, timeout");
    }
  }
  UserTask task;
  task.path = path;
  task.checker = string_list(json, "checker", path);
  if (task.checker.empty()) {
    fail(ErrorCode::kInvalidArgument, path,
         ": \"checker\" must be a program and its arguments, such as [\"python3\", \"check.py\"]");
  }
  task.stop = string_list(json, "stop", path);
  if (const auto found = json.find("timeout"); found != json.end()) {
    if (!found->is_number() || !(found->get<double>() > 0 && found->get<double>() <= 3600)) {
      fail(ErrorCode::kInvalidArgument, path,
           ": \"timeout\" must be seconds, more than 0, at most 3600");
    }
    task.timeout = found->get<double>();
  }
  std::string sources = text;
  const auto directory = std::filesystem::absolute(path).parent_path();
  for (const std::string& word : task.checker) {
    std::error_code error;
    if (std::filesystem::is_regular_file(directory / word, error)) {
      sources += read_file((directory / word).string());
    }
  }
  task.sha256 = sha256_hex(std::as_bytes(std::span(sources)));
  return task;
}

std::unique_ptr<CheckerProcess> UserTask::start_checker() const {
  return std::make_unique<CheckerProcess>(
      checker, std::filesystem::absolute(path).parent_path().string(), timeout);
}

std::vector<Json> load_user_items(const std::string& path) {
  std::vector<Json> items;
  for_each_json_line(path, [&](const Json& item) {
    const bool is_object = item.is_object();
    const bool is_text = is_object && item.contains("prompt");
    if (!is_object || is_text == item.contains("messages")) {
      fail(ErrorCode::kInvalidArgument, "an item must have either \"prompt\" or \"messages\"");
    }
    if (is_text) {
      string_field(item, "prompt");
    } else {
      turns_of(item["messages"]);
    }
    items.push_back(item);
  });
  return items;
}

std::vector<int32_t> user_prompt(const Json& item, const PromptMaker& make_prompt) {
  if (item.contains("prompt")) return make_prompt({}, item["prompt"].get<std::string>());
  return make_prompt(turns_of(item["messages"]), "");
}

}  // namespace lathe
