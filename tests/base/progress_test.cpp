#include "base/progress.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace lathe {
namespace {

// 90 of 100 were there before: the time of this run is that of the few that it did.
TEST(Progress, ForecastsFromWhatThisRunDid) {
  const auto start = std::chrono::steady_clock::now();
  Progress progress("test", 100, "steps", /*quiet=*/true);
  progress.begin_at(90);
  EXPECT_LT(progress.eta_seconds(), 0);  // nothing is known yet
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  progress.advance(5);
  EXPECT_EQ(progress.done(), 95);
  const double eta = progress.eta_seconds();
  const double most =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_GE(eta, 0.05);  // 5 took at least that long, and 5 are left
  EXPECT_LE(eta, most);
}

TEST(Progress, ForecastsNothingWithoutATotal) {
  Progress progress("test", -1, "steps", /*quiet=*/true);
  progress.advance(5);
  EXPECT_LT(progress.eta_seconds(), 0);
}

}  // namespace
}  // namespace lathe
