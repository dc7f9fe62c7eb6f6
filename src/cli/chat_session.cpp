#include "cli/chat_session.h"

#include <chrono>
#include <optional>

#include "base/error.h"
#include "base/json.h"

namespace lathe {

ChatModel local_chat_model(const LoadedModel& loaded, Engine& engine,
                           std::shared_ptr<const TokenGrammar> grammar) {
  if (!loaded.has_chat_template()) {
    fail(ErrorCode::kUnsupported, loaded.checkpoint().path(),
         " has no chat template: it is not a chat model; 'lathe generate --raw' continues text");
  }
  return [&loaded, &engine, grammar = std::move(grammar)](
             const Json& messages, const SamplingParams& params,
             const std::function<bool(std::string_view)>& on_text) {
    const Generation generation = generate(engine, loaded.encode_conversation(messages, ""), params,
                                           on_text, answer_constraint(grammar));
    return ChatReply{generation.text, generation.finish_reason, generation.usage};
  };
}

ChatModel server_chat_model(const ApiClient& client, const Json& fields) {
  return [client, fields](const Json& messages, const SamplingParams& params,
                          const std::function<bool(std::string_view)>& on_text) {
    Json body = fields;
    body["messages"] = messages;
    if (body.contains("seed")) body["seed"] = static_cast<int64_t>(params.seed);
    const ServerReply reply = client.chat(body, on_text);
    return ChatReply{reply.text, reply.reason, reply.usage};
  };
}

ChatSession::ChatSession(ChatModel model, SamplingParams params)
    : model_(std::move(model)), params_(std::move(params)) {
  clear();
}

void ChatSession::set_system(const std::string& text) {
  system_ = text;
  clear();
}

void ChatSession::clear() {
  messages_.clear();
  if (!system_.empty()) messages_.push_back({"system", system_});
}

Json ChatSession::messages() const {
  Json json = Json::array();
  for (const Message& message : messages_) {
    json.push_back({{"role", message.role}, {"content", message.content}});
  }
  return json;
}

ChatSession::Answer ChatSession::ask(const std::string& question,
                                     const std::function<bool(std::string_view)>& on_text) {
  messages_.push_back({"user", question});
  try {
    return answer(on_text);
  } catch (...) {
    messages_.pop_back();
    throw;
  }
}

ChatSession::Answer ChatSession::ask_again(const std::function<bool(std::string_view)>& on_text) {
  if (messages_.empty() || messages_.back().role != "assistant") {
    fail(ErrorCode::kInvalidArgument, "there is no answer yet to replace");
  }
  const Message previous = messages_.back();
  messages_.pop_back();
  try {
    return answer(on_text);
  } catch (...) {
    messages_.push_back(previous);
    throw;
  }
}

ChatSession::Answer ChatSession::answer(const std::function<bool(std::string_view)>& on_text) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  std::optional<Clock::time_point> first;
  const ChatReply reply = model_(messages(), params_, [&](std::string_view text) {
    if (!first && !text.empty()) first = Clock::now();
    return on_text(text);
  });
  ++params_.seed;  // a repeated question need not get the same answer
  messages_.push_back({"assistant", reply.text});
  Answer result;
  result.text = reply.text;
  result.reason = reply.reason;
  result.usage = reply.usage;
  const auto end = Clock::now();
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  result.seconds_to_first_token = seconds(first.value_or(end) - start);
  const double decoding = seconds(end - first.value_or(end));
  if (decoding > 0 && reply.usage.completion_tokens > 1) {
    result.decode_tokens_per_second =
        static_cast<double>(reply.usage.completion_tokens - 1) / decoding;
  }
  return result;
}

}  // namespace lathe
