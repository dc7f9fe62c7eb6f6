#include "text/chat_template.h"

#include <utility>

#include "base/error.h"
#include "base/json.h"

namespace lathe {
namespace {

// Templates look for a message's reasoning under one of three names. As transformers does, the
// first that is there also goes by the standard name, and by `thinking`, which gpt-oss reads.
Json with_reasoning_names(const Json& message) {
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    const auto found = message.find(name);
    if (found == message.end() || found->is_null()) continue;
    Json aliased = {{"thinking", *found}};
    aliased.update(message);
    aliased["reasoning_content"] = *found;
    return aliased;
  }
  return message;
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view source, std::string bos_token, std::string eos_token)
    : source_(source),
      bos_token_(std::move(bos_token)),
      eos_token_(std::move(eos_token)),
      template_(source) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const Json& messages, const Json& tools,
                                 bool add_generation_prompt, const Json& extra,
                                 std::optional<std::time_t> now) const {
  if (!messages.is_array()) fail(ErrorCode::kInvalidArgument, "messages is not a list");
  Json variables = Json::object();
  Json conversation = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object())
      fail(ErrorCode::kInvalidArgument, "messages[", i, "] is not an object");
    conversation.push_back(with_reasoning_names(messages[i]));
  }
  variables["messages"] = std::move(conversation);
  variables["tools"] = tools;
  variables["documents"] = nullptr;
  variables["add_generation_prompt"] = add_generation_prompt;
  if (!bos_token_.empty()) variables["bos_token"] = bos_token_;
  if (!eos_token_.empty()) variables["eos_token"] = eos_token_;
  if (!extra.is_null()) {
    if (!extra.is_object())
      fail(ErrorCode::kInvalidArgument, "template variables are not an object");
    for (const auto& [name, value] : extra.items()) variables[name] = value;
  }
  return template_.render(variables, {}, now);
}

bool ChatTemplate::supports_tools() const { return source_.find("tools") != std::string::npos; }

}  // namespace lathe
