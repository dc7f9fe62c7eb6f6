#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace lathe {
namespace {

TEST(ThreadPool, CoversEveryIndexOnce) {
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (const int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n));
        pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int thread_idx) {
          EXPECT_LE(end - begin, grain);
          EXPECT_GE(thread_idx, 0);
          EXPECT_LT(thread_idx, num_threads);
          for (int64_t i = begin; i < end; ++i) seen[static_cast<std::size_t>(i)]++;
        });
        for (const auto& count : seen) EXPECT_EQ(count.load(), 1);
      }
    }
  }
}

TEST(ThreadPool, ManyShortLoopsInARow) {
  ThreadPool pool(4);
  std::atomic<int64_t> sum{0};
  for (int round = 0; round < 20000; ++round) {
    pool.parallel_for(3 + round % 5, 1, [&](int64_t begin, int64_t, int) { sum += begin + 1; });
  }
  int64_t expected = 0;
  for (int round = 0; round < 20000; ++round) {
    const int64_t n = 3 + round % 5;
    expected += n * (n + 1) / 2;
  }
  EXPECT_EQ(sum.load(), expected);
}

TEST(ThreadPool, CarriesTheFirstExceptionAndStaysUsable) {
  ThreadPool pool(3);
  for (int round = 0; round < 50; ++round) {
    EXPECT_THROW(pool.parallel_for(100, 1,
                                   [&](int64_t begin, int64_t, int) {
                                     if (begin == 37) throw std::runtime_error("37");
                                   }),
                 std::runtime_error);
    std::atomic<int> count{0};
    pool.parallel_for(10, 1, [&](int64_t, int64_t, int) { count++; });
    EXPECT_EQ(count.load(), 10);
  }
}

TEST(ThreadPool, NestedLoopsRunInTheirThread) {
  ThreadPool pool(2);
  std::atomic<int> count{0};
  pool.parallel_for(8, 1, [&](int64_t, int64_t, int outer_idx) {
    pool.parallel_for(5, 1, [&](int64_t begin, int64_t end, int inner_idx) {
      EXPECT_EQ(inner_idx, outer_idx);
      count += static_cast<int>(end - begin);
    });
  });
  EXPECT_EQ(count.load(), 40);
}

TEST(ThreadPool, CallersFromSeveralThreadsTakeTurns) {
  ThreadPool pool(3);
  std::atomic<int> count{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        pool.parallel_for(7, 2,
                          [&](int64_t b, int64_t e, int) { count += static_cast<int>(e - b); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(count.load(), 4 * 200 * 7);
}

}  // namespace
}  // namespace lathe
