#include "eval/checker_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include "base/error.h"
#include "base/json.h"
#include "base/json_member.h"

extern char** environ;

namespace lathe {
namespace {

constexpr std::size_t kMaxLineBytes = std::size_t{1} << 20;
constexpr off_t kMaxErrorBytes = off_t{1} << 20;

void close_one(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

}  // namespace

CheckerVerdict parse_checker_line(const std::string& line) {
  const Json json = parse_json(line, "the checker's answer");
  if (!json.is_object() || (!json.contains("outcome") && !json.contains("correct"))) {
    fail(ErrorCode::kInvalidArgument,
         "the checker's answer must be an object with \"outcome\" or \"correct\"");
  }
  CheckerVerdict verdict;
  if (const Json* correct = member(json, "correct")) {
    if (!correct->is_boolean()) {
      fail(ErrorCode::kInvalidArgument, "the checker's \"correct\" must be true or false");
    }
    verdict.correct = correct->get<bool>();
  }
  if (!json.contains("outcome")) {
    if (verdict.correct) verdict.outcome = *verdict.correct ? "correct" : "wrong";
    return verdict;
  }
  if (const Json* outcome = member(json, "outcome")) {
    if (!outcome->is_string()) {
      fail(ErrorCode::kInvalidArgument, "the checker's \"outcome\" must be a string or null");
    }
    verdict.outcome = outcome->get<std::string>();
  }
  return verdict;
}

CheckerProcess::CheckerProcess(std::vector<std::string> command, std::string directory,
                               double seconds)
    : command_(std::move(command)), directory_(std::move(directory)), seconds_(seconds) {}

CheckerProcess::~CheckerProcess() { stop(); }

void CheckerProcess::start() {
  int input[2], output[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, input) != 0) {
    fail(ErrorCode::kIo, "no socket for the checker: ", std::strerror(errno));
  }
  if (pipe2(output, O_CLOEXEC) != 0) {
    const int error = errno;
    close(input[0]);
    close(input[1]);
    fail(ErrorCode::kIo, "no pipe for the checker: ", std::strerror(error));
  }
  input_ = input[0];
  output_ = output[0];
  errors_ = memfd_create("checker-stderr", MFD_CLOEXEC);
  fcntl(output_, F_SETFL, O_NONBLOCK);
  fcntl(errors_, F_SETFL, O_APPEND);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addchdir_np(&actions, directory_.c_str());
  posix_spawn_file_actions_adddup2(&actions, input[1], 0);
  posix_spawn_file_actions_adddup2(&actions, output[1], 1);
  if (errors_ >= 0) posix_spawn_file_actions_adddup2(&actions, errors_, 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);  // of its own, to be killed whole
  posix_spawnattr_setpgroup(&attributes, 0);
  std::vector<char*> arguments;
  for (std::string& word : command_) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const int error =
      posix_spawnp(&pid_, arguments[0], &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  close(input[1]);
  close(output[1]);
  if (error == 0) return;
  pid_ = -1;
  stop();
  fail(ErrorCode::kNotFound, "the checker ", command_[0], " cannot be started in ", directory_,
       ": ", std::strerror(error));
}

void CheckerProcess::stop() {
  close_one(input_);
  close_one(output_);
  if (pid_ > 0) {
    kill(-pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  pid_ = -1;
  close_one(errors_);
  unread_.clear();
}

// Sends while it can be sent and reads while there is something, so that neither waits for the
// other.
CheckerProcess::Reading CheckerProcess::exchange(const std::string& request, std::string& line) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(seconds_));
  std::size_t sent = 0;
  for (;;) {
    const std::size_t end = unread_.find('\n');
    if (end != std::string::npos) {
      line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return Reading::kLine;
    }
    if (unread_.size() > kMaxLineBytes) {
      fail(ErrorCode::kInvalidArgument, "the checker's answer is a line of more than ",
           kMaxLineBytes, " bytes");
    }
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return Reading::kTimeout;
    pollfd fds[2] = {{output_, POLLIN, 0}, {input_, POLLOUT, 0}};
    const nfds_t count = sent < request.size() ? 2 : 1;
    if (poll(fds, count, static_cast<int>(left)) < 0 && errno != EINTR) {
      fail(ErrorCode::kIo, "waiting for the checker: ", std::strerror(errno));
    }
    if (count == 2 && fds[1].revents != 0) {
      const ssize_t n =
          send(input_, request.data() + sent, request.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0) sent += static_cast<std::size_t>(n);
      // One that does not read may still have answered.
      if (n < 0 && errno != EAGAIN && errno != EINTR) sent = request.size();
    }
    if (fds[0].revents == 0) continue;
    char piece[4096];
    const ssize_t n = read(output_, piece, sizeof piece);
    if (n > 0) unread_.append(piece, static_cast<std::size_t>(n));
    if (n == 0) {
      line = std::move(unread_);  // a last line without its end
      unread_.clear();
      return line.empty() ? Reading::kEnd : Reading::kLine;
    }
  }
}

std::string CheckerProcess::last_words() {
  char text[2000];
  const off_t size = errors_ < 0 ? 0 : lseek(errors_, 0, SEEK_END);
  const auto wanted = std::min<off_t>(size, sizeof text);
  const ssize_t n = wanted > 0 ? pread(errors_, text, sizeof text, size - wanted) : 0;
  std::string words(text, n > 0 ? static_cast<std::size_t>(n) : 0);
  while (!words.empty() && (words.back() == '\n' || words.back() == ' ')) words.pop_back();
  const std::size_t begin = words.rfind('\n');
  return begin == std::string::npos ? words : words.substr(begin + 1);
}

CheckerVerdict CheckerProcess::check(const Json& item, const std::string& response) {
  const std::lock_guard lock(mutex_);
  const std::string request = dump_json({{"item", item}, {"response", response}}) + "\n";
  std::string line;
  // One that ended behind its last answer is noticed only now, when it gives none to this request.
  for (const bool is_new : {pid_ < 0, true}) {
    if (pid_ < 0) start();
    if (!unread_.empty()) {
      fail(ErrorCode::kInvalidArgument, "the checker ", command_[0],
           " answered with more than one line");
    }
    if (errors_ >= 0 && lseek(errors_, 0, SEEK_END) > kMaxErrorBytes) (void)!ftruncate(errors_, 0);
    const Reading reading = exchange(request, line);
    if (reading == Reading::kLine) return parse_checker_line(line);
    if (reading == Reading::kTimeout) {
      stop();
      return {.outcome = std::nullopt, .correct = false};
    }
    const std::string words = last_words();
    stop();
    if (!is_new) continue;
    fail(ErrorCode::kInvalidArgument, "the checker ", command_[0], " ended without an answer",
         words.empty() ? "" : ": ", words);
  }
  fail(ErrorCode::kInternal, "the checker was started twice");
}

}  // namespace lathe
