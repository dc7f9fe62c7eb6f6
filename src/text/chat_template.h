// A model's chat template: a conversation becomes the text that the model was trained to see.
#pragma once
#include <ctime>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "text/jinja.h"

namespace lathe {

class ChatTemplate {
 public:
  // `source` is Jinja. The tokens are texts such as "<s>"; empty: the model has none. Throws as
  // JinjaTemplate does.
  ChatTemplate(std::string_view source, std::string bos_token, std::string eos_token);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // `messages` is a list of objects as in OpenAI's API, with arguments of tool calls as objects;
  // `tools` a list, or null; `extra` an object of further variables such as enable_thinking, or
  // null. Throws kInvalidArgument: the template refuses the conversation (with its own words), or
  // messages is not a list of objects.
  std::string render(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools,
                     bool add_generation_prompt, const nlohmann::ordered_json& extra,
                     std::optional<std::time_t> now = std::nullopt) const;

  const std::string& source() const { return source_; }
  // True when the template looks at `tools` at all.
  bool supports_tools() const;

 private:
  std::string source_;
  std::string bos_token_, eos_token_;
  JinjaTemplate template_;
};

}  // namespace lathe
