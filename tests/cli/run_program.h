// Runs the built program as a user does.
#pragma once
#include <string>
#include <vector>

namespace lathe {

struct ProgramResult {
  int exit_code = -1;  // 128 + signal when it was killed
  std::string out, err;
};

// $LATHE_BINARY with these arguments; standard input holds `input`.
ProgramResult run_lathe(const std::vector<std::string>& arguments, const std::string& input = "");
// A shell command line in which "$LATHE" is the program: for redirections.
ProgramResult run_shell(const std::string& command);

// A directory that is removed with its content at the end of the test program.
std::string temporary_directory();

}  // namespace lathe
