#include "cache/live_blocks.h"

#include <cstring>
#include <limits>

#include "base/error.h"
#include "tensor/float16.h"

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

void store_key(const LiveBlockShape& shape, const float* key, int64_t token, std::byte* plane) {
  const int64_t head_elements = kBlockSize * shape.head_dim;
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    const float* from = key + head * shape.head_dim;
    if (shape.element == KvElement::kF32) {
      float* to = reinterpret_cast<float*>(plane) + head * head_elements + token;
      for (int64_t j = 0; j < shape.head_dim; ++j) to[j * kBlockSize] = from[j];
    } else {  // a pair of dims is one aligned 32-bit word
      auto* to = reinterpret_cast<uint32_t*>(plane) + head * head_elements / 2 + token;
      for (int64_t j = 0; j < shape.head_dim; j += 2) {
        to[j / 2 * kBlockSize] =
            bf16_from_float(from[j]) | static_cast<uint32_t>(bf16_from_float(from[j + 1])) << 16;
      }
    }
  }
}

void store_value(const LiveBlockShape& shape, const float* value, int64_t token, std::byte* plane) {
  const int64_t head_elements = kBlockSize * shape.head_dim;
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    const float* from = value + head * shape.head_dim;
    const int64_t begin =
        head * head_elements + value_offset(shape.element, shape.head_dim, token, 0);
    if (shape.element == KvElement::kF32) {
      std::memcpy(reinterpret_cast<float*>(plane) + begin, from,
                  static_cast<std::size_t>(shape.head_dim) * sizeof(float));
    } else {
      uint16_t* to = reinterpret_cast<uint16_t*>(plane) + begin;
      for (int64_t j = 0; j < shape.head_dim; ++j) to[2 * j] = bf16_from_float(from[j]);
    }
  }
}

namespace {

float load(KvElement element, const std::byte* plane, int64_t offset) {
  return element == KvElement::kF32
             ? reinterpret_cast<const float*>(plane)[offset]
             : float_from_bf16(reinterpret_cast<const uint16_t*>(plane)[offset]);
}

}  // namespace

void load_key(const LiveBlockShape& shape, const std::byte* plane, int64_t token, float* key) {
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    for (int64_t j = 0; j < shape.head_dim; ++j) {
      key[head * shape.head_dim + j] =
          load(shape.element, plane,
               head * kBlockSize * shape.head_dim + key_offset(shape.element, token, j));
    }
  }
}

void load_value(const LiveBlockShape& shape, const std::byte* plane, int64_t token, float* value) {
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    for (int64_t j = 0; j < shape.head_dim; ++j) {
      value[head * shape.head_dim + j] =
          load(shape.element, plane,
               head * kBlockSize * shape.head_dim +
                   value_offset(shape.element, shape.head_dim, token, j));
    }
  }
}

}  // namespace lathe
