// Memory of live blocks: what attention reads. [layer][block][keys, values][one plane], where a
// plane is [num_kv_heads][one head as kv_layout.h and kv_codes.h say], or exact rows of sinks,
// [num_kv_heads][kv_sink_bytes()] at its start; consecutive block ids are
// contiguous within a layer, so attention over a sequence filled in one go streams through memory.
#pragma once
#include <cstdint>

#include "cache/block_pool.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/kv_codes.h"
#include "tensor/buffer.h"

namespace lathe {

struct LiveBlockShape {
  KvElement element = KvElement::kBF16;
  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;

  int64_t kv_size() const { return num_kv_heads * head_dim; }
  // Bytes of the keys (or values) of one block in one layer.
  int64_t plane_bytes() const { return num_kv_heads * kv_head_bytes(element, head_dim); }
  int64_t block_bytes() const { return 2 * num_layers * plane_bytes(); }
};

class LiveBlocks {
 public:
  // Throws kOutOfMemory with the size.
  LiveBlocks(const LiveBlockShape& shape, int64_t num_blocks);

  const LiveBlockShape& shape() const { return shape_; }
  KvBlockView view(int64_t layer, BlockId block) const {
    const std::byte* keys = memory_.data() + offset(layer, block);
    return {keys, keys + shape_.plane_bytes()};
  }
  std::byte* keys(int64_t layer, BlockId block) { return memory_.data() + offset(layer, block); }
  std::byte* values(int64_t layer, BlockId block) {
    return keys(layer, block) + shape_.plane_bytes();
  }
  void copy_block(BlockId from, BlockId to);

 private:
  int64_t offset(int64_t layer, BlockId block) const {
    return (layer * num_blocks_ + block) * 2 * shape_.plane_bytes();
  }
  LiveBlockShape shape_;
  int64_t num_blocks_;
  Buffer memory_;
};

// Writes one token's key or value [num_kv_heads * head_dim] into its place in a plane.
void store_key(const LiveBlockShape& shape, const float* key, int64_t token, std::byte* plane);
void store_value(const LiveBlockShape& shape, const float* value, int64_t token, std::byte* plane);
// And reads it back, as numbers in the model's coordinates whatever the format.
void load_key(const LiveBlockShape& shape, const std::byte* plane, int64_t token, float* key);
void load_value(const LiveBlockShape& shape, const std::byte* plane, int64_t token, float* value);
// The same for a plane of exact rows, of keys or values.
void store_sink(const LiveBlockShape& shape, const float* row, int64_t token, std::byte* plane);
void load_sink(const LiveBlockShape& shape, const std::byte* plane, int64_t token, float* row);

}  // namespace lathe
