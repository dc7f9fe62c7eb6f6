// Rows of numbers as dense f32 or bf16: keys before RoPE beside live blocks, and exact sinks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/attention/kv_layout.h"
#include "tensor/float16.h"

namespace lathe {

inline void store_plain_row(KvElement element, const float* from, int64_t count, std::byte* to) {
  if (element == KvElement::kF32) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
  } else {
    auto* out = reinterpret_cast<uint16_t*>(to);
    for (int64_t j = 0; j < count; ++j) out[j] = bf16_from_float(from[j]);
  }
}

inline void load_plain_row(KvElement element, const std::byte* from, int64_t count, float* to) {
  if (element == KvElement::kF32) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
  } else {
    for (int64_t j = 0; j < count; ++j) {
      uint16_t bits;  // a record's bytes need not be aligned
      std::memcpy(&bits, from + 2 * j, sizeof bits);
      to[j] = float_from_bf16(bits);
    }
  }
}

}  // namespace lathe
