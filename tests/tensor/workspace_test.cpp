#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "tensor/exec.h"

namespace lathe {
namespace {

// Fills a block, so that overlapping ones show.
std::byte* filled(Workspace& workspace, int64_t num_bytes, int value) {
  std::byte* block = workspace.allocate(num_bytes);
  std::memset(block, value, static_cast<std::size_t>(num_bytes));
  return block;
}

bool holds(const std::byte* block, int64_t num_bytes, int value) {
  for (int64_t i = 0; i < num_bytes; ++i) {
    if (block[i] != static_cast<std::byte>(value)) return false;
  }
  return true;
}

TEST(Workspace, GrowsToWhatWasInUseAtOnce) {
  Workspace workspace;
  {
    const Workspace::Scope scope(workspace);
    workspace.allocate(1000);
    workspace.allocate(2000);
  }
  EXPECT_GE(workspace.capacity(), 3000);
  const int64_t capacity = workspace.capacity();
  {
    const Workspace::Scope scope(workspace);
    workspace.allocate(1000);
    workspace.allocate(2000);
  }
  EXPECT_EQ(workspace.capacity(), capacity);
}

// The first pass through a model needs the memory of one layer, not of all of them.
TEST(Workspace, ExtraBlocksServeOneLayerAfterTheOther) {
  Workspace workspace;
  const Workspace::Scope model(workspace);
  std::byte* hidden = filled(workspace, 500, 1);
  std::set<std::byte*> blocks;
  for (int layer = 0; layer < 10; ++layer) {
    const Workspace::Scope scope(workspace);
    std::byte* large = filled(workspace, 100000, 2);
    for (int piece = 0; piece < 2; ++piece) {
      const Workspace::Scope inner(workspace);
      std::byte* small = filled(workspace, 3000, 3);
      blocks.insert(small);
      EXPECT_TRUE(holds(large, 100000, 2));
    }
    blocks.insert(large);
  }
  EXPECT_EQ(blocks.size(), 2u);
  EXPECT_TRUE(holds(hidden, 500, 1));
}

// Blocks of an outer scope stay while those of an inner one are handed out again.
TEST(Workspace, BlocksInUseAreNotHandedOut) {
  Workspace workspace;
  for (int round = 0; round < 3; ++round) {
    const Workspace::Scope outer(workspace);
    std::byte* a = filled(workspace, 700, 1);
    {
      const Workspace::Scope inner(workspace);
      std::byte* b = filled(workspace, 700, 2);
      EXPECT_TRUE(holds(a, 700, 1) && holds(b, 700, 2));
    }
    std::byte* c = filled(workspace, 600, 3);
    std::byte* d = filled(workspace, 700, 4);
    EXPECT_TRUE(holds(a, 700, 1) && holds(c, 600, 3) && holds(d, 700, 4));
  }
}

}  // namespace
}  // namespace lathe
