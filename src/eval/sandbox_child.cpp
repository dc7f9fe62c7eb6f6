#include "eval/sandbox_child.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "eval/sandbox.h"
#include "eval/sandbox_seccomp.h"

namespace lathe {
namespace {

// Where the pipes lie from here on. 0 to 4 are the program's.
enum Descriptor { kInput = 3, kVerdict = 4, kStatus = 5, kGo = 6 };

[[noreturn]] void setup_failed(const char* step, int error) {
  ChildReport report = {ChildReport::kSetupFailed, error, {}};
  std::strncpy(report.step, step, sizeof report.step - 1);
  // A pipe takes so few bytes whole or not at all; with the parent gone nobody wants them.
  [[maybe_unused]] const ssize_t written = write(kStatus, &report, sizeof report);
  _exit(1);
}

void require(bool ok, const char* step) {
  if (!ok) setup_failed(step, errno);
}

void place_descriptors(const SandboxPipes& pipes) {
  const int null = open("/dev/null", O_RDONLY);
  int ends[] = {null,          pipes.output, pipes.errors, pipes.input,
                pipes.verdict, pipes.status, pipes.go};
  constexpr int kCount = 7;
  for (int& end : ends) {  // out of the way first: one may lie where another belongs
    end = fcntl(end, F_DUPFD, kCount);
    if (end < 0) _exit(1);
  }
  for (int i = 0; i < kCount; ++i) {
    if (dup3(ends[i], i, i >= kStatus ? O_CLOEXEC : 0) < 0) _exit(1);
  }
  syscall(SYS_close_range, kCount, ~0u, 0);  // above all, the pipes of other runs
}

void reset_signals() {
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  for (int number = 1; number < 65; ++number) sigaction(number, &action, nullptr);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

// Paths behind a mount point, joined on the stack.
struct Path {
  char text[4200];
  Path(const char* prefix, const char* rest) {
    const std::size_t prefix_length = std::strlen(prefix);
    const std::size_t rest_length = std::strlen(rest);
    if (prefix_length + rest_length >= sizeof text) setup_failed("path", ENAMETOOLONG);
    std::memcpy(text, prefix, prefix_length);
    std::memcpy(text + prefix_length, rest, rest_length + 1);
  }
};

void set_mount_flags(const char* path, uint64_t flags, unsigned at_flags, const char* step) {
  mount_attr attributes = {};
  attributes.attr_set = flags;
  require(syscall(SYS_mount_setattr, AT_FDCWD, path, at_flags, &attributes, sizeof attributes) == 0,
          step);
}

// A tmpfs takes the place of the root twice: first to see the old root at /old from outside of it,
// then to leave /old behind.
void build_file_tree(const SandboxTree& tree) {
  require(mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) == 0, "private mounts");
  require(mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755") == 0, "tmpfs");
  require(mkdir("/tmp/old", 0755) == 0 && mkdir("/tmp/new", 0755) == 0, "mkdir");
  require(mount("/tmp/new", "/tmp/new", nullptr, MS_BIND, nullptr) == 0, "bind of the new root");
  require(syscall(SYS_pivot_root, "/tmp", "/tmp/old") == 0, "pivot_root");
  require(chdir("/") == 0, "chdir");

  require(mkdir("/new/tmp", 0755) == 0, "mkdir /tmp");
  require(mount("tmpfs", "/new/tmp", "tmpfs", MS_NOSUID | MS_NODEV,
                "size=64m,nr_inodes=4096,mode=1777") == 0,
          "tmpfs on /tmp");
  for (const std::string& directory : tree.directories) {
    const Path path("/new", directory.c_str());
    require(mkdir(path.text, 0755) == 0 || errno == EEXIST, directory.c_str());
  }
  for (const SandboxTree::Bind& bind : tree.binds) {
    const Path source("/old", bind.source.c_str());
    const Path target("/new", bind.target.c_str());
    if (!bind.directory) {
      const int file = open(target.text, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
      require(file >= 0, bind.target.c_str());
      close(file);
    }
    require(mount(source.text, target.text, nullptr, MS_BIND | MS_REC, nullptr) == 0,
            bind.target.c_str());
    const uint64_t flags = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID |
                           (bind.device ? MOUNT_ATTR_NOEXEC : MOUNT_ATTR_NODEV);
    set_mount_flags(target.text, flags, AT_RECURSIVE, "mount_setattr (Linux 5.12)");
  }
  for (const SandboxTree::Link& link : tree.links) {
    const Path path("/new", link.path.c_str());
    require(symlink(link.target.c_str(), path.text) == 0, link.path.c_str());
  }
  require(chdir("/new") == 0, "chdir");
  require(syscall(SYS_pivot_root, ".", ".") == 0, "second pivot_root");
  require(umount2(".", MNT_DETACH) == 0, "umount of the old root");
  set_mount_flags("/", MOUNT_ATTR_RDONLY, 0, "read-only root");
  require(chdir("/tmp") == 0, "chdir /tmp");
}

// Raw calls: the C library's setresuid() would wait for threads that this copy does not have.
void drop_privileges(bool switch_user) {
  for (int capability = 0; capability < 64; ++capability) {
    if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EINVAL) {
      setup_failed("capability bounding set", errno);
    }
  }
  require(
      prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
                                   SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED) == 0,
      "securebits");
  if (switch_user) {
    require(syscall(SYS_setgroups, 0, nullptr) == 0, "setgroups");
    require(syscall(SYS_setresgid, kSandboxUser, kSandboxUser, kSandboxUser) == 0, "setresgid");
    require(syscall(SYS_setresuid, kSandboxUser, kSandboxUser, kSandboxUser) == 0, "setresuid");
  }
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[2] = {};
  require(syscall(SYS_capset, &header, none) == 0, "capset");
  require(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
  require(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, "not dumpable");
}

void set_limit(__rlimit_resource resource, int64_t value, const char* name) {
  rlimit limit = {static_cast<rlim_t>(value), static_cast<rlim_t>(value)};
  rlimit current;
  // A lower limit that somebody else set stays.
  if (getrlimit(resource, &current) == 0 && current.rlim_max < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max = current.rlim_max;
  }
  require(setrlimit(resource, &limit) == 0, name);
}

void set_limits(const SandboxLimits& limits) {
  set_limit(RLIMIT_CPU, static_cast<int64_t>(limits.wall_seconds) + 2, "RLIMIT_CPU");
  set_limit(RLIMIT_FSIZE, limits.file_bytes, "RLIMIT_FSIZE");
  set_limit(RLIMIT_NPROC, limits.processes, "RLIMIT_NPROC");
  set_limit(RLIMIT_NOFILE, limits.open_files, "RLIMIT_NOFILE");
  set_limit(RLIMIT_CORE, 0, "RLIMIT_CORE");
  set_limit(RLIMIT_STACK, int64_t{64} << 20, "RLIMIT_STACK");
  set_limit(RLIMIT_AS, limits.memory_bytes, "RLIMIT_AS");
}

}  // namespace

void run_sandbox_child(const SandboxTree& tree, const SandboxPipes& pipes,
                       const SandboxLimits& limits, const char* interpreter, char* const* argv,
                       char* const* environment) {
  place_descriptors(pipes);
  char go = 0;
  if (read(kGo, &go, 1) != 1) _exit(1);  // the parent is gone, or could not write the id maps
  reset_signals();
  require(setsid() >= 0, "setsid");
  const int oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (oom >= 0) {  // best effort: if memory runs out, this tree goes first
    [[maybe_unused]] const ssize_t written = write(oom, "1000", 4);
    close(oom);
  }
  build_file_tree(tree);
  drop_privileges(go == kGoSwitchUser);
  // After the change of user, which clears it. If the parent died before, its end of the pipe is
  // closed.
  require(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0, "parent death signal");
  pollfd parent = {kGo, 0, 0};
  if (poll(&parent, 1, 0) != 0) _exit(1);
  close(kGo);
  const int filter_error = install_sandbox_filter();
  if (filter_error != 0) setup_failed("seccomp", filter_error);

  const auto program =
      static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, 0));
  require(program >= 0, "clone");
  if (program == 0) {
    set_limits(limits);
    execve(interpreter, argv, environment);
    setup_failed("exec", errno);
  }
  for (int descriptor = 0; descriptor < kStatus; ++descriptor) close(descriptor);
  for (;;) {  // pid 1 also reaps what the program leaves behind
    int status = 0;
    const pid_t ended = wait4(-1, &status, 0, nullptr);
    if (ended != program) {
      if (ended < 0 && errno != EINTR) _exit(1);
      continue;
    }
    const ChildReport report = {ChildReport::kProgramEnded, status, {}};
    [[maybe_unused]] const ssize_t written = write(kStatus, &report, sizeof report);
    _exit(0);  // and the kernel kills whatever is left in the namespace
  }
}

}  // namespace lathe
