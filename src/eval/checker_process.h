// A checker of the user's own: a program that reads answers and says what they come to.
//
// One line of JSON in, one line of JSON out:
//   in    {"item": {...}, "response": "..."}           the item as its file has it
//   out   {"outcome": "42", "correct": true}           either may be missing or null
// `outcome` is what a judge's mining compares; null: the response holds no answer. Where it is
// missing, the outcome is "correct" or "wrong". The program may answer line after line, or end
// behind each answer; it is then started anew. It runs with the caller's rights, in no sandbox.
#pragma once
#include <sys/types.h>

#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace lathe {

struct CheckerVerdict {
  std::optional<std::string> outcome;
  std::optional<bool> correct;  // nullopt: the checker does not say
};

class CheckerProcess {
 public:
  // command: program (looked for on PATH) and arguments; directory: where it runs; seconds: for one
  // answer. Nothing is started yet.
  CheckerProcess(std::vector<std::string> command, std::string directory, double seconds);
  ~CheckerProcess();  // kills it with its process group
  CheckerProcess(const CheckerProcess&) = delete;
  CheckerProcess& operator=(const CheckerProcess&) = delete;

  // From any thread, one at a time. A checker that takes too long has found no answer. Throws
  // kNotFound (it cannot be started), kInvalidArgument (it ends without an answer, with the last
  // line of its stderr, or answers something else), kIo.
  CheckerVerdict check(const nlohmann::ordered_json& item, const std::string& response);

 private:
  enum class Reading { kLine, kEnd, kTimeout };
  void start();
  void stop();
  Reading exchange(const std::string& request, std::string& line);
  std::string last_words();

  std::vector<std::string> command_;
  std::string directory_;
  double seconds_;
  std::mutex mutex_;
  pid_t pid_ = -1;
  int input_ = -1;  // a socket: a write to it can be kept from raising SIGPIPE
  int output_ = -1;
  int errors_ = -1;  // stderr, in memory
  std::string unread_;
};

// Of a line of the checker. Throws kInvalidArgument.
CheckerVerdict parse_checker_line(const std::string& line);

}  // namespace lathe
