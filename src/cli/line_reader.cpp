#include "cli/line_reader.h"

#include <editline/readline.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>

namespace lathe {
namespace {

// $XDG_STATE_HOME/lathe/chat_history; empty when there is no home.
std::string history_path() {
  namespace fs = std::filesystem;
  fs::path base;
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && *state != '\0') {
    base = state;
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    base = fs::path(home) / ".local/state";
  } else {
    return "";
  }
  std::error_code error;
  fs::create_directories(base / "lathe", error);
  return error ? "" : (base / "lathe/chat_history").string();
}

}  // namespace

LineReader::LineReader() : interactive_(isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) {
  if (!interactive_) return;
  history_file_ = history_path();
  using_history();
  stifle_history(1000);
  if (!history_file_.empty()) read_history(history_file_.c_str());
}

LineReader::~LineReader() {
  if (interactive_ && !history_file_.empty()) write_history(history_file_.c_str());
}

std::optional<std::string> LineReader::read_one(const std::string& prompt) {
  std::string line;
  if (!interactive_) {
    if (!std::getline(std::cin, line)) return std::nullopt;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    return line;
  }
  char* text = readline(prompt.c_str());
  if (text == nullptr) return std::nullopt;
  line = text;
  std::free(text);
  if (!line.empty()) add_history(line.c_str());
  return line;
}

std::optional<std::string> LineReader::read(const std::string& prompt) {
  std::optional<std::string> line = read_one(prompt);
  while (line && !line->empty() && line->back() == '\\') {
    line->back() = '\n';
    const std::optional<std::string> more = read_one("... ");
    if (!more) break;
    *line += *more;
  }
  return line;
}

}  // namespace lathe
