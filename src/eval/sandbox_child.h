// The inside of the sandbox, between clone3 and exec: a single thread in a copy of a process that
// had more of them, so locks may be held for ever. Nothing here allocates or calls into the C
// library beyond thin system-call wrappers; what it needs is prepared before the clone.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lathe {

// The file tree, planned by the parent. Paths are absolute and free of symbolic links.
struct SandboxTree {
  struct Bind {
    std::string source;
    std::string target;
    bool directory;
    bool device;
  };
  struct Link {
    std::string target;
    std::string path;
  };
  std::vector<std::string> directories;  // to make, parents first
  std::vector<Bind> binds;               // read-only
  std::vector<Link> links;               // symbolic
};

struct SandboxLimits;

// Descriptors of the child's ends, any numbers.
struct SandboxPipes {
  int output, errors;  // write
  int input;           // read: the program, then the nonce that stands for its end
  int verdict;         // write
  int status;          // write: ChildReport
  int go;              // read: one byte when the id maps are written
};

inline constexpr char kGoSwitchUser = 's';  // started by root: become the unprivileged user
inline constexpr char kGoKeepUser = 'k';

struct ChildReport {
  enum Kind : int32_t { kSetupFailed, kProgramEnded };
  int32_t kind;
  int32_t value;  // errno, or the wait status
  char step[56];  // of the setup
};

inline constexpr unsigned kSandboxUser = 1000;  // inside

// Never returns. argv and environment are null-terminated.
[[noreturn]] void run_sandbox_child(const SandboxTree& tree, const SandboxPipes& pipes,
                                    const SandboxLimits& limits, const char* interpreter,
                                    char* const* argv, char* const* environment);

}  // namespace lathe
