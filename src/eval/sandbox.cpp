#include "eval/sandbox.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "eval/sandbox_child.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

// Reads the program from descriptor 3 and runs it as a module. The nonce stays unread in the pipe
// until the program's last statement is done, so exit(0) cannot pass for success. os._exit: threads
// that the program left running do not hold up the verdict.
constexpr const char* kBootstrap = R"py(
import os, sys, types
def main(read=os.read, write=os.write, leave=os._exit):
    head = b""
    while not head.endswith(b"\n"):
        head += read(3, 1) or leave(70)
    left, parts = int(head), []
    while left > 0:
        parts.append(read(3, min(left, 65536)) or leave(70))
        left -= len(parts[-1])
    module = types.ModuleType("program")
    sys.modules["program"] = module
    exec(compile(b"".join(parts), "<program>", "exec"), module.__dict__)
    try:
        sys.stdout.flush()
    except Exception:
        pass
    write(4, read(3, 64))
    leave(0)
main()
)py";

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  ~Fd() { reset(); }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    reset();
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }
  void reset() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

struct Pipe {
  Fd read_end, write_end;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) fail(ErrorCode::kIo, "pipe: ", std::strerror(errno));
    read_end = Fd(ends[0]);
    write_end = Fd(ends[1]);
  }
  void do_not_block() { fcntl(read_end.get(), F_SETFL, O_NONBLOCK); }
};

[[noreturn]] void unavailable(const std::string& step, int error) {
  fail(ErrorCode::kUnsupported, "the sandbox for model-written code is not available: ", step, ": ",
       std::strerror(error),
       "; allow unprivileged user namespaces on this machine (code is never run without it)");
}

bool is_elf(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  return file.read(magic, 4) && std::memcmp(magic, "\177ELF", 4) == 0;
}

// The first python3 on PATH that is a program (version managers put scripts there).
fs::path find_interpreter(const std::string& wanted) {
  std::error_code error;
  if (!wanted.empty()) {
    const fs::path path = fs::canonical(wanted, error);
    if (error || !is_elf(path)) fail(ErrorCode::kNotFound, "'", wanted, "' is not a program");
    return path;
  }
  const char* variable = std::getenv("PATH");
  const std::string search = str("/usr/bin:", variable != nullptr ? variable : "");
  for (std::size_t begin = 0; begin < search.size();) {
    const std::size_t end = std::min(search.find(':', begin), search.size());
    const fs::path path = fs::canonical(search.substr(begin, end - begin) + "/python3", error);
    if (!error && is_elf(path)) return path;
    begin = end + 1;
  }
  fail(ErrorCode::kNotFound, "no python3 on PATH; checking code needs one: apt install python3");
}

void add_directories(SandboxTree& tree, const fs::path& path) {
  fs::path made;
  for (const fs::path& part : path) {
    made /= part;
    const std::string text = made.string();
    if (text == "/") continue;
    if (std::find(tree.directories.begin(), tree.directories.end(), text) ==
        tree.directories.end()) {
      tree.directories.push_back(text);
    }
  }
}

void add_bind(SandboxTree& tree, const fs::path& path, bool directory, bool device) {
  add_directories(tree, directory ? path : path.parent_path());
  tree.binds.push_back({path.string(), path.string(), directory, device});
}

SandboxTree plan_tree(const fs::path& interpreter) {
  SandboxTree tree;
  for (const char* name : {"/usr/lib", "/usr/lib64", "/lib", "/lib64"}) {
    const fs::path path(name);
    if (fs::is_symlink(path)) {
      tree.links.push_back({fs::read_symlink(path).string(), name});
    } else if (fs::is_directory(path)) {
      add_bind(tree, path, true, false);
    }
  }
  const fs::path prefix = interpreter.parent_path().parent_path();
  if (prefix == "/usr") {
    add_bind(tree, interpreter, false, false);
  } else if (prefix == "/") {
    add_bind(tree, interpreter.parent_path(), true, false);
  } else {  // an interpreter with a prefix of its own: its libraries are beside it
    add_bind(tree, prefix, true, false);
  }
  for (const char* device : {"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"}) {
    if (fs::exists(device)) add_bind(tree, device, false, true);
  }
  return tree;
}

bool write_proc_file(pid_t child, const char* name, const std::string& content) {
  const Fd file(open(str("/proc/", child, "/", name).c_str(), O_WRONLY | O_CLOEXEC));
  return file.get() >= 0 &&
         write(file.get(), content.data(), content.size()) == static_cast<ssize_t>(content.size());
}

// Root can map a second user, so that the program runs as nobody and counts against no one's
// process limit; others have only themselves to map. Returns the byte to start the child with.
char write_id_maps(pid_t child) {
  constexpr unsigned kNobody = 65534;
  if (geteuid() == 0) {
    const std::string both = str("0 0 1\n", kSandboxUser, " ", kNobody, " 1\n");
    if (write_proc_file(child, "gid_map", both) && write_proc_file(child, "uid_map", both)) {
      return kGoSwitchUser;
    }
  }
  if (!write_proc_file(child, "setgroups", "deny") ||
      !write_proc_file(child, "gid_map", str(kSandboxUser, " ", getegid(), " 1\n")) ||
      !write_proc_file(child, "uid_map", str(kSandboxUser, " ", geteuid(), " 1\n"))) {
    unavailable("id maps of a user namespace", errno);
  }
  return kGoKeepUser;
}

std::string make_nonce() {
  unsigned char bytes[16];
  if (getentropy(bytes, sizeof bytes) != 0) fail(ErrorCode::kIo, "no entropy");
  std::string hex;
  for (const unsigned char byte : bytes) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

// The process tree; ends with the object, whatever happens.
class Tree {
 public:
  Tree(pid_t pid, int pidfd) : pid_(pid), pidfd_(pidfd) {}
  ~Tree() {
    kill_all();
    siginfo_t info;
    // pid 1 becomes waitable only after everything else in its namespace is gone.
    while (waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED) != 0 &&
           errno == EINTR) {
    }
  }
  void kill_all() { syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0); }
  int pidfd() const { return pidfd_.get(); }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
  Fd pidfd_;
};

// Appends what there is to read. False: the end, or more than `limit`.
bool read_available(int fd, std::string& into, int64_t limit) {
  char piece[16384];
  for (;;) {
    const ssize_t count = read(fd, piece, sizeof piece);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return true;  // EAGAIN
    if (count == 0) return false;
    const auto room = static_cast<std::size_t>(limit) + 1 - into.size();
    into.append(piece, std::min(static_cast<std::size_t>(count), room));
    if (static_cast<int64_t>(into.size()) > limit) return false;
  }
}

}  // namespace

struct Sandbox::Impl {
  std::string interpreter;
  SandboxTree tree;
  std::vector<std::string> arguments, environment;

  static std::vector<char*> pointers(const std::vector<std::string>& strings) {
    std::vector<char*> result;
    for (const std::string& string : strings) result.push_back(const_cast<char*>(string.c_str()));
    result.push_back(nullptr);
    return result;
  }
};

Sandbox::Sandbox(const std::string& interpreter) : impl_(std::make_unique<Impl>()) {
  const fs::path path = find_interpreter(interpreter);
  impl_->interpreter = path.string();
  impl_->tree = plan_tree(path);
  impl_->arguments = {impl_->interpreter, "-B", "-s", "-c", kBootstrap};
  impl_->environment = {
      "PATH=/usr/bin",  "HOME=/tmp",        "TMPDIR=/tmp",       "LANG=C.UTF-8",
      "LC_ALL=C.UTF-8", "PYTHONHASHSEED=0", "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"};
  SandboxLimits limits;
  limits.wall_seconds = 30;  // a cold disk under a cold interpreter
  const SandboxResult probe = run_python("pass\n", limits);
  if (!probe.completed) {
    fail(ErrorCode::kUnsupported, "the sandbox cannot run ", impl_->interpreter, ": ",
         probe.reason());
  }
}

Sandbox::~Sandbox() = default;

const std::string& Sandbox::interpreter() const { return impl_->interpreter; }

SandboxResult Sandbox::run_python(const std::string& program, const SandboxLimits& limits) const {
  using Clock = std::chrono::steady_clock;
  Pipe output, errors, verdict, status, go;
  int sockets[2];  // a socket, since writing to it can be kept from raising SIGPIPE
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    fail(ErrorCode::kIo, "socketpair: ", std::strerror(errno));
  }
  Fd input(sockets[0]), input_of_child(sockets[1]);
  const SandboxPipes pipes = {output.write_end.get(),  errors.write_end.get(), input_of_child.get(),
                              verdict.write_end.get(), status.write_end.get(), go.read_end.get()};
  const auto argv = Impl::pointers(impl_->arguments);
  const auto environment = Impl::pointers(impl_->environment);

  int pidfd = -1;
  clone_args arguments = {};
  arguments.flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC |
                    CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_PIDFD;
  arguments.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  arguments.exit_signal = SIGCHLD;
  const auto pid = static_cast<pid_t>(syscall(SYS_clone3, &arguments, sizeof arguments));
  if (pid == 0) {
    run_sandbox_child(impl_->tree, pipes, limits, impl_->interpreter.c_str(), argv.data(),
                      environment.data());
  }
  if (pid < 0) unavailable("new namespaces", errno);
  Tree tree(pid, pidfd);
  for (Fd* end : {&output.write_end, &errors.write_end, &verdict.write_end, &status.write_end,
                  &go.read_end, &input_of_child}) {
    end->reset();
  }
  const char go_byte = write_id_maps(tree.pid());
  const auto start = Clock::now();
  if (write(go.write_end.get(), &go_byte, 1) != 1) {
    fail(ErrorCode::kInternal, "the sandbox's first process died at once");
  }

  const std::string nonce = make_nonce();
  const std::string message = str(program.size(), "\n", program, nonce);
  for (Pipe* pipe : {&output, &errors, &verdict, &status}) pipe->do_not_block();
  SandboxResult result;
  result.wall_limit = limits.wall_seconds;
  std::string verdict_text, status_text;
  struct Stream {
    int fd;
    std::string* text;
    int64_t limit;
    bool open;
  };
  Stream streams[] = {
      {output.read_end.get(), &result.output, limits.output_bytes, true},
      {errors.read_end.get(), &result.errors, limits.output_bytes, true},
      {verdict.read_end.get(), &verdict_text, 64, true},
      {status.read_end.get(), &status_text, 256, true},
  };
  bool stopped = false;  // by us
  const auto drain = [&] {
    for (Stream& stream : streams) {
      if (stream.open) stream.open = read_available(stream.fd, *stream.text, stream.limit);
      if (static_cast<int64_t>(stream.text->size()) > stream.limit) {
        stream.text->resize(static_cast<std::size_t>(stream.limit));
        result.end = SandboxResult::End::kOutputLimit;
        stopped = true;
      }
    }
  };
  std::size_t sent = 0;
  for (bool running = true; running && !stopped;) {
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    if (elapsed >= limits.wall_seconds) {
      result.end = SandboxResult::End::kTimedOut;
      stopped = true;
      break;
    }
    pollfd polls[6];
    int count = 0;
    polls[count++] = {tree.pidfd(), POLLIN, 0};
    for (const Stream& stream : streams) {
      if (stream.open) polls[count++] = {stream.fd, POLLIN, 0};
    }
    if (sent < message.size()) polls[count++] = {input.get(), POLLOUT, 0};
    const auto timeout_ms = static_cast<int>((limits.wall_seconds - elapsed) * 1000) + 1;
    poll(polls, static_cast<nfds_t>(count), timeout_ms);
    if (sent < message.size()) {
      const ssize_t written = send(input.get(), message.data() + sent, message.size() - sent,
                                   MSG_DONTWAIT | MSG_NOSIGNAL);
      if (written > 0) sent += static_cast<std::size_t>(written);
      if (written < 0 && errno != EAGAIN && errno != EINTR)
        sent = message.size();  // it stopped reading
    }
    running = (polls[0].revents & POLLIN) == 0;
    drain();  // after `running` was read: what it wrote before its end is there
  }
  result.wall_seconds = std::chrono::duration<double>(Clock::now() - start).count();
  if (stopped) return result;

  ChildReport report;
  if (status_text.size() < sizeof report) {
    fail(ErrorCode::kUnsupported,
         "the sandbox's first process died without a report; out of memory?");
  }
  std::memcpy(&report, status_text.data(), sizeof report);
  if (report.kind == ChildReport::kSetupFailed) {
    report.step[sizeof report.step - 1] = '\0';
    unavailable(report.step, report.value);
  }
  if (WIFSIGNALED(report.value)) {
    result.end = SandboxResult::End::kSignaled;
    result.code = WTERMSIG(report.value);
  } else {
    result.code = WEXITSTATUS(report.value);
    result.completed = result.code == 0 && verdict_text == nonce;
  }
  return result;
}

std::string SandboxResult::reason() const {
  switch (end) {
    case End::kTimedOut:
      return str("timed out after ", wall_limit, " s");
    case End::kOutputLimit:
      return "wrote too much output";
    case End::kSignaled:
      return code == SIGSYS ? "killed: it made a forbidden system call"
                            : str("killed by signal ", code);
    case End::kExited:
      break;
  }
  if (completed) return "ran to its end";
  if (code == 0) return "exited before its end";
  // A traceback ends with the exception.
  std::string_view last = errors;
  while (!last.empty() && (last.back() == '\n' || last.back() == ' ')) last.remove_suffix(1);
  const std::size_t newline = last.rfind('\n');
  if (newline != std::string_view::npos) last.remove_prefix(newline + 1);
  return last.empty() ? str("exit status ", code) : std::string(last.substr(0, 200));
}

}  // namespace lathe
