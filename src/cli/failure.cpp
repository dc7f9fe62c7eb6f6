#include "cli/failure.h"

#include <iostream>

namespace lathe {

ExitCode exit_code_of(ErrorCode code) {
  return code == ErrorCode::kInvalidArgument ? kUsage : kFailed;
}

void print_failure(std::string message) {
  for (char& c : message) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  std::cerr << "lathe: " << message << std::endl;
}

}  // namespace lathe
