#include "cache/live_blocks.h"

#include <cstring>
#include <limits>

#include "base/error.h"

namespace lathe {
namespace {

int64_t checked_bytes(const LiveBlockShape& shape, int64_t num_blocks) {
  int64_t bytes = 0;
  if (num_blocks > std::numeric_limits<BlockId>::max() ||
      __builtin_mul_overflow(shape.block_bytes(), num_blocks, &bytes)) {
    fail(ErrorCode::kOutOfMemory, "a cache of ", num_blocks, " blocks of ", shape.block_bytes(),
         " bytes");
  }
  return bytes;
}

}  // namespace

LiveBlocks::LiveBlocks(const LiveBlockShape& shape, int64_t num_blocks)
    : shape_(shape), num_blocks_(num_blocks), memory_(checked_bytes(shape, num_blocks)) {}

void LiveBlocks::copy_block(BlockId from, BlockId to) {
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    std::memcpy(keys(layer, to), keys(layer, from),
                static_cast<std::size_t>(2 * shape_.plane_bytes()));
  }
}

namespace {

void store_heads(const LiveBlockShape& shape, KvPart which, const float* x, int64_t token,
                 std::byte* plane) {
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    kv_store(shape.element, which, shape.head_dim, x + head * shape.head_dim, token,
             plane + head * kv_head_bytes(shape.element, shape.head_dim));
  }
}

void load_heads(const LiveBlockShape& shape, KvPart which, const std::byte* plane, int64_t token,
                float* x) {
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    float* to = x + head * shape.head_dim;
    kv_load(shape.element, which, shape.head_dim,
            plane + head * kv_head_bytes(shape.element, shape.head_dim), token, to);
    if (kv_is_rotated(shape.element)) kv_rotate(to, shape.head_dim);
  }
}

}  // namespace

void store_key(const LiveBlockShape& shape, const float* key, int64_t token, std::byte* plane) {
  store_heads(shape, KvPart::kKeys, key, token, plane);
}

void store_value(const LiveBlockShape& shape, const float* value, int64_t token, std::byte* plane) {
  store_heads(shape, KvPart::kValues, value, token, plane);
}

void load_key(const LiveBlockShape& shape, const std::byte* plane, int64_t token, float* key) {
  load_heads(shape, KvPart::kKeys, plane, token, key);
}

void load_value(const LiveBlockShape& shape, const std::byte* plane, int64_t token, float* value) {
  load_heads(shape, KvPart::kValues, plane, token, value);
}

void store_sink(const LiveBlockShape& shape, const float* row, int64_t token, std::byte* plane) {
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    kv_store_sink(shape.element, shape.head_dim, row + head * shape.head_dim, token,
                  plane + head * kv_sink_bytes(shape.head_dim));
  }
}

void load_sink(const LiveBlockShape& shape, const std::byte* plane, int64_t token, float* row) {
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    float* to = row + head * shape.head_dim;
    kv_load_sink(shape.head_dim, plane + head * kv_sink_bytes(shape.head_dim), token, to);
    if (kv_is_rotated(shape.element)) kv_rotate(to, shape.head_dim);
  }
}

}  // namespace lathe
