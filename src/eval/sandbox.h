// Runs Python that a model wrote, isolated from everything (Linux, no privileges needed).
//
// One run is one process tree in new user, mount, pid, network, ipc, uts and cgroup namespaces:
//   lathe -> pid 1 of the sandbox (ours: sets up, waits, reports) -> the interpreter
// Files: the interpreter and the system libraries, read-only; a private 64 MiB /tmp; four devices;
// no /proc, no /etc, no home. No capabilities, no_new_privs, a seccomp allow-list, resource limits,
// an empty environment. When pid 1 ends, or the wall clock runs out, the kernel kills the whole
// tree, daemonised grandchildren included, before run_python() returns.
//
// What it does not give: HumanEval's tests run in the process of the code they test, so a program
// that looks for its own harness can claim to have passed. It cannot reach anything else.
// Memory is limited per process (RLIMIT_AS) and marked first for the OOM killer, not as a tree.
//
// Where the kernel refuses any part, the constructor throws kUnsupported: nothing runs unsandboxed.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

namespace lathe {

struct SandboxLimits {
  double wall_seconds = 3;                  // of the whole tree; then SIGKILL
  int64_t memory_bytes = int64_t{4} << 30;  // address space of a process
  int64_t file_bytes = int64_t{16} << 20;   // one file
  int64_t output_bytes = int64_t{1} << 20;  // stdout and stderr each; more ends the run
  int64_t processes = 32;
  int64_t open_files = 64;
};

struct SandboxResult {
  enum class End { kExited, kSignaled, kTimedOut, kOutputLimit };
  End end = End::kExited;
  int code = 0;            // exit status, or the signal
  bool completed = false;  // exit status 0 behind the program's last statement: exit(0) before it
                           // does not count
  std::string output;      // stdout, stderr: what was read, at most output_bytes each
  std::string errors;
  double wall_seconds = 0;
  double wall_limit = 0;

  // One line for people: "AssertionError", "timed out after 3 s", "killed by signal 31", ...
  std::string reason() const;
};

class Sandbox {
 public:
  // Looks for python3 (on PATH; `interpreter` overrides), prepares the file tree and runs an empty
  // program once. Throws kNotFound without an interpreter, kUnsupported (naming the step) where the
  // kernel or a container refuses isolation.
  explicit Sandbox(const std::string& interpreter = "");
  ~Sandbox();
  Sandbox(const Sandbox&) = delete;
  Sandbox& operator=(const Sandbox&) = delete;

  // Runs `program` (Python source) as a module of its own, stdin empty. Safe to call from several
  // threads at once. Throws kUnsupported or kIo when the sandbox cannot be set up, never because of
  // what the program does.
  SandboxResult run_python(const std::string& program, const SandboxLimits& limits) const;

  const std::string& interpreter() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lathe
