// What every route works with, and what they share in reading a request.
#pragma once
#include <chrono>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "server/admission.h"
#include "server/engine_runner.h"
#include "server/http.h"
#include "server/judge_shadow.h"
#include "server/request_fields.h"
#include "server/served_model.h"
#include "server/server_metrics.h"

namespace lathe {

enum class Pooling { kLast, kMean };  // of /v1/embeddings

struct ApiContext {
  EngineRunner& runner;
  ServerMetrics& metrics;
  Admission& admission;
  ServedModel model;
  ApiLimits limits;
  Pooling pooling = Pooling::kLast;
  JudgeShadow* shadow = nullptr;  // null: there is no judge, or none is watched

  // When a request that begins now has to end.
  std::optional<std::chrono::steady_clock::time_point> deadline() const;
};

// The body as JSON within the limits. Throws ApiError 400.
nlohmann::ordered_json parse_body(const HttpRequest& request, const JsonLimits& limits);

// `model` of a request: absent, or the served one. Throws ApiError 404.
void check_model(const RequestFields& fields, const ServedModel& model);

// Room for a prompt and max_tokens (nullopt: at least one). Throws ApiError 400 with the code
// context_length_exceeded.
void check_context(const ServedModel& model, int64_t prompt_tokens,
                   std::optional<int64_t> max_tokens, const std::string& param);

// with_speculation: of a server that has a draft.
nlohmann::ordered_json usage_json(const Usage& usage, bool with_speculation);
// Answers in server-sent events.
HttpResponse event_stream(std::function<void(const StreamWrite&)> stream);
HttpResponse json_response(const nlohmann::ordered_json& json);
// One server-sent event: "data: JSON\n\n".
std::string event(const nlohmann::ordered_json& json);

}  // namespace lathe
