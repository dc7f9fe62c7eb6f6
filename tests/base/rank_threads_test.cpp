#include "base/rank_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>

#include "base/error.h"

namespace lathe {
namespace {

TEST(RankThreads, EveryRankRunsOnItsOwnThreadAtTheSameTime) {
  constexpr int kSize = 3;
  RankThreads threads(kSize);
  ASSERT_EQ(threads.size(), kSize);
  std::vector<std::thread::id> ids(kSize);
  threads.run([&](int rank) { ids[static_cast<std::size_t>(rank)] = std::this_thread::get_id(); },
              [] {});
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  EXPECT_NE(ids[1], ids[2]);
  Rendezvous rendezvous(kSize);  // would never be passed by ranks that follow one another
  std::atomic<int> passed{0};
  for (int job = 0; job < 500; ++job) {
    threads.run(
        [&](int rank) {
          EXPECT_EQ(ids[static_cast<std::size_t>(rank)], std::this_thread::get_id());
          rendezvous.wait();
          ++passed;
        },
        [] {});
  }
  EXPECT_EQ(passed, 500 * kSize);
}

TEST(RankThreads, TheFirstFailureIsTheOneThatIsReported) {
  for (int failing = 0; failing < 3; ++failing) {
    SCOPED_TRACE(failing);
    RankThreads threads(3);
    Rendezvous rendezvous(3);
    int num_calls = 0;
    try {
      threads.run(
          [&](int rank) {
            if (rank == failing) throw std::runtime_error("the cause");
            rendezvous.wait();
          },
          [&] {
            ++num_calls;
            rendezvous.abort();
          });
      FAIL() << "no error";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "the cause");
    }
    EXPECT_EQ(num_calls, 1);
    // The threads are there for the next job; the meeting place stays closed.
    std::atomic<int> closed{0};
    threads.run(
        [&](int) {
          try {
            rendezvous.wait();
          } catch (const Error& error) {
            if (error.code() == ErrorCode::kCanceled) ++closed;
          }
        },
        [] {});
    EXPECT_EQ(closed, 3);
  }
}

TEST(Rendezvous, AgreesWhenAllDo) {
  RankThreads threads(3);
  Rendezvous rendezvous(3);
  for (int round = 0; round < 64; ++round) {
    std::atomic<int> agreed{0};
    threads.run([&](int rank) { agreed += rendezvous.wait((round >> rank & 1) != 0) ? 1 : 0; },
                [] {});
    EXPECT_EQ(agreed, (round & 7) == 7 ? 3 : 0) << round;
  }
}

}  // namespace
}  // namespace lathe
