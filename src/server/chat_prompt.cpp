#include "server/chat_prompt.h"

#include "base/json.h"
#include "server/api_error.h"

namespace lathe {
namespace {

// A string as it is; parts of type "text" (also OpenAI's "input_text" and "refusal") joined.
Json content_text(const Json& content, const std::string& where) {
  if (content.is_string()) return content;
  if (!content.is_array()) {
    bad_field(where, where, " must be a string or an array of parts, not ", kind_of(content));
  }
  std::string text;
  for (std::size_t i = 0; i < content.size(); ++i) {
    const std::string part_path = str(where, "[", i, "]");
    const RequestFields part(content[i], part_path + ".");
    const std::string type = part.string("type").value_or("");
    if (type != "text" && type != "input_text" && type != "refusal") {
      bad_field(part_path, part_path, " has type '", type.substr(0, 40),
                "'; this model takes text only");
    }
    const std::optional<std::string> piece = part.string(type == "refusal" ? "refusal" : "text");
    if (!piece) bad_field(part_path, part_path, " has no text");
    if (i > 0) text += '\n';
    text += *piece;
  }
  return text;
}

// OpenAI sends arguments as the text of a JSON object; templates want the object.
Json tool_calls_for_template(const Json& calls, const std::string& where) {
  if (!calls.is_array()) bad_field(where, where, " must be an array, not ", kind_of(calls));
  Json result = Json::array();
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const std::string path = str(where, "[", i, "]");
    const RequestFields call(calls[i], path + ".");
    const Json* function = call.find("function");
    if (function == nullptr) bad_field(path, path, " has no function");
    const RequestFields fields(*function, path + ".function.");
    if (!fields.string("name")) bad_field(path, path, ".function has no name");
    Json copy = calls[i];
    const Json* arguments = fields.find("arguments");
    if (arguments == nullptr) {
      copy["function"]["arguments"] = Json::object();
    } else if (arguments->is_string()) {
      const std::string text = arguments->get<std::string>();
      Json parsed;
      try {
        parsed = text.empty() ? Json::object() : parse_json(text, path + ".function.arguments");
      } catch (const Error& error) {
        bad_field(path, error.what());
      }
      copy["function"]["arguments"] = std::move(parsed);
    } else if (!arguments->is_object()) {
      bad_field(path, path, ".function.arguments must be a string or an object, not ",
                kind_of(*arguments));
    }
    result.push_back(std::move(copy));
  }
  return result;
}

}  // namespace

Json chat_messages(const RequestFields& fields) {
  const Json* messages = fields.find("messages");
  if (messages == nullptr) bad_field("messages", "messages is missing");
  if (!messages->is_array()) {
    bad_field("messages", "messages must be an array, not ", kind_of(*messages));
  }
  if (messages->empty()) bad_field("messages", "messages is empty");
  Json result = Json::array();
  for (std::size_t i = 0; i < messages->size(); ++i) {
    const std::string path = str("messages[", i, "]");
    const RequestFields message((*messages)[i], path + ".");
    const std::optional<std::string> role = message.string("role");
    if (!role) bad_field(path + ".role", path, " has no role");
    Json copy = (*messages)[i];
    if (*role == "developer") copy["role"] = "system";
    const Json* content = message.find("content");
    const Json* calls = message.find("tool_calls");
    if (content == nullptr && calls == nullptr && *role != "assistant") {
      bad_field(path + ".content", path, " has no content");
    }
    // Templates concatenate content with strings: null would be an error in most.
    copy["content"] = content != nullptr ? content_text(*content, path + ".content") : Json("");
    if (calls != nullptr) {
      copy["tool_calls"] = tool_calls_for_template(*calls, path + ".tool_calls");
    } else {
      copy.erase("tool_calls");
    }
    result.push_back(std::move(copy));
  }
  return result;
}

std::vector<int32_t> chat_prompt(const ServedModel& model, const RequestFields& fields,
                                 const Json& messages, const Json& tools) {
  if (model.chat_template == nullptr) {
    throw ApiError(400, "this model has no chat template; use /v1/completions", "messages");
  }
  const bool continues = fields.boolean("continue_final_message").value_or(false);
  const bool add_prompt = fields.boolean("add_generation_prompt").value_or(!continues);
  if (continues && add_prompt) {
    bad_field("continue_final_message",
              "continue_final_message and add_generation_prompt exclude each other");
  }
  Json extra(nullptr);
  if (const Json* kwargs = fields.find("chat_template_kwargs")) {
    RequestFields check(*kwargs, "chat_template_kwargs.");
    extra = *kwargs;
  }
  std::string text;
  try {
    text = model.chat_template->render(messages, tools, add_prompt, extra);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kOutOfMemory) throw;
    throw ApiError(400, str("the chat template refuses the conversation: ", error.what()),
                   "messages");
  }
  if (continues) {
    // The text ends where the last message does: what the template puts behind it is taken off.
    const std::string last = messages.back()["content"].get<std::string>();
    const std::size_t found = text.rfind(last);
    if (last.empty() || found == std::string::npos) {
      bad_field("continue_final_message",
                "the last message has no content, or the template changes it");
    }
    text.resize(found + last.size());
  }
  return model.tokenizer->encode(text, /*parse_special=*/true);
}

std::vector<int32_t> text_prompt(const ServedModel& model, const std::string& text,
                                 bool add_special_tokens) {
  const Tokenizer& tokenizer = *model.tokenizer;
  std::vector<int32_t> ids;
  if (add_special_tokens && tokenizer.add_bos() && tokenizer.bos_id()) {
    ids.push_back(*tokenizer.bos_id());
  }
  // As vLLM does: the text of a control token in a prompt is that token.
  const std::vector<int32_t> body = tokenizer.encode(text, /*parse_special=*/true);
  ids.insert(ids.end(), body.begin(), body.end());
  return ids;
}

}  // namespace lathe
