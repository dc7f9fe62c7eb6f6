#include "kernels/collective/thread_collective.h"

#include <gtest/gtest.h>

#include <atomic>

#include "base/error.h"
#include "base/rank_threads.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

TEST(ThreadCollective, SumsAreInTheOrderOfRanksAndTheSameOnAll) {
  for (const int size : {1, 2, 3, 4}) {
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      SCOPED_TRACE(size * 10000 + count);
      const auto collectives = make_thread_collectives(size);
      std::vector<std::vector<float>> values;
      std::vector<float> expected;
      for (int rank = 0; rank < size; ++rank) {
        values.push_back(normal_values(count, static_cast<uint64_t>(rank + 1), 1));
      }
      for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
        double sum = 0;
        for (const auto& one : values) sum += double{one[i]};
        expected.push_back(static_cast<float>(sum));
      }
      RankThreads threads(size);
      threads.run(
          [&](int rank) {
            const auto r = static_cast<std::size_t>(rank);
            EXPECT_EQ(collectives[r]->rank(), rank);
            EXPECT_EQ(collectives[r]->size(), size);
            collectives[r]->all_reduce_sum(values[r].data(), count, DType::kF32, nullptr);
          },
          [&] { collectives[0]->abort(); });
      for (const auto& one : values) EXPECT_TRUE(same_bits(one, expected));
    }
  }
}

TEST(ThreadCollective, RankZeroReceivesPartsOfAnySize) {
  const auto collectives = make_thread_collectives(3);
  const std::vector<float> one = {1, 2, 3};
  const std::vector<float> two = {4};
  std::vector<float> from_one(3), from_two(1);
  RankThreads threads(3);
  for (int round = 0; round < 100; ++round) {
    from_one.assign(3, 0);
    from_two.assign(1, 0);
    threads.run(
        [&](int rank) {
          if (rank == 0) {
            const Collective::Part parts[] = {{from_one.data(), 3}, {from_two.data(), 1}};
            collectives[0]->receive(parts, nullptr);
          } else {
            const std::vector<float>& mine = rank == 1 ? one : two;
            collectives[static_cast<std::size_t>(rank)]->send(
                mine.data(), static_cast<int64_t>(mine.size()), nullptr);
          }
        },
        [&] { collectives[0]->abort(); });
    ASSERT_EQ(from_one, one);
    ASSERT_EQ(from_two, two);
  }
}

TEST(ThreadCollective, AFailedRankEndsWhatTheOthersWaitFor) {
  const auto collectives = make_thread_collectives(3);
  RankThreads threads(3);
  std::atomic<int> canceled{0};
  try {
    threads.run(
        [&](int rank) {
          if (rank == 1) fail(ErrorCode::kOutOfMemory, "rank 1");
          std::vector<float> values(8);
          try {
            collectives[static_cast<std::size_t>(rank)]->all_reduce_sum(values.data(), 8,
                                                                        DType::kF32, nullptr);
          } catch (const Error& error) {
            if (error.code() == ErrorCode::kCanceled) ++canceled;
            throw;
          }
        },
        [&] { collectives[1]->abort(); });
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_STREQ(error.what(), "rank 1");
  }
  EXPECT_EQ(canceled, 2);
}

}  // namespace
}  // namespace lathe
