// How a task becomes a prompt.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

struct Turn {
  std::string_view role;  // "user", "assistant"
  std::string content;
};
// Token ids of a conversation that the model is to continue; answer_prefix is the beginning of its
// answer. How: the model's chat template, or plain text where it has none.
using PromptMaker = std::function<std::vector<int32_t>(std::span<const Turn> turns,
                                                       std::string_view answer_prefix)>;

}  // namespace lathe
