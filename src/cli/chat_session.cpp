#include "cli/chat_session.h"

#include <chrono>
#include <optional>

#include "base/error.h"
#include "base/json.h"

namespace lathe {

ChatSession::ChatSession(const LoadedModel& loaded, Engine& engine, SamplingParams params)
    : loaded_(loaded), engine_(engine), params_(std::move(params)) {
  if (!loaded.has_chat_template()) {
    fail(ErrorCode::kUnsupported, loaded.checkpoint().path(),
         " has no chat template: it is not a chat model; 'lathe generate --raw' continues text");
  }
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
  const Generation generation = generate(engine_, loaded_.encode_conversation(messages(), ""),
                                         params_, [&](std::string_view text) {
                                           if (!first) first = Clock::now();
                                           return on_text(text);
                                         });
  ++params_.seed;  // a repeated question need not get the same answer
  messages_.push_back({"assistant", generation.text});
  Answer result;
  result.text = generation.text;
  result.reason = generation.finish_reason;
  result.usage = generation.usage;
  const auto end = Clock::now();
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  result.seconds_to_first_token = seconds(first.value_or(end) - start);
  const double decoding = seconds(end - first.value_or(end));
  if (decoding > 0) {
    result.decode_tokens_per_second =
        static_cast<double>(generation.usage.completion_tokens - 1) / decoding;
  }
  return result;
}

}  // namespace lathe
