#include "server/request_log.h"

#include <chrono>
#include <cstdio>
#include <ctime>

#include "base/json.h"

namespace lathe {
namespace {

std::string utc_now() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto since_epoch =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[40];
  const std::size_t size = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + size, sizeof text - size, ".%03dZ", static_cast<int>(since_epoch % 1000));
  return text;
}

}  // namespace

void RequestLog::write(const char* event, const Json& fields) {
  if (!sink_) return;
  try {
    Json line = {{"time", utc_now()}, {"event", event}};
    for (const auto& [name, value] : fields.items()) line[name] = value;
    const std::string text = dump_json(line) + "\n";
    const std::lock_guard lock(mutex_);
    sink_(text);
  } catch (const std::exception&) {
    // No memory for a line, or a closed log: answering goes on.
  }
}

}  // namespace lathe
