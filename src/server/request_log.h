// One line of JSON for each thing that happens, for log collectors and people with jq:
//   {"time":"2026-11-26T10:00:00.123Z","event":"request","id":"...","method":"POST",...}
// Neither texts of requests and answers nor keys are ever in it.
#pragma once
#include <functional>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace lathe {

class RequestLog {
 public:
  // Gets whole lines, one at a time; null: nothing is logged.
  explicit RequestLog(std::function<void(std::string_view)> sink) : sink_(std::move(sink)) {}
  // Adds time and event in front of the fields (an object). Any thread; does not throw.
  void write(const char* event, const nlohmann::ordered_json& fields);

 private:
  std::function<void(std::string_view)> sink_;
  std::mutex mutex_;
};

}  // namespace lathe
