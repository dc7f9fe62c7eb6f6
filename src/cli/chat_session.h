// A conversation with a model: what was said, and the next answer.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cli/loaded_model.h"
#include "cli/schema_flag.h"
#include "engine/generate.h"
#include "server/api_client.h"

namespace lathe {

// Answers a conversation: the model in this process, or a server. on_text gets the text as it
// comes; false from it stops the answer.
struct ChatReply {
  std::string text;
  FinishReason reason = FinishReason::kStop;
  Usage usage;
};
using ChatModel =
    std::function<ChatReply(const nlohmann::ordered_json& messages, const SamplingParams& params,
                            const std::function<bool(std::string_view)>& on_text)>;

// grammar: of every answer; null: any text. Borrows model and engine. Throws kUnsupported when the
// model has no chat template.
ChatModel local_chat_model(const LoadedModel& loaded, Engine& engine,
                           std::shared_ptr<const TokenGrammar> grammar);
// fields: of every request, `model` among them. What they leave open the server decides; a `seed`
// among them is the session's, which changes with every answer.
ChatModel server_chat_model(const ApiClient& client, const nlohmann::ordered_json& fields);

class ChatSession {
 public:
  ChatSession(ChatModel model, SamplingParams params);

  void set_system(const std::string& text);  // empty: none; begins a new conversation
  void clear();                              // keeps the system message

  struct Answer {
    std::string text;
    FinishReason reason = FinishReason::kStop;
    Usage usage;
    double seconds_to_first_token = 0;
    double decode_tokens_per_second = 0;
  };
  // Asks, and adds question and answer to the conversation (what there is of it, when on_text says
  // false). When it throws, the conversation is as before.
  Answer ask(const std::string& question, const std::function<bool(std::string_view)>& on_text);
  // Another answer to the last question, from another seed. Throws kInvalidArgument without one.
  Answer ask_again(const std::function<bool(std::string_view)>& on_text);

  int64_t num_messages() const { return static_cast<int64_t>(messages_.size()); }
  nlohmann::ordered_json messages() const;  // [{"role", "content"}, ...]

 private:
  Answer answer(const std::function<bool(std::string_view)>& on_text);

  ChatModel model_;
  SamplingParams params_;
  std::string system_;
  struct Message {
    std::string role, content;
  };
  std::vector<Message> messages_;
};

}  // namespace lathe
