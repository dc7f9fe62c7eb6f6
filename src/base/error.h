// The one exception type of the project. A message names the thing, the value and the way out;
// callers on the way up add context with with_context().
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace lathe {

enum class ErrorCode {
  kInvalidArgument,  // a flag, a request or a size that cannot be
  kNotFound,         // a file, a tensor, a name that is not there
  kCorruptData,      // bytes from outside that contradict themselves
  kUnsupported,      // well formed, but not something lathe does
  kOutOfMemory,
  kIo,        // read, write, sync or rename failed (disk full, permission)
  kDevice,    // an accelerator failed
  kCanceled,  // the user asked us to stop
  kInternal,  // a bug in lathe
};

// "corrupt data" and so on, for messages and JSON.
std::string_view to_string(ErrorCode code);

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Everything streamed into one string: str("tensor '", name, "': ", n, " bytes").
template <typename... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

template <typename... Parts>
[[noreturn]] void fail(ErrorCode code, const Parts&... parts) {
  throw Error(code, str(parts...));
}

// Runs body; an Error that leaves it gets "context: " in front of its message.
template <typename Body>
decltype(auto) with_context(const std::string& context, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& error) {
    throw Error(error.code(), context + ": " + error.what());
  }
}

}  // namespace lathe
