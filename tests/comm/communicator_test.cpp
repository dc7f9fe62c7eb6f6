#include "comm/communicator.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "comm/launch.h"
#include "comm/thread_ranks.h"

namespace lathe {
namespace {

TEST(Communicator, SumsAreThoseOfTheRanksInTheirOrderWhoeverIsRoot) {
  // In double, 2^60 + 1 - 2^60 is 0 and 2^60 - 2^60 + 1 is 1: the order of ranks shows. And a sum
  // in float would lose 2^-30 beside 1.
  const double values[3] = {0x1p60, -0x1p60, 1.0};
  const float floats[3] = {1.0f, 0x1p-30f, -1.0f};
  for (const int root : {0, 1, 2}) {
    ThreadRanks(3).run([&](Communicator& ranks) {
      std::vector<double> sums = {values[ranks.rank()], 1.0 + ranks.rank()};
      reduce_sum(ranks, root, sums);
      std::vector<float> narrow = {floats[ranks.rank()]};
      reduce_sum(ranks, root, narrow);
      if (ranks.rank() == root) {
        EXPECT_EQ(sums, (std::vector<double>{1.0, 6.0}));
        EXPECT_EQ(narrow[0], 0x1p-30f);
      } else {
        EXPECT_EQ(sums[0], values[ranks.rank()]);
      }
    });
  }
}

TEST(Communicator, SumsOfMoreThanOnePieceAndOfNothing) {
  ThreadRanks(2).run([](Communicator& ranks) {
    std::vector<float> many((1 << 19) + 3);
    for (std::size_t i = 0; i < many.size(); ++i) many[i] = static_cast<float>(i % 1000);
    reduce_sum(ranks, 1, many);
    for (std::size_t i = 0; i < many.size(); ++i) {
      ASSERT_EQ(many[i], static_cast<float>((1 + ranks.rank()) * (i % 1000))) << i;
    }
    reduce_sum(ranks, 0, std::span<float>());
    std::vector<double> all = {0.5};
    all_reduce_sum(ranks, all);
    EXPECT_EQ(all[0], 1.0);
    std::vector<float> largest = {ranks.rank() == 0 ? -3.0f : -7.0f,
                                  ranks.rank() == 0 ? 1.0f : 2.0f};
    all_reduce_max(ranks, largest);
    EXPECT_EQ(largest, (std::vector<float>{-3.0f, 2.0f}));
  });
}

TEST(Communicator, BroadcastsWhatTheRootHas) {
  ThreadRanks(3).run([](Communicator& ranks) {
    std::string text = ranks.rank() == 2 ? "" : "of rank " + std::to_string(ranks.rank());
    broadcast_text(ranks, 1, text);
    EXPECT_EQ(text, "of rank 1");
    std::vector<int64_t> values(static_cast<std::size_t>(ranks.rank()), 7);
    broadcast_vector(ranks, 0, values);
    EXPECT_TRUE(values.empty());
    EXPECT_EQ(rank_name(ranks, 2), "rank 2 of 3 (host threads)");
  });
}

TEST(Communicator, SharesCoverEverythingOnce) {
  for (const int64_t count : {0, 1, 5, 128}) {
    for (const int size : {1, 2, 3, 7}) {
      int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const RankShare share = share_of(count, rank, size);
        EXPECT_EQ(share.begin, next);
        EXPECT_LE(share.end - share.begin, (count + size - 1) / size);
        next = share.end;
      }
      EXPECT_EQ(next, count);
    }
  }
}

TEST(Communicator, AProcessAloneIsItsOwnRoot) {
  SoloCommunicator alone;
  std::vector<double> sums = {1.5};
  all_reduce_sum(alone, sums);
  EXPECT_EQ(sums[0], 1.5);
  std::string text = "kept";
  broadcast_text(alone, 0, text);
  EXPECT_EQ(text, "kept");
}

// The environment of a launcher, taken away again.
class LaunchedAs {
 public:
  LaunchedAs(const char* size, const char* rank) {
    setenv("OMPI_COMM_WORLD_SIZE", size, 1);
    setenv("OMPI_COMM_WORLD_RANK", rank, 1);
  }
  ~LaunchedAs() {
    unsetenv("OMPI_COMM_WORLD_SIZE");
    unsetenv("OMPI_COMM_WORLD_RANK");
  }
};

TEST(Launch, ReadsTheLaunchersEnvironmentAndNothingElse) {
  EXPECT_EQ(launched().size, 1);
  EXPECT_NO_THROW(require_one_process("compress"));
  {
    const LaunchedAs two("2", "1");
    EXPECT_EQ(launched().size, 2);
    EXPECT_EQ(launched().rank, 1);
    EXPECT_THROW(require_one_process("compress"), Error);
  }
  for (const auto& [size, rank] : {std::pair("two", "0"), std::pair("2", "2"), std::pair("", ""),
                                   std::pair("-2", "0"), std::pair("2x", "0")}) {
    const LaunchedAs odd(size, rank);
    EXPECT_EQ(launched().size, 1) << size << " " << rank;
  }
}

}  // namespace
}  // namespace lathe
