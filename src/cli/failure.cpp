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
  // In one write: under mpirun others write to the same pipe.
  std::cerr << "lathe: " + message + "\n" << std::flush;
}

}  // namespace lathe
