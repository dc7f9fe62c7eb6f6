// Where a quantization's time goes, and how much work each stage was: what plan_quantization()
// forecasts, as it happened.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lathe {

// Unit of the work in parentheses; a multiplication and an addition are two operations.
enum class CalibrationStage {
  kLoad,        // weights read and decoded to fp32 (weights)
  kPack,        // copied, decoded and laid out for a pass (weights)
  kLinear,      // linear layers of the passes (operations)
  kAttention,   // scores and values of the positions that a token sees (operations)
  kBetween,     // norms, RoPE, activation functions, residual sums (fp32 numbers read or written)
  kHessian,     // X^T X, upper triangle, and the magnitudes of the inputs (operations: k^2 a row)
  kFactor,      // rotation and Cholesky factor of the Hessians (operations: k^3 / 3)
  kScales,      // search for the scales of groups (weights, for each search)
  kRound,       // codes of a block of columns, errors moved inside the block (weights)
  kCompensate,  // errors moved into later blocks (operations: n k^2)
  kError,       // tr(D H D^T) of a weight or of its error (operations: n k^2)
  kExchange,    // inputs and codes between ranks, waiting included (bytes received)
  kHidden,      // hidden states read and written (bytes)
  kWrite,       // the result written, synced, digested (bytes)
  kOther,
  kCount,
};
inline constexpr auto kNumCalibrationStages = static_cast<std::size_t>(CalibrationStage::kCount);
std::string_view calibration_stage_name(CalibrationStage stage);

// Processor time of the calling thread. Where it runs loops of the thread pool, of which it always
// has a share, that is about the wall time of a machine that has nothing else to do.
double thread_seconds();

// One number for each stage.
struct StageNumbers {
  std::array<double, kNumCalibrationStages> values{};
  double& operator[](CalibrationStage stage) { return values[static_cast<std::size_t>(stage)]; }
  double operator[](CalibrationStage stage) const {
    return values[static_cast<std::size_t>(stage)];
  }
  double total() const;
};

// Every moment belongs to one stage, the innermost open one; kOther where none is. Used by one
// thread.
class CalibrationProfile {
 public:
  CalibrationProfile();

  const StageNumbers& work() const { return work_; }
  // Wall time, and thread_seconds().
  StageNumbers seconds();
  StageNumbers processor_seconds();

  void add_work(CalibrationStage stage, double amount) { work_[stage] += amount; }
  // Time that was charged to `from` and belongs to `to`; processor time goes along in proportion.
  void move_seconds(CalibrationStage from, CalibrationStage to, double seconds);

 private:
  friend class CalibrationTimer;
  using Clock = std::chrono::steady_clock;
  // Charges what has passed to the open stage, and opens another; returns the one before.
  CalibrationStage enter(CalibrationStage stage);

  StageNumbers work_, seconds_, processor_;
  CalibrationStage open_ = CalibrationStage::kOther;
  Clock::time_point since_;
  double processor_since_ = 0;
};

// The time from here to the end of the scope, without that of scopes inside it. Null: nothing.
class CalibrationTimer {
 public:
  // work: added to the stage too.
  CalibrationTimer(CalibrationProfile* profile, CalibrationStage stage, double work = 0)
      : profile_(profile) {
    if (profile_ == nullptr) return;
    profile_->add_work(stage, work);
    before_ = profile_->enter(stage);
  }
  ~CalibrationTimer() {
    if (profile_ != nullptr) profile_->enter(before_);
  }
  CalibrationTimer(const CalibrationTimer&) = delete;
  CalibrationTimer& operator=(const CalibrationTimer&) = delete;

 private:
  CalibrationProfile* profile_;
  CalibrationStage before_ = CalibrationStage::kOther;
};

}  // namespace lathe
