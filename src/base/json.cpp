#include "base/json.h"

#include "base/atomic_file.h"
#include "base/error.h"

namespace lathe {

Json parse_json(std::string_view text, const std::string& what, int max_depth) {
  const auto limit_depth = [&](int depth, Json::parse_event_t event, Json&) {
    const bool opens =
        event == Json::parse_event_t::array_start || event == Json::parse_event_t::object_start;
    if (opens && depth >= max_depth) throw Error(ErrorCode::kCorruptData, "");  // reworded below
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), limit_depth);
  } catch (const Error&) {
    fail(ErrorCode::kCorruptData, what, ": JSON nested deeper than ", max_depth, " levels");
  } catch (const nlohmann::json::exception& error) {
    // nlohmann's text quotes the input around the error, which may be long and hostile.
    std::string reason = error.what();
    if (reason.size() > 200) reason = reason.substr(0, 200) + "...";
    fail(ErrorCode::kCorruptData, what, ": not valid JSON: ", reason);
  }
}

Json read_json_file(const std::string& path, int64_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path);
}

std::string dump_json(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace lathe
