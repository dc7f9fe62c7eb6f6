#include "cache/block_pool.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

TEST(BlockPool, HandsOutEachBlockOnceAscendingUntilExhausted) {
  BlockPool pool(5);
  for (BlockId expected = 0; expected < 5; ++expected) EXPECT_EQ(pool.allocate(), expected);
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.allocate(), std::nullopt);
  EXPECT_TRUE(pool.release(3));
  EXPECT_EQ(pool.allocate(), 3);
}

TEST(BlockPool, ABlockIsFreedByItsLastReference) {
  BlockPool pool(2);
  const BlockId block = *pool.allocate();
  pool.add_reference(block);
  pool.add_reference(block);
  EXPECT_EQ(pool.num_references(block), 3);
  EXPECT_FALSE(pool.release(block));
  EXPECT_FALSE(pool.release(block));
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_TRUE(pool.release(block));
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.num_references(block), 0);
}

TEST(BlockPoolDeathTest, ReleasingAFreeBlockIsABug) {
  BlockPool pool(2);
  EXPECT_DEATH(pool.release(0), "num_references");
  EXPECT_DEATH(pool.release(7), "block");
}

}  // namespace
}  // namespace lathe
