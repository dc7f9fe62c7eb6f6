// A share of judged answers computed once more, exactly, and compared: how often a judge changes
// what is said, and by how much (AutoJudge's own measure, a task's checker, is not there for
// requests of strangers).
//
//   text      of the exact answer and of the judged one: equal or not
//   deficit   log p(exact answer) - log p(judged answer) under the model, in nats; 0 when equal
//
// Never in the way: it works only while the engine has nothing else, drops what it is at when a
// request arrives (which waits for one step at most) and begins anew. The queue is bounded; what
// does not fit is counted and forgotten. Its sequences leave nothing in caches and stores.
//
// With an alarm, the threshold of requests that leave it to the server is lowered when their
// answers differ more often than the operator allows: to the next smaller certified one, then to 0.
//
// Threads: submit() and the rest from any; between_steps() from the engine's.
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "engine/engine.h"
#include "server/idle_work.h"
#include "server/metrics.h"
#include "server/risk_alarm.h"

namespace lathe {

// A judged answer that shall be compared.
struct ShadowJob {
  std::vector<int32_t> prompt;
  SamplingParams params;
  std::function<std::unique_ptr<TokenConstraint>()> make_constraint = nullptr;
  std::vector<int32_t> token_ids;  // of the judged answer
  std::string text;
  int64_t judge_accepted = 0;
  double threshold = 0;  // that it was judged with
  int64_t num_tries = 0;
};

struct JudgeShadowOptions {
  double share = 0;        // of judged answers
  double alarm_rate = -1;  // -1: no alarm; otherwise in (0, 1)
  double threshold = 0;    // of requests that leave it to the server
  std::vector<double> certified;
  uint64_t seed = 0;
  std::function<void(double threshold)> on_alarm;  // the new threshold; from the engine's thread
};

class JudgeShadow final : public IdleWork {
 public:
  static constexpr std::size_t kMaxQueue = 64;
  static constexpr int64_t kMaxTries = 100;

  // Borrows the engine, which must not run before this is made, nor after it is gone.
  JudgeShadow(Engine& engine, JudgeShadowOptions options);

  // Whether the answer of a judged request that begins now is to be compared. Only answers that
  // exact decoding determines can be: temperature 0, or coupled.
  bool wants(const SamplingParams& params);
  void submit(ShadowJob job);
  // Of requests that leave it to the server.
  double threshold() const { return threshold_; }
  bool alarmed() const { return alarmed_; }
  int64_t num_queued() const;

  void between_steps(bool others_wait) override;

  Counter compared;
  Counter differed;
  Counter dropped;  // no room in the queue, or interrupted too often
  Histogram deficit;

 private:
  bool take();
  void start();
  void on_output(const RequestOutput& output);
  void end_pass(FinishReason reason);
  void conclude(bool differs);

  Engine& engine_;
  const JudgeShadowOptions options_;
  std::atomic<double> threshold_;
  std::atomic<bool> alarmed_{false};
  mutable std::mutex mutex_;
  Rng rng_;
  std::deque<ShadowJob> queue_;

  // The job in progress; the engine's thread only.
  std::optional<RiskAlarm> alarm_;
  std::optional<ShadowJob> job_;
  std::optional<RequestId> running_;
  bool is_aborted_ = false;
  bool is_forced_ = false;  // the second pass: along the judged answer
  std::string text_;
  double exact_logprob_ = 0;
  double forced_logprob_ = 0;
};

}  // namespace lathe
