// How the program says that it failed: one line and an exit code.
#pragma once
#include <string>

#include "base/error.h"

namespace lathe {

enum ExitCode { kDone = 0, kFailed = 1, kUsage = 2 };
ExitCode exit_code_of(ErrorCode code);
// To standard error; one line, whatever the thing was called.
void print_failure(std::string message);

}  // namespace lathe
