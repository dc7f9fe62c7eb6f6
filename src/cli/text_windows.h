// The windows of a text that perplexity and divergence are measured on.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/loaded_model.h"
#include "eval/windows.h"

namespace lathe {

// The whole text is tokenized in one piece, control tokens' text as plain text, then cut. `name`:
// of the text, for messages. Throws kInvalidArgument for a window longer than the model's context
// or than the text.
std::vector<std::vector<int32_t>> text_windows(const TextModel& model, std::string_view text,
                                               const std::string& name,
                                               const WindowOptions& options);

int64_t count_tokens(const std::vector<std::vector<int32_t>>& windows);

}  // namespace lathe
