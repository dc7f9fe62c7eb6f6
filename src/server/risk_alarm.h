// A test that may be looked at after every observation: are events more frequent than `rate`?
//
// Under "at most `rate`" the wealth of a bet on a higher rate is a nonnegative supermartingale: an
// event multiplies it by b / rate, no event by (1 - b) / (1 - rate), which is at most 1 on average
// when b > rate. By Ville's inequality it ever reaches 1 / level with probability at most `level`.
// The wealth here is the mean over several b, so that it need not be known how much higher.
// Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting"
// (2024); Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference" (2023).
#pragma once
#include <array>

namespace lathe {

class RiskAlarm {
 public:
  // rate: in (0, 1).
  explicit RiskAlarm(double rate, double level = 0.05);
  // True when the alarm is due; it then starts anew.
  bool observe(bool event);

 private:
  static constexpr std::array<double, 5> kShares = {.05, .1, .2, .4, .8};
  double rate_;
  double log_limit_;
  std::array<double, kShares.size()> log_wealth_{};
};

}  // namespace lathe
