#include "server/api_context.h"

#include "base/json.h"
#include "server/api_error.h"

namespace lathe {

std::optional<std::chrono::steady_clock::time_point> ApiContext::deadline() const {
  if (limits.max_seconds == 0) return std::nullopt;
  return std::chrono::steady_clock::now() + std::chrono::seconds(limits.max_seconds);
}

Json parse_body(const HttpRequest& request, const JsonLimits& limits) {
  if (request.body.empty()) throw ApiError(400, "the body is empty; send a JSON object");
  return parse_json(request.body, "the body", limits);
}

void check_model(const RequestFields& fields, const ServedModel& model) {
  const std::optional<std::string> wanted = fields.string("model");
  if (!wanted || *wanted == model.id) return;
  throw ApiError(
      404, str("the model '", wanted->substr(0, 200), "' is not served here; '", model.id, "' is"),
      "model", "model_not_found");
}

void check_context(const ServedModel& model, int64_t prompt_tokens,
                   std::optional<int64_t> max_tokens, const std::string& param) {
  if (prompt_tokens == 0) bad_field(param, "the prompt is empty");
  const int64_t room = model.max_tokens - prompt_tokens;
  if (room >= max_tokens.value_or(1)) return;
  throw ApiError(
      400,
      str("the context has ", model.max_tokens, " tokens; the prompt has ", prompt_tokens, " and ",
          max_tokens ? str(*max_tokens, " are to be generated (max_tokens)") : "one is to follow",
          ". Shorten the prompt or max_tokens"),
      param, "context_length_exceeded");
}

Json usage_json(const Usage& usage, bool with_speculation) {
  Json json = {{"prompt_tokens", usage.prompt_tokens},
               {"completion_tokens", usage.completion_tokens},
               {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
               {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
  if (!with_speculation) return json;
  const SpeculationUsage& speculation = usage.speculation;
  json["speculative"] = {{"cycles", speculation.cycles},
                         {"drafted", speculation.drafted},
                         {"accepted_match", speculation.accepted},
                         {"accepted_judge", speculation.judge_accepted},
                         {"corrected", speculation.corrected},
                         {"bonus", speculation.bonus},
                         {"logprob_deficit", speculation.logprob_deficit},
                         {"lossy", speculation.judge_accepted > 0}};
  return json;
}

HttpResponse event_stream(std::function<void(const StreamWrite&)> stream) {
  HttpResponse response;
  response.content_type = "text/event-stream; charset=utf-8";
  response.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  response.stream = std::move(stream);
  return response;
}

HttpResponse json_response(const Json& json) {
  HttpResponse response;
  response.body = dump_json(json);
  return response;
}

std::string event(const Json& json) { return "data: " + dump_json(json) + "\n\n"; }

}  // namespace lathe
