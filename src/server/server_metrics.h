// What /metrics shows: vLLM's names, labels and buckets, so that dashboards and autoscalers work
// unchanged, and lathe_* for what is this server's own.
//
// Counted are choices (a request with n = 3 is three), as the engine sees them. Every choice that
// was taken up is counted once in vllm:request_success_total, under the reason that ended it:
//   lathe_choices_started_total = sum of vllm:request_success_total + lathe_choices_open
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "engine/engine.h"
#include "server/http_server.h"
#include "server/judge_shadow.h"
#include "server/metrics.h"
#include "server/served_speculation.h"

namespace lathe {

class ServerMetrics {
 public:
  ServerMetrics(std::string model_name, int64_t max_sequence_tokens,
                ServedSpeculation speculation = {});

  // An answered HTTP request. path: of a route, or "other": a client cannot make new labels.
  void count_http(const std::string& path, int status);
  // A choice that ended.
  void count_finished(FinishReason reason) { finished_[static_cast<std::size_t>(reason)].add(); }

  // shadow: null: there is none.
  std::string text(const EngineStats& engine, const HttpServerStats& http, int64_t block_tokens,
                   const JudgeShadow* shadow = nullptr) const;

  Counter choices_started;
  Counter rejected_full;  // 429
  Counter clients_gone;   // requests whose client left before the answer was complete
  Histogram time_to_first_token;
  Histogram inter_token_latency;
  Histogram time_per_output_token;  // mean of a choice, without its first token
  Histogram e2e_latency;
  Histogram queue_time;
  Histogram inference_time;
  Histogram prefill_time;
  Histogram decode_time;
  Histogram prompt_tokens;
  Histogram generation_tokens;
  Histogram max_generation_tokens;  // the most of a prompt's n choices
  Histogram params_n;
  Histogram params_max_tokens;

 private:
  const std::string model_name_;
  const ServedSpeculation speculation_;
  std::array<Counter, 4> finished_;  // by FinishReason
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, int64_t> http_requests_;
};

}  // namespace lathe
