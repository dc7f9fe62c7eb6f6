// Standard output and input of the commands.
#pragma once
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

// To standard output, at once. Throws kIo when it cannot be written (a full disk, a closed
// descriptor); a reader that left ends the program by SIGPIPE, as usual.
void print(std::string_view text);
void print_line(std::string_view text);
void print_json(const nlohmann::ordered_json& json);  // one indented document
// One line to standard error, for what the caller should know although the command succeeds.
void print_warning(std::string_view text);

// Gives closed standard descriptors something harmless, so that no model file becomes descriptor 1.
// Writing to a closed standard output then fails instead of corrupting a file.
void guard_standard_descriptors();

// Everything on standard input. Throws kIo.
std::string read_standard_input();

// The loop of the JSON-lines commands: each non-empty line of standard input is parsed and answered
// by one line of JSON, at once. A line that fails is answered by {"error": "..."}; the loop goes
// on, and throws at its end that so many lines failed.
void answer_json_lines(
    const std::function<nlohmann::ordered_json(const nlohmann::ordered_json&)>& answer);

// An array of token ids. Throws kInvalidArgument when it is something else.
std::vector<int32_t> token_ids_from_json(const nlohmann::ordered_json& json);

}  // namespace lathe
