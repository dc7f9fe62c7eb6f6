// The choices of one request while the engine works on them: prompts times n, each a request of the
// engine. Their news cross from the engine's thread to the connection's thread through a queue; the
// latter waits on queue and client at once, so that a client who leaves ends its choices before the
// engine's next step.
//
// Of several choices on one prompt the first starts alone and the others follow at its first token:
// by then the prompt is computed, and they share its blocks.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/connection.h"
#include "server/engine_runner.h"
#include "server/judge_shadow.h"
#include "server/server_metrics.h"

namespace lathe {

// A token as an answer shows it: only filled for requests that want logprobs.
struct ChoiceToken {
  int32_t token = -1;
  float logprob = 0;
  std::vector<TokenLogprob> top;
};

struct ChoiceNews {
  int64_t choice = 0;  // prompt_idx * n + sample_idx
  std::string text;
  std::vector<ChoiceToken> tokens;
  int64_t num_tokens = 0;          // new ones
  std::vector<int32_t> token_ids;  // for a shadow
  std::optional<FinishReason> finish_reason;
  std::string error;  // with kError
  ErrorCode error_code = ErrorCode::kInternal;
  Usage usage;
};

struct ChoicesRequest {
  std::vector<std::vector<int32_t>> prompts;
  int64_t n = 1;
  SamplingParams params;  // sample i of a prompt uses seed + i
  SpeculativeParams speculative;
  JudgeShadow* shadow = nullptr;  // compares judged answers; null: nobody does
  // Of each choice; empty: none.
  std::function<std::unique_ptr<TokenConstraint>()> make_constraint = nullptr;
};

class Choices {
 public:
  using Clock = std::chrono::steady_clock;

  // Starts them. Throws what Engine::add_request() throws, and nothing runs then. deadline: when
  // next() gives up. Borrows the others.
  Choices(EngineRunner& runner, ServerMetrics& metrics, ChoicesRequest request,
          const ClientWatch& client, std::optional<Clock::time_point> deadline);
  // Aborts what has not ended.
  ~Choices();
  Choices(const Choices&) = delete;
  Choices& operator=(const Choices&) = delete;

  enum class Wait { kNews, kDone, kClientGone, kTimeout, kEngineLost };
  // The next news of any choice, in order. kDone: all have ended. Behind the other three nothing
  // more comes and the choices are aborted.
  Wait next(ChoiceNews& news);

  int64_t num_choices() const { return num_choices_; }
  // Tokens of all prompts (each once, whatever n), of all outputs so far, and shared ones.
  Usage usage() const;

 private:
  struct Channel;  // outlives this object in the engine's callbacks
  struct Progress {
    Usage usage;
    std::optional<Clock::time_point> first_token, last_token;
    bool ended = false;
    std::unique_ptr<ShadowJob> shadow;  // null: the answer is not compared
  };
  std::unique_ptr<ShadowJob> shadow_job(const Request& request) const;
  void note(const ChoiceNews& news);
  void note_longest(int64_t choice);
  void note_shadow(Progress& progress, const ChoiceNews& news);
  void abort_all();

  EngineRunner& runner_;
  ServerMetrics& metrics_;
  const ClientWatch& client_;
  const std::optional<Clock::time_point> deadline_;
  const Clock::time_point start_ = Clock::now();
  JudgeShadow* const shadow_;
  const int64_t n_;
  int64_t num_choices_ = 0;
  int64_t num_ended_ = 0;
  std::shared_ptr<Channel> channel_;
  std::vector<Progress> progress_;
};

}  // namespace lathe
