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

TEST(BlockPool, ABlockIsIdleWhenAllItsReferencesAre) {
  BlockPool pool(3);
  const BlockId block = *pool.allocate();
  pool.allocate();
  EXPECT_EQ(pool.num_running(), 2);
  pool.set_idle(block, true);
  EXPECT_EQ(pool.num_idle(), 1);
  EXPECT_EQ(pool.num_running(), 1);
  pool.add_reference(block);
  EXPECT_EQ(pool.num_running(), 2);
  pool.set_idle(block, true);
  EXPECT_EQ(pool.num_idle(), 1);
  pool.set_idle(block, false);
  EXPECT_EQ(pool.num_idle(), 0);
  EXPECT_FALSE(pool.release(block));
  EXPECT_EQ(pool.num_idle(), 1);
  pool.set_idle(block, false);
  EXPECT_TRUE(pool.release(block));
  EXPECT_EQ(pool.num_idle(), 0);
  EXPECT_EQ(pool.num_running(), 1);
}

TEST(BlockPoolDeathTest, IdleReferencesAreOfBlocksInUseAndNotReleased) {
  BlockPool pool(2);
  EXPECT_DEATH(pool.set_idle(0, true), "num_references");
  const BlockId block = *pool.allocate();
  EXPECT_DEATH(pool.set_idle(block, false), "count");
  pool.set_idle(block, true);
  EXPECT_DEATH(pool.set_idle(block, true), "count");
  EXPECT_DEATH(pool.release(block), "idle_references_");
}

TEST(BlockPoolDeathTest, ReleasingAFreeBlockIsABug) {
  BlockPool pool(2);
  EXPECT_DEATH(pool.release(0), "num_references");
  EXPECT_DEATH(pool.release(7), "block");
}

}  // namespace
}  // namespace lathe
