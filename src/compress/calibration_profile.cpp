#include "compress/calibration_profile.h"

#include <ctime>
#include <numeric>

namespace lathe {
std::string_view calibration_stage_name(CalibrationStage stage) {
  switch (stage) {
    case CalibrationStage::kLoad:
      return "load";
    case CalibrationStage::kPack:
      return "pack";
    case CalibrationStage::kLinear:
      return "linear";
    case CalibrationStage::kAttention:
      return "attention";
    case CalibrationStage::kBetween:
      return "between";
    case CalibrationStage::kHessian:
      return "hessian";
    case CalibrationStage::kFactor:
      return "factor";
    case CalibrationStage::kScales:
      return "scales";
    case CalibrationStage::kRound:
      return "round";
    case CalibrationStage::kCompensate:
      return "compensate";
    case CalibrationStage::kError:
      return "error";
    case CalibrationStage::kExchange:
      return "exchange";
    case CalibrationStage::kHidden:
      return "hidden";
    case CalibrationStage::kWrite:
      return "write";
    case CalibrationStage::kOther:
    case CalibrationStage::kCount:
      break;
  }
  return "other";
}

double thread_seconds() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double StageNumbers::total() const { return std::accumulate(values.begin(), values.end(), 0.0); }

CalibrationProfile::CalibrationProfile()
    : since_(Clock::now()), processor_since_(thread_seconds()) {}

CalibrationStage CalibrationProfile::enter(CalibrationStage stage) {
  const Clock::time_point now = Clock::now();
  const double processor = thread_seconds();
  seconds_[open_] += std::chrono::duration<double>(now - since_).count();
  processor_[open_] += processor - processor_since_;
  since_ = now;
  processor_since_ = processor;
  const CalibrationStage before = open_;
  open_ = stage;
  return before;
}

StageNumbers CalibrationProfile::seconds() {
  enter(open_);
  return seconds_;
}

StageNumbers CalibrationProfile::processor_seconds() {
  enter(open_);
  return processor_;
}

void CalibrationProfile::move_seconds(CalibrationStage from, CalibrationStage to, double seconds) {
  const double share = seconds_[from] > 0 ? seconds / seconds_[from] : 0;
  const double processor = share * processor_[from];
  seconds_[from] -= seconds;
  seconds_[to] += seconds;
  processor_[from] -= processor;
  processor_[to] += processor;
}

}  // namespace lathe
