#include "server/chat_completions.h"

#include <ctime>

#include "base/json.h"
#include "server/api_error.h"
#include "server/chat_prompt.h"
#include "server/choices_request.h"
#include "server/output_format.h"
#include "server/stream_options.h"
#include "server/token_json.h"

namespace lathe {
namespace {

constexpr int64_t kMaxTopLogprobs = 20;  // OpenAI's

// What is fixed for all choices of an answer.
struct AnswerHead {
  std::string id;
  int64_t created = 0;
  std::string model;

  Json json(const char* object) const {
    return {{"id", id}, {"object", object}, {"created", created}, {"model", model}};
  }
};

// One choice, from its news to what an answer shows.
class ChatChoice {
 public:
  ChatChoice(int64_t index, const Tokenizer& tokenizer, bool wants_logprobs,
             std::unique_ptr<OutputParser> parser)
      : index_(index),
        tokenizer_(tokenizer),
        wants_logprobs_(wants_logprobs),
        parser_(std::move(parser)) {}

  // What came out of `news`, for a streamed answer; null when it is nothing to show yet.
  Json delta(const ChoiceNews& news) {
    read(news);
    Json delta = Json::object();
    if (!has_begun_) delta = {{"role", "assistant"}, {"content", ""}};
    if (!latest_.content.empty()) delta["content"] = latest_.content;
    if (!latest_.tool_calls.empty()) {
      Json calls = Json::array();
      for (const ToolCallDelta& call : latest_.tool_calls) calls.push_back(call_delta(call));
      delta["tool_calls"] = std::move(calls);
    }
    if (delta.empty() && !finish_reason_) return nullptr;  // logprobs go with the next text
    has_begun_ = true;
    Json choice = {{"index", index_}, {"delta", std::move(delta)}};
    choice["logprobs"] = take_logprobs();
    choice["finish_reason"] = finish_reason_json();
    return choice;
  }

  // Adds `news` to the whole choice.
  void add(const ChoiceNews& news) {
    read(news);
    content_ += latest_.content;
    for (const ToolCallDelta& call : latest_.tool_calls) {
      if (static_cast<std::size_t>(call.index) >= calls_.size()) {
        calls_.resize(static_cast<std::size_t>(call.index) + 1);
      }
      ToolCallDelta& whole = calls_[static_cast<std::size_t>(call.index)];
      if (!call.id.empty()) whole.id = call.id;
      whole.name += call.name;
      whole.arguments += call.arguments;
    }
  }
  Json whole() {
    Json message = {{"role", "assistant"}};
    message["content"] = content_.empty() && !calls_.empty() ? Json(nullptr) : Json(content_);
    message["refusal"] = nullptr;
    if (!calls_.empty()) {
      Json calls = Json::array();
      for (const ToolCallDelta& call : calls_) {
        calls.push_back({{"id", call.id},
                         {"type", "function"},
                         {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
      }
      message["tool_calls"] = std::move(calls);
    }
    Json choice = {{"index", index_}, {"message", std::move(message)}};
    choice["logprobs"] = take_logprobs();
    choice["finish_reason"] = finish_reason_json();
    return choice;
  }

 private:
  void read(const ChoiceNews& news) {
    finish_reason_ = news.finish_reason;
    if (parser_) {
      latest_ = parser_->push(news.text, news.finish_reason.has_value());
    } else {
      latest_.content = news.text;
    }
    if (!wants_logprobs_) return;
    for (const ChoiceToken& token : news.tokens) {
      logprobs_.push_back(chat_logprob(tokenizer_, token));
    }
  }

  static Json call_delta(const ToolCallDelta& call) {
    Json function = Json::object();
    if (!call.name.empty()) function["name"] = call.name;
    function["arguments"] = call.arguments;
    Json json = {{"index", call.index}};
    if (!call.id.empty()) {
      json["id"] = call.id;
      json["type"] = "function";
    }
    json["function"] = std::move(function);
    return json;
  }

  Json take_logprobs() {
    if (!wants_logprobs_) return nullptr;
    Json result = {{"content", std::move(logprobs_)}, {"refusal", nullptr}};
    logprobs_ = Json::array();
    return result;
  }

  Json finish_reason_json() const {
    if (!finish_reason_) return nullptr;
    const bool called =
        parser_ && parser_->has_tool_calls() && *finish_reason_ == FinishReason::kStop;
    return called ? Json("tool_calls") : Json(to_string(*finish_reason_));
  }

  const int64_t index_;
  const Tokenizer& tokenizer_;
  const bool wants_logprobs_;
  std::unique_ptr<OutputParser> parser_;
  OutputParser::Delta latest_;
  std::optional<FinishReason> finish_reason_;
  bool has_begun_ = false;
  std::string content_;
  std::vector<ToolCallDelta> calls_;
  Json logprobs_ = Json::array();
};

// Everything that lives as long as the answer.
struct ChatAnswer {
  ChatAnswer(AnswerHead wanted_head, Admission::Ticket wanted_ticket)
      : head(std::move(wanted_head)), ticket(std::move(wanted_ticket)) {}
  AnswerHead head;
  Admission::Ticket ticket;
  StreamOptions stream;
  bool speculates = false;
  std::vector<ChatChoice> parts;
  std::unique_ptr<Choices> choices;  // last: it ends first
};

Json usage_of(const ChatAnswer& answer) {
  return usage_json(answer.choices->usage(), answer.speculates);
}

Json chunk(const ChatAnswer& answer, Json choices, const Json& usage) {
  Json json = answer.head.json("chat.completion.chunk");
  json["choices"] = std::move(choices);
  if (answer.stream.include_usage) json["usage"] = usage;
  return json;
}

void stream_answer(ChatAnswer& answer, const StreamWrite& write) {
  const auto on_news = [&](const ChoiceNews& news) {
    Json choice = answer.parts[static_cast<std::size_t>(news.choice)].delta(news);
    if (choice.is_null()) return true;
    const Json usage = answer.stream.continuous_usage ? usage_of(answer) : Json();
    return write(event(chunk(answer, Json::array({std::move(choice)}), usage)));
  };
  if (!stream_news(*answer.choices, write, on_news)) return;
  if (answer.stream.include_usage) {
    write(event(chunk(answer, Json::array(), usage_of(answer))));
  }
  write("data: [DONE]\n\n");
}

HttpResponse whole_answer(ChatAnswer& answer) {
  collect_news(*answer.choices, [&](const ChoiceNews& news) {
    answer.parts[static_cast<std::size_t>(news.choice)].add(news);
  });
  Json json = answer.head.json("chat.completion");
  json["choices"] = Json::array();
  for (ChatChoice& part : answer.parts) json["choices"].push_back(part.whole());
  json["usage"] = usage_of(answer);
  return json_response(json);
}

}  // namespace

HttpResponse chat_completions(const ApiContext& context, const HttpRequest& request,
                              const ClientWatch& client) {
  const Json body = parse_body(request, context.limits.json);
  const RequestFields fields(body);
  const ServedModel& model = context.model;
  ChoicesRequest wanted = choices_request(context, fields);
  wanted.n = fields.integer("n", 1, context.limits.max_choices).value_or(1);
  const bool wants_logprobs = fields.boolean("logprobs").value_or(false);
  const std::optional<int64_t> top = fields.integer("top_logprobs", 0, kMaxTopLogprobs);
  if (top && !wants_logprobs) bad_field("top_logprobs", "top_logprobs needs logprobs: true");
  wanted.params.logprobs = wants_logprobs ? top.value_or(0) : -1;
  std::optional<int64_t> max_tokens = fields.integer("max_completion_tokens", 1, kMaxTokens);
  if (const auto older = fields.integer("max_tokens", 1, kMaxTokens); !max_tokens) {
    max_tokens = older;
  }
  const StreamOptions stream = stream_options(fields);
  const OutputFormat format = output_format(fields, model, /*may_call=*/true);
  const Json no_tools(nullptr);
  wanted.prompts.push_back(chat_prompt(model, fields, chat_messages(fields),
                                       format.tools != nullptr ? *format.tools : no_tools));
  const auto prompt_tokens = static_cast<int64_t>(wanted.prompts[0].size());
  check_context(model, prompt_tokens, max_tokens, "messages");
  wanted.params.max_tokens = max_tokens.value_or(-1);
  wanted.make_constraint = format.make_constraint;

  context.metrics.params_n.observe(static_cast<double>(wanted.n));
  if (max_tokens) context.metrics.params_max_tokens.observe(static_cast<double>(*max_tokens));
  // shared_ptr: std::function wants to be copyable.
  auto answer = std::make_shared<ChatAnswer>(
      AnswerHead{"chatcmpl-" + request.id, std::time(nullptr), model.id},
      context.admission.admit(wanted.n));
  answer->stream = stream;
  answer->speculates = !model.speculation.method.empty();
  for (int64_t i = 0; i < wanted.n; ++i) {
    answer->parts.emplace_back(i, *model.tokenizer, wants_logprobs,
                               format.make_parser ? format.make_parser() : nullptr);
  }
  answer->choices = std::make_unique<Choices>(context.runner, context.metrics, std::move(wanted),
                                              client, context.deadline());
  if (!stream.enabled) return whole_answer(*answer);
  return event_stream([answer](const StreamWrite& write) { stream_answer(*answer, write); });
}

}  // namespace lathe
