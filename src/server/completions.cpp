#include "server/completions.h"

#include <ctime>
#include <numeric>

#include "base/json.h"
#include "server/api_error.h"
#include "server/chat_prompt.h"
#include "server/choices_request.h"
#include "server/output_format.h"
#include "server/prompt_runs.h"
#include "server/stream_options.h"
#include "server/token_json.h"

namespace lathe {
namespace {

constexpr int64_t kMaxLogprobsOfCompletion = 20;  // OpenAI: 5; vLLM: 20

struct Prompt {
  std::vector<int32_t> ids;
  std::string text;  // for echo
};

Prompt text_of(const ServedModel& model, std::string text, bool add_special_tokens) {
  Prompt prompt;
  prompt.ids = text_prompt(model, text, add_special_tokens);
  prompt.text = std::move(text);
  return prompt;
}

Prompt ids_of(const ServedModel& model, const Json& value, const std::string& param) {
  Prompt prompt;
  // Ids behind the vocabulary have a logit but no text.
  prompt.ids = token_ids(value, param, model.tokenizer->vocab_size());
  prompt.text = model.tokenizer->decode(prompt.ids, /*skip_special=*/false);
  return prompt;
}

// A string, an array of strings, an array of ids, or an array of arrays of ids.
std::vector<Prompt> read_prompts(const RequestFields& fields, const ServedModel& model,
                                 int64_t max_prompts) {
  const Json* value = fields.find("prompt");
  if (value == nullptr) bad_field("prompt", "prompt is missing");
  const bool add_special = fields.boolean("add_special_tokens").value_or(true);
  if (value->is_string()) return {text_of(model, value->get<std::string>(), add_special)};
  if (!value->is_array()) {
    bad_field("prompt", "prompt must be a string or an array, not ", kind_of(*value));
  }
  if (value->empty()) bad_field("prompt", "prompt is empty");
  if (value->front().is_number()) return {ids_of(model, *value, "prompt")};
  if (static_cast<int64_t>(value->size()) > max_prompts) {
    bad_field("prompt", "prompt has ", value->size(), " prompts; at most ", max_prompts,
              " (--max-choices)");
  }
  std::vector<Prompt> prompts;
  for (std::size_t i = 0; i < value->size(); ++i) {
    const Json& item = (*value)[i];
    prompts.push_back(item.is_string() ? text_of(model, item.get<std::string>(), add_special)
                                       : ids_of(model, item, str("prompt[", i, "]")));
  }
  return prompts;
}

// What the request wants beside sampling.
struct Wanted {
  std::vector<Prompt> prompts;
  int64_t n = 1;
  bool echo = false;
  int64_t logprobs = -1;  // -1: none
  int64_t max_tokens = 16;
  StreamOptions stream;
};

struct CompletionChoice {
  CompletionChoice(const Tokenizer& tokenizer, bool with_top) : logprobs(tokenizer, with_top) {}
  std::string text;
  CompletionLogprobs logprobs;
  std::optional<FinishReason> finish_reason;
  bool has_begun = false;
};

// Everything that lives as long as the answer.
struct Answer {
  explicit Answer(Admission::Ticket wanted_ticket) : ticket(std::move(wanted_ticket)) {}
  std::string id;
  int64_t created = 0;
  std::string model;
  Admission::Ticket ticket;
  Wanted wanted;
  bool speculates = false;
  std::vector<CompletionChoice> parts;
  int64_t prompt_tokens = 0;         // of all prompts
  std::unique_ptr<Choices> choices;  // null: max_tokens is 0. Last: it ends first
};

Json head_json(const Answer& answer) {
  return {{"id", answer.id},
          {"object", "text_completion"},
          {"created", answer.created},
          {"model", answer.model}};
}

Json choice_json(const Answer& answer, int64_t index, const std::string& text,
                 CompletionLogprobs& logprobs, std::optional<FinishReason> reason) {
  Json json = {{"index", index}, {"text", text}};
  json["logprobs"] = answer.wanted.logprobs < 0 ? Json(nullptr) : logprobs.take();
  json["finish_reason"] = reason ? Json(to_string(*reason)) : Json(nullptr);
  return json;
}

Json usage_of(const Answer& answer) {
  if (answer.choices != nullptr) return usage_json(answer.choices->usage(), answer.speculates);
  Usage usage;
  usage.prompt_tokens = answer.prompt_tokens;
  return usage_json(usage, answer.speculates);
}

void add_news(CompletionChoice& part, const ChoiceNews& news) {
  part.text += news.text;
  for (const ChoiceToken& token : news.tokens) part.logprobs.add(token);
  if (news.finish_reason) part.finish_reason = news.finish_reason;
}

// Each choice begins with its prompt.
void add_echo(const ApiContext& context, const ClientWatch& client, Answer& answer) {
  const Wanted& wanted = answer.wanted;
  std::vector<PromptPassResult> results;
  if (wanted.logprobs >= 0) {
    std::vector<std::vector<int32_t>> prompts;
    for (const Prompt& prompt : wanted.prompts) prompts.push_back(prompt.ids);
    results =
        run_prompts(context, client, prompts, PromptPassJob::Wants::kLogprobs, wanted.logprobs);
  }
  for (std::size_t i = 0; i < answer.parts.size(); ++i) {
    const std::size_t prompt_idx = i / static_cast<std::size_t>(wanted.n);
    const Prompt& prompt = wanted.prompts[prompt_idx];
    answer.parts[i].text = prompt.text;
    if (results.empty()) continue;
    const PromptPassResult& result = results[prompt_idx];
    answer.parts[i].logprobs.add_first(prompt.ids[0]);
    for (std::size_t t = 1; t < prompt.ids.size(); ++t) {
      answer.parts[i].logprobs.add({prompt.ids[t], result.logprobs[t - 1], result.top[t - 1]});
    }
  }
}

void stream_answer(Answer& answer, const StreamWrite& write) {
  const auto send = [&](Json choices, const Json& usage) {
    Json json = head_json(answer);
    json["choices"] = std::move(choices);
    if (answer.wanted.stream.include_usage) json["usage"] = usage;
    return write(event(json));
  };
  const auto send_part = [&](int64_t index) {
    CompletionChoice& part = answer.parts[static_cast<std::size_t>(index)];
    if (part.text.empty() && !part.finish_reason) return true;  // nothing to show yet
    const Json usage = answer.wanted.stream.continuous_usage ? usage_of(answer) : Json();
    const std::string text = std::move(part.text);
    part.text.clear();
    return send(Json::array({choice_json(answer, index, text, part.logprobs, part.finish_reason)}),
                usage);
  };
  if (answer.choices == nullptr) {
    for (std::size_t i = 0; i < answer.parts.size(); ++i) {
      if (!send_part(static_cast<int64_t>(i))) return;
    }
  } else if (!stream_news(*answer.choices, write, [&](const ChoiceNews& news) {
               add_news(answer.parts[static_cast<std::size_t>(news.choice)], news);
               return send_part(news.choice);
             })) {
    return;
  }
  if (answer.wanted.stream.include_usage) send(Json::array(), usage_of(answer));
  write("data: [DONE]\n\n");
}

HttpResponse whole_answer(Answer& answer) {
  if (answer.choices != nullptr) {
    collect_news(*answer.choices, [&](const ChoiceNews& news) {
      add_news(answer.parts[static_cast<std::size_t>(news.choice)], news);
    });
  }
  Json json = head_json(answer);
  json["choices"] = Json::array();
  for (std::size_t i = 0; i < answer.parts.size(); ++i) {
    CompletionChoice& part = answer.parts[i];
    json["choices"].push_back(
        choice_json(answer, static_cast<int64_t>(i), part.text, part.logprobs, part.finish_reason));
  }
  json["usage"] = usage_of(answer);
  return json_response(json);
}

Wanted read_wanted(const ApiContext& context, const RequestFields& fields) {
  Wanted wanted;
  wanted.n = fields.integer("n", 1, context.limits.max_choices).value_or(1);
  const std::optional<int64_t> best_of = fields.integer("best_of", 0, kMaxTokens);
  if (best_of && *best_of != wanted.n) {
    bad_field("best_of", "best_of is not supported; use n for several answers");
  }
  wanted.echo = fields.boolean("echo").value_or(false);
  // OpenAI counts from 0: the chosen tokens alone.
  wanted.logprobs = fields.integer("logprobs", 0, kMaxLogprobsOfCompletion).value_or(-1);
  wanted.max_tokens = fields.integer("max_tokens", wanted.echo ? 0 : 1, kMaxTokens).value_or(16);
  wanted.stream = stream_options(fields);
  wanted.prompts = read_prompts(fields, context.model, context.limits.max_choices);
  if (static_cast<int64_t>(wanted.prompts.size()) * wanted.n > context.limits.max_choices) {
    bad_field("n", wanted.prompts.size(), " prompts with n = ", wanted.n, " are more than ",
              context.limits.max_choices, " choices (--max-choices)");
  }
  for (const Prompt& prompt : wanted.prompts) {
    check_context(context.model, static_cast<int64_t>(prompt.ids.size()), wanted.max_tokens,
                  "prompt");
  }
  return wanted;
}

}  // namespace

HttpResponse completions(const ApiContext& context, const HttpRequest& request,
                         const ClientWatch& client) {
  const Json body = parse_body(request, context.limits.json);
  const RequestFields fields(body);
  const ServedModel& model = context.model;
  ChoicesRequest choices = choices_request(context, fields);
  const OutputFormat format = output_format(fields, model, /*may_call=*/false);
  Wanted wanted = read_wanted(context, fields);
  const auto num_choices = static_cast<int64_t>(wanted.prompts.size()) * wanted.n;
  context.metrics.params_n.observe(static_cast<double>(wanted.n));
  context.metrics.params_max_tokens.observe(static_cast<double>(wanted.max_tokens));

  // shared_ptr: std::function wants to be copyable.
  auto answer = std::make_shared<Answer>(context.admission.admit(num_choices));
  answer->id = "cmpl-" + request.id;
  answer->created = std::time(nullptr);
  answer->model = model.id;
  answer->wanted = std::move(wanted);
  answer->speculates = !model.speculation.method.empty();
  for (int64_t i = 0; i < num_choices; ++i) {
    answer->parts.emplace_back(*model.tokenizer, answer->wanted.logprobs > 0);
  }
  for (const Prompt& prompt : answer->wanted.prompts) {
    answer->prompt_tokens += static_cast<int64_t>(prompt.ids.size());
  }
  if (answer->wanted.echo) add_echo(context, client, *answer);
  if (answer->wanted.max_tokens == 0) {
    for (CompletionChoice& part : answer->parts) part.finish_reason = FinishReason::kLength;
  } else {
    choices.n = answer->wanted.n;
    choices.params.max_tokens = answer->wanted.max_tokens;
    choices.params.logprobs = answer->wanted.logprobs;
    choices.make_constraint = format.make_constraint;
    for (const Prompt& prompt : answer->wanted.prompts) choices.prompts.push_back(prompt.ids);
    answer->choices = std::make_unique<Choices>(context.runner, context.metrics, std::move(choices),
                                                client, context.deadline());
  }
  if (!answer->wanted.stream.enabled) return whole_answer(*answer);
  return event_stream([answer](const StreamWrite& write) { stream_answer(*answer, write); });
}

}  // namespace lathe
