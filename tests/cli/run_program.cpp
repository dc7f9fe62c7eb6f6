#include "cli/run_program.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/atomic_file.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

std::string quoted(const std::string& argument) {
  std::string text = "'";
  for (const char c : argument) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

std::string temporary_directory() {
  static int count = 0;
  struct Directory {
    fs::path path = fs::temp_directory_path() / ("lathe-cli-test-" + std::to_string(getpid()));
    ~Directory() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  };
  static const Directory root;
  const fs::path path = root.path / std::to_string(++count);
  fs::create_directories(path);
  return path.string();
}

ProgramResult run_shell(const std::string& command) {
  static const std::string scratch = temporary_directory();
  const char* binary = std::getenv("LATHE_BINARY");
  const std::string line = "LATHE=" + quoted(binary != nullptr ? binary : "build/release/lathe") +
                           "; { " + command + "\n} > " + quoted(scratch + "/out") + " 2> " +
                           quoted(scratch + "/err");
  const int status = std::system(line.c_str());
  ProgramResult result;
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = slurp(scratch + "/out");
  result.err = slurp(scratch + "/err");
  return result;
}

ProgramResult run_lathe(const std::vector<std::string>& arguments, const std::string& input) {
  static const std::string scratch = temporary_directory();
  write_file_atomically(scratch + "/in", input);
  std::string command = "\"$LATHE\"";
  for (const std::string& argument : arguments) command += " " + quoted(argument);
  return run_shell(command + " < " + quoted(scratch + "/in"));
}

}  // namespace lathe
