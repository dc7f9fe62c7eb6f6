// Task files: one JSON object a line, plain or gzip (recognised by its first bytes).
#pragma once
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace lathe {

// The whole text of a file, inflated when it is gzip. Throws kNotFound, kIo, or kCorruptData
// (broken gzip data, or more than max_bytes of text).
std::string read_text_file(const std::string& path, int64_t max_bytes = int64_t{1} << 30);

// Calls body for every non-empty line, in order. An Error from body or from the parser gets
// "FILE line N" in front.
void for_each_json_line(const std::string& path,
                        const std::function<void(const nlohmann::ordered_json&)>& body);

// A field that must be there and be a string. Throws kCorruptData naming it.
std::string string_field(const nlohmann::ordered_json& object, const char* name);

}  // namespace lathe
