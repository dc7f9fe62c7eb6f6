// Where the time of forward passes goes, stage by stage.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <string>

namespace lathe {

enum class Stage {
  kEmbed,
  kNorm,  // all RMSNorms and residual additions
  kQkv,
  kRope,       // q/k norm and rotation
  kAttention,  // append to the cache and attend
  kO,
  kRouter,  // scores, choice, gather and scatter of a mixture of experts
  kGateUp,
  kActivation,
  kDown,
  kAllReduce,  // between ranks, waiting for them included; on a GPU the only stage that is timed
  kLogits,
  kSample,
  kDraft,     // speculation: choosing lengths, the draft model, n-grams
  kSchedule,  // everything of the engine around forward and sampling
  kCount,
};

struct StepProfile {
  std::array<int64_t, static_cast<std::size_t>(Stage::kCount)> nanoseconds{};
  int64_t steps = 0;

  int64_t total_nanoseconds() const;
  std::string table() const;  // one line per stage: name, microseconds per step, share
};

// Adds the time from here to the end of the scope to a stage. A null profile costs one comparison.
class StageTimer {
 public:
  StageTimer(StepProfile* profile, Stage stage) : profile_(profile), stage_(stage) {
    if (profile_ != nullptr) begin_ = Clock::now();
  }
  ~StageTimer() {
    if (profile_ == nullptr) return;
    const auto elapsed =
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin_);
    profile_->nanoseconds[static_cast<std::size_t>(stage_)] += elapsed.count();
  }
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  StepProfile* profile_;
  Stage stage_;
  Clock::time_point begin_;
};

}  // namespace lathe
