// Tokens in a GPU's cache of codes (kernels/attention/kv_codes_cuda.h), by the CPU's encoder.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/attention/kv_codes_cuda.h"
#include "tensor/float16.h"

namespace lathe {

// One token of one head of a cache of codes (kHiggs4), from what kv_store() makes of x [head_dim],
// and back: in the coordinates of attention, rotated.
inline void write_kv_codes(KvPart part, int64_t head_dim, const float* x, int64_t token,
                           std::byte* head) {
  std::vector<std::byte> stored(
      static_cast<std::size_t>(kv_head_bytes(KvElement::kHiggs4, head_dim)));
  kv_store(KvElement::kHiggs4, part, head_dim, x, token, stored.data());
  const auto dim = static_cast<int>(head_dim), t = static_cast<int>(token);
  for (int slot = 0; slot < dim / 2; ++slot) {
    const bool is_key = part == KvPart::kKeys;
    head[is_key ? key_code_offset(dim, t, slot) : value_code_offset(dim, t, slot)] =
        stored[static_cast<std::size_t>(
            is_key ? key_offset(KvElement::kBF16, token, slot)
                   : value_offset(KvElement::kBF16, head_dim / 2, token, slot))];
  }
  std::memcpy(head + code_scale_offset(dim, t),
              stored.data() + kv_scales_offset(KvElement::kHiggs4, head_dim) + 2 * token, 2);
}
inline void read_kv_codes(KvPart part, int64_t head_dim, const std::byte* head, int64_t token,
                          float* x) {
  const auto dim = static_cast<int>(head_dim), t = static_cast<int>(token);
  const KvGrid& grid = kv_grid(KvElement::kHiggs4);
  uint16_t scale;
  std::memcpy(&scale, head + code_scale_offset(dim, t), 2);
  for (int slot = 0; slot < dim / 2; ++slot) {
    const auto code =
        static_cast<uint8_t>(head[part == KvPart::kKeys ? key_code_offset(dim, t, slot)
                                                        : value_code_offset(dim, t, slot)]);
    x[slot] = static_cast<float>(grid.first[code]) * float_from_bf16(scale);
    x[slot + dim / 2] = static_cast<float>(grid.second[code]) * float_from_bf16(scale);
  }
}

// The same of an exact row.
inline void write_kv_sink(int64_t head_dim, const float* x, int64_t token, std::byte* head) {
  kv_store_sink(KvElement::kHiggs4, head_dim, x, 0,
                head + sink_offset(static_cast<int>(head_dim), static_cast<int>(token)));
}
inline void read_kv_sink(int64_t head_dim, const std::byte* head, int64_t token, float* x) {
  kv_load_sink(head_dim, head + sink_offset(static_cast<int>(head_dim), static_cast<int>(token)), 0,
               x);
}

}  // namespace lathe
