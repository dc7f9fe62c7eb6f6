// Where an element of a block of keys or values lies. One KV head of one layer of one block is
//   keys    f32: [head_dim][kBlock]         bf16: [head_dim / 2][kBlock][2 dims]
//   values  f32: [kBlock][head_dim]         bf16: [kBlock / 2][head_dim][2 tokens]
// so both products of attention, q K^T (summed over dims) and p V (summed over tokens), read rows
// of consecutive results: no sum across a vector, and one load is shared by all query rows. The
// bf16 pairs make one 32-bit lane of two summands: x << 16 and x & 0xffff0000 are their fp32
// values, and the pairing is what vdpbf16ps, vpdpwssd and AMX take.
// docs/decisions/0010-kv-block-layout.md. The formats below 16 bits are in kv_codes.h.
#pragma once
#include <cstdint>

namespace lathe {

// Tokens in a block of the paged cache.
inline constexpr int64_t kBlockSize = 32;

// How a number of the cache is stored. From kFp8 on: codes (kv_codes.h).
enum class KvElement { kF32, kBF16, kFp8, kInt8, kQ4, kHiggs4, kHiggs3, kHiggs2 };

// f32 and bf16: numbers that are read where they lie.
constexpr bool kv_is_plain(KvElement element) {
  return element == KvElement::kF32 || element == KvElement::kBF16;
}

// Of the plain ones.
constexpr int64_t kv_element_size(KvElement element) { return element == KvElement::kF32 ? 4 : 2; }

// Offsets in elements from the start of one KV head's keys or values.
constexpr int64_t key_offset(KvElement element, int64_t token, int64_t dim) {
  return element == KvElement::kF32 ? dim * kBlockSize + token
                                    : (dim / 2 * kBlockSize + token) * 2 + dim % 2;
}
constexpr int64_t value_offset(KvElement element, int64_t head_dim, int64_t token, int64_t dim) {
  return element == KvElement::kF32 ? token * head_dim + dim
                                    : (token / 2 * head_dim + dim) * 2 + token % 2;
}

}  // namespace lathe
