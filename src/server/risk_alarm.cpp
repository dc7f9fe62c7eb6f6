#include "server/risk_alarm.h"

#include <algorithm>
#include <cmath>

namespace lathe {

RiskAlarm::RiskAlarm(double rate, double level) : rate_(rate), log_limit_(-std::log(level)) {}

bool RiskAlarm::observe(bool event) {
  for (std::size_t i = 0; i < kShares.size(); ++i) {
    const double bet = rate_ + (1 - rate_) * kShares[i];
    log_wealth_[i] += event ? std::log(bet / rate_) : std::log((1 - bet) / (1 - rate_));
  }
  const double most = *std::max_element(log_wealth_.begin(), log_wealth_.end());
  double sum = 0;
  for (const double wealth : log_wealth_) sum += std::exp(wealth - most);
  if (most + std::log(sum / static_cast<double>(kShares.size())) < log_limit_) return false;
  log_wealth_.fill(0);
  return true;
}

}  // namespace lathe
