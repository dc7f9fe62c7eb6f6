#include "server/server_metrics.h"

#include <utility>

#include "server/engine_metrics.h"

namespace lathe {
namespace {

// Bounds of vLLM 0.24 (vllm/v1/metrics/loggers.py): quantiles over both kinds of server fit.
std::vector<double> first_token_bounds() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
          1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
}
std::vector<double> token_bounds() {
  return {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
          0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
}
std::vector<double> request_bounds() {
  return {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
          30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
}

constexpr FinishReason kReasons[] = {FinishReason::kStop, FinishReason::kLength,
                                     FinishReason::kAbort, FinishReason::kError};

}  // namespace

ServerMetrics::ServerMetrics(std::string model_name, int64_t max_sequence_tokens,
                             ServedSpeculation speculation)
    : time_to_first_token(first_token_bounds()),
      inter_token_latency(token_bounds()),
      time_per_output_token(token_bounds()),
      e2e_latency(request_bounds()),
      queue_time(request_bounds()),
      inference_time(request_bounds()),
      prefill_time(request_bounds()),
      decode_time(request_bounds()),
      prompt_tokens(buckets_1_2_5(max_sequence_tokens)),
      generation_tokens(buckets_1_2_5(max_sequence_tokens)),
      max_generation_tokens(buckets_1_2_5(max_sequence_tokens)),
      params_n({1, 2, 5, 10, 20}),
      params_max_tokens(buckets_1_2_5(max_sequence_tokens)),
      model_name_(std::move(model_name)),
      speculation_(std::move(speculation)) {}

void ServerMetrics::count_http(const std::string& path, int status) {
  const std::lock_guard lock(mutex_);
  ++http_requests_[{path, status}];
}

std::string ServerMetrics::text(const EngineStats& engine, const HttpServerStats& http,
                                int64_t block_tokens, const JudgeShadow* shadow) const {
  MetricText out;
  const MetricLabels labels = {{"engine", "0"}, {"model_name", model_name_}};
  const auto one = [&](const char* name, const char* type, const char* help, double value) {
    out.family(name, type, help);
    out.sample(name, labels, value);
  };
  const auto gauge = [&](const char* name, const char* help, double value) {
    one(name, "gauge", help, value);
  };
  const auto counter = [&](const char* name, const char* help, int64_t value) {
    one(name, "counter", help, static_cast<double>(value));
  };
  const auto histogram = [&](const char* name, const char* help, const Histogram& values) {
    out.family(name, "histogram", help);
    out.histogram(name, labels, values);
  };

  gauge("vllm:num_requests_running", "Choices that the engine is computing.",
        static_cast<double>(engine.num_running));
  gauge("vllm:num_requests_waiting", "Choices that wait for the engine.",
        static_cast<double>(engine.num_waiting));
  gauge("vllm:kv_cache_usage_perc",
        "Share of the cache's blocks that running choices use, of the scarcer kind; 1 is all.",
        engine.cache_usage());
  counter("vllm:prefix_cache_queries_total",
          "Prompt tokens that were looked up in the prefix cache.", engine.prompt_tokens);
  counter("vllm:prefix_cache_hits_total", "Prompt tokens that the prefix cache had.",
          engine.shared_prompt_tokens);
  counter("vllm:num_preemptions_total",
          "Choices that gave their blocks back and were computed again.", engine.num_preemptions);
  counter("vllm:prompt_tokens_total", "Tokens of prompts.", engine.prompt_tokens);
  counter("vllm:generation_tokens_total", "Tokens generated.", engine.generated_tokens);
  out.family("vllm:request_success_total", "counter", "Choices that ended, by reason.");
  int64_t num_finished = 0;
  for (const FinishReason reason : kReasons) {
    const int64_t count = finished_[static_cast<std::size_t>(reason)].value();
    num_finished += count;
    MetricLabels with_reason = labels;
    with_reason.emplace_back("finished_reason", to_string(reason));
    out.sample("vllm:request_success_total", with_reason, static_cast<double>(count));
  }
  histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.",
            time_to_first_token);
  histogram("vllm:inter_token_latency_seconds", "From one token to the next.", inter_token_latency);
  histogram("vllm:request_time_per_output_token_seconds",
            "Mean time of a choice's tokens behind the first.", time_per_output_token);
  histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", e2e_latency);
  histogram("vllm:request_queue_time_seconds", "From arrival to the first computed row.",
            queue_time);
  histogram("vllm:request_inference_time_seconds", "From the first computed row to the last token.",
            inference_time);
  histogram("vllm:request_prefill_time_seconds", "From the first computed row to the first token.",
            prefill_time);
  histogram("vllm:request_decode_time_seconds", "From the first token to the last.", decode_time);
  histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", prompt_tokens);
  histogram("vllm:request_generation_tokens", "Tokens generated for a choice.", generation_tokens);
  histogram("vllm:request_max_num_generation_tokens",
            "Tokens generated for the longest of a prompt's n choices.", max_generation_tokens);
  histogram("vllm:request_params_n", "The parameter n.", params_n);
  histogram("vllm:request_params_max_tokens", "The parameter max_tokens, where given.",
            params_max_tokens);
  out.family("vllm:cache_config_info", "gauge", "Sizes of the cache; the value is always 1.");
  out.sample("vllm:cache_config_info",
             {{"engine", "0"},
              {"block_size", std::to_string(block_tokens)},
              {"num_gpu_blocks", std::to_string(engine.cache_blocks.live)}},
             1);

  add_speculation_metrics(out, labels, speculation_, engine, shadow);
  add_parking_metrics(out, labels, engine.parking);

  counter("lathe_steps_total", "Steps of the engine.", engine.steps);
  add_cache_metrics(out, labels, engine);
  const int64_t started = choices_started.value();
  counter("lathe_choices_started_total", "Choices handed to the engine.", started);
  gauge("lathe_choices_open", "Choices that have not ended.",
        static_cast<double>(started - num_finished));
  counter("lathe_requests_rejected_total", "Requests refused because the queue was full.",
          rejected_full.value());
  counter("lathe_clients_gone_total", "Requests whose client left before the answer was complete.",
          clients_gone.value());
  gauge("lathe_http_connections", "Open connections.", static_cast<double>(http.open_connections));
  counter("lathe_http_connections_total", "Connections taken.", http.accepted_connections);
  counter("lathe_http_connections_refused_total", "Connections over --max-connections.",
          http.refused_connections);
  out.family("lathe_http_requests_total", "counter", "Answered requests by route and status.");
  const std::lock_guard lock(mutex_);
  for (const auto& [key, count] : http_requests_) {
    out.sample("lathe_http_requests_total",
               {{"path", key.first}, {"status", std::to_string(key.second)}},
               static_cast<double>(count));
  }
  return out.text();
}

}  // namespace lathe
