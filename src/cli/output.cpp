#include "cli/output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iostream>
#include <limits>

#include "base/error.h"
#include "base/json.h"

namespace lathe {

void print(std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(STDOUT_FILENO, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(ErrorCode::kIo, "cannot write to standard output: ", std::strerror(errno));
    text.remove_prefix(static_cast<std::size_t>(count));
  }
}

void print_line(std::string_view text) { print(std::string(text) + "\n"); }

void print_json(const Json& json) { print_line(dump_json(json, 1)); }

void print_warning(std::string_view text) {
  std::cerr << "lathe: " + std::string(text) + "\n" << std::flush;  // one write, as failures
}

void guard_standard_descriptors() {
  for (int descriptor = 0; descriptor <= 2; ++descriptor) {
    if (fcntl(descriptor, F_GETFD) >= 0 || errno != EBADF) continue;
    // Standard output gets it read-only: print() then reports the error.
    const int flags = descriptor == STDERR_FILENO ? O_WRONLY : O_RDONLY;
    if (open("/dev/null", flags) != descriptor) _exit(1);  // the lowest free number
  }
}

std::string read_standard_input() {
  std::string text;
  char piece[65536];
  for (;;) {
    const ssize_t count = read(STDIN_FILENO, piece, sizeof piece);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(ErrorCode::kIo, "cannot read standard input: ", std::strerror(errno));
    if (count == 0) return text;
    text.append(piece, static_cast<std::size_t>(count));
  }
}

void answer_json_lines(const std::function<Json(const Json&)>& answer) {
  std::string line;
  int64_t line_number = 0, failed = 0;
  while (std::getline(std::cin, line)) {
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    Json reply;
    try {
      reply = answer(parse_json(line, str("line ", line_number)));
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kIo || error.code() == ErrorCode::kOutOfMemory) throw;
      ++failed;
      reply = Json{{"error", error.what()}};
    }
    print_line(dump_json(reply));
  }
  if (std::cin.bad()) fail(ErrorCode::kIo, "cannot read standard input");
  if (failed > 0) {
    fail(ErrorCode::kCorruptData, failed, " of ", line_number,
         " lines failed; their answers say why");
  }
}

std::vector<int32_t> token_ids_from_json(const Json& json) {
  if (!json.is_array()) fail(ErrorCode::kInvalidArgument, "expected an array of token ids");
  std::vector<int32_t> ids;
  for (const Json& id : json) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
        id.get<int64_t>() > std::numeric_limits<int32_t>::max()) {
      fail(ErrorCode::kInvalidArgument, "not a token id: ", dump_json(id).substr(0, 40));
    }
    ids.push_back(static_cast<int32_t>(id.get<int64_t>()));
  }
  return ids;
}

}  // namespace lathe
