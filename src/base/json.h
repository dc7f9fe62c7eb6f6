// JSON from outside: nlohmann's ordered_json behind limits. Slow to compile: include it in .cpp
// files, and <nlohmann/json_fwd.hpp> in headers.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/json_limits.h"

namespace lathe {

using Json = nlohmann::ordered_json;  // keeps the order of keys, as chat templates need

// Parses one document. Throws kCorruptData, naming `what` and the place, on a syntax error, invalid
// UTF-8, anything behind the document, or one of the limits. A key that comes twice in
// an object has the later value. Takes linear time; looking a key up in the result compares with
// every key in front of it, so walk large objects by items().
Json parse_json(std::string_view text, const std::string& what, const JsonLimits& limits);
Json parse_json(std::string_view text, const std::string& what, int max_depth = 64);

// parse_json(read_file(path)).
Json read_json_file(const std::string& path, int64_t max_bytes = int64_t{256} << 20);

// Serialises; invalid UTF-8 is replaced by U+FFFD instead of throwing. indent < 0: one line.
std::string dump_json(const Json& json, int indent = -1);

}  // namespace lathe
