// The system calls a sandboxed program may make (seccomp-BPF, by hand; x86-64 and aarch64).
#pragma once

namespace lathe {

// Installs the filter for the calling thread and what it starts; no_new_privs must be set. An
// allow-list: what is on it runs, what could reach out of the sandbox kills the process (SIGSYS),
// anything else fails with ENOSYS, which libraries take as "older kernel". Returns 0 or errno.
// Does not allocate.
int install_sandbox_filter();

}  // namespace lathe
