// Numbers 0..num_blocks-1 handed out with reference counts: which blocks of a cache are in use, and
// by how many. Knows nothing of what is in them.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace lathe {

using BlockId = int32_t;

class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);

  int64_t num_blocks() const { return static_cast<int64_t>(references_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  // Blocks all of whose references are idle ones.
  int64_t num_idle() const { return num_idle_; }
  // Neither free nor idle.
  int64_t num_running() const { return num_blocks() - num_free() - num_idle(); }

  // A free block, now with one reference; nothing when exhausted. Blocks come in ascending order
  // from a fresh pool, so that a sequence filled in one go lies contiguously in memory. Never
  // allocates memory.
  std::optional<BlockId> allocate();
  void add_reference(BlockId block);
  // Frees the block with its last reference; true when that happened.
  bool release(BlockId block);
  // Makes one of the block's references an idle one, of somebody who only keeps the block for
  // later, or (false) an ordinary one again; only those can be released.
  void set_idle(BlockId block, bool idle);
  int32_t num_references(BlockId block) const;

 private:
  bool is_idle(BlockId block) const;

  std::vector<int32_t> references_;       // 0: free
  std::vector<int32_t> idle_references_;  // of those
  std::vector<BlockId> free_;             // a stack
  int64_t num_idle_ = 0;
};

}  // namespace lathe
