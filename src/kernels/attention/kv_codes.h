// The formats of the cache below 16 bits that attention reads as they lie. One KV head of one
// block, keys or values, is one piece: codes, then scales [groups][kBlockSize] in bf16.
//
//   fp8     E4M3 numbers without a scale, what is above 448 saturates
//   int8    integer * scale, one scale per token and head: largest magnitude / 127
//   q4      (nibble - 8) * scale, one scale per token and 32 dims, chosen for the least squared
//           error (a ggml q4_0 block with a searched scale)
//   higgsN  the head rotated by a Hadamard matrix, divided by its root mean square, pairs of dims
//           rounded to the nearest of 4^N points in the plane (Malinovskii et al., "HIGGS", 2024;
//           quant/higgs.h): integers of an int8 copy of the grid * scale, one per token and head.
//           The rotation is orthonormal, so q is rotated instead of the keys, and the weighted sum
//           of rotated values is rotated back: once per row, not once per token.
//
// fp8 apart, a number is an integer in -127..127 times a scale of its token: q K^T and p V run in
// integers (attention_codes_simd.h). A scale that is NaN makes the token's numbers NaN: that is how
// a NaN or an infinity is stored. Keys are those after RoPE.
//
// Layout: "planes" of n slots per token, whose byte for (token t, slot j) lies as kv_layout.h lays
// out the bf16 of dim j of n dims (keys: pairs of slots; values: pairs of tokens).
//   fp8, int8   head_dim slots: dim j
//   q4          head_dim / 2 slots: dim j in the low nibble, dim j + head_dim / 2 in the high one
//   higgs4      head_dim / 2 slots: the code of dims j and j + head_dim / 2
//   higgs2      head_dim / 4 slots: the code of slot j of higgs4 in the low nibble, that of slot
//               j + head_dim / 4 in the high one
//   higgs3      a plane like that of higgs2 with the codes' low four bits, then one of head_dim / 8
//               slots: in bits 2 i, 2 i + 1 the high two bits of slot j + i * head_dim / 8
// A byte never holds two tokens: threads append tokens side by side.
//
// Every row attends to the first tokens of its sequence more than to others, so most of what codes
// lose is lost there. Formats with scales keep the first kLiveSinks tokens a second time, as bf16
// in the coordinates of the codes: [kLiveSinks][head_dim] for one KV head, keys or values.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/attention/kv_layout.h"

namespace lathe {

// Dims of q4 that share a scale; the last group of a head may be smaller.
inline constexpr int64_t kQ4Group = 32;

constexpr bool kv_is_rotated(KvElement element) {
  return element == KvElement::kHiggs4 || element == KvElement::kHiggs3 ||
         element == KvElement::kHiggs2;
}
// Integers times scales.
constexpr bool kv_has_scales(KvElement element) {
  return element == KvElement::kInt8 || element == KvElement::kQ4 || kv_is_rotated(element);
}
// Such a cache has keys without what those of their layer have in common (KeyOffset, attention.h).
constexpr bool kv_drops_key_offset(KvElement element) {
  return element != KvElement::kF32 && element != KvElement::kBF16;
}
constexpr int64_t kv_code_bits(KvElement element) {  // of one number
  switch (element) {
    case KvElement::kF32:
      return 32;
    case KvElement::kBF16:
      return 16;
    case KvElement::kFp8:
    case KvElement::kInt8:
      return 8;
    case KvElement::kQ4:
    case KvElement::kHiggs4:
      return 4;
    case KvElement::kHiggs3:
      return 3;
    case KvElement::kHiggs2:
      return 2;
  }
  return 0;
}
// Scales per token and head.
constexpr int64_t kv_scale_groups(KvElement element, int64_t head_dim) {
  if (!kv_has_scales(element)) return 0;
  return element == KvElement::kQ4 ? (head_dim + kQ4Group - 1) / kQ4Group : 1;
}
// Where the scales begin: bytes of one head's codes, a multiple of 64.
constexpr int64_t kv_scales_offset(KvElement element, int64_t head_dim) {
  return kBlockSize * head_dim / 8 * kv_code_bits(element);
}
// Keys (or values) of one KV head of one block.
constexpr int64_t kv_head_bytes(KvElement element, int64_t head_dim) {
  return kv_scales_offset(element, head_dim) + kv_scale_groups(element, head_dim) * kBlockSize * 2;
}

// Throws kUnsupported when the format cannot have this head_dim: even for f32 and bf16, else a
// multiple of 8 (higgs3: 16) up to 512, where sums of integers still fit into 32 bits.
void check_kv_element(KvElement element, int64_t head_dim);

enum class KvPart { kKeys, kValues };

inline constexpr int64_t kLiveSinks = 4;
constexpr bool kv_keeps_sinks(KvElement element) { return kv_has_scales(element); }
// Exact rows of one KV head: less than its codes of a block, so that a block has room for them.
constexpr int64_t kv_sink_bytes(int64_t head_dim) { return kLiveSinks * head_dim * 2; }
static_assert(kv_sink_bytes(8) <= kv_head_bytes(KvElement::kHiggs2, 8));

// One token of one head, all formats: x [head_dim] as numbers, `head` as above.
void kv_store(KvElement element, KvPart plane, int64_t head_dim, const float* x, int64_t token,
              std::byte* head);
// Back, in the coordinates of attention: still rotated where kv_is_rotated.
void kv_load(KvElement element, KvPart plane, int64_t head_dim, const std::byte* head,
             int64_t token, float* x);

// The same for exact rows, which lie alike for keys and values: `head` has kv_sink_bytes().
void kv_store_sink(KvElement element, int64_t head_dim, const float* x, int64_t token,
                   std::byte* head);
void kv_load_sink(int64_t head_dim, const std::byte* head, int64_t token, float* x);

// In place: x times the orthonormal Hadamard matrix of head_dim, which is its own inverse. A
// head_dim that is no power of two is cut into powers of two, the largest first (80 = 64 + 16).
void kv_rotate(float* x, int64_t head_dim);

// The grid of a HIGGS format with 4^bits points, scaled to bytes: point i is (first[i],
// second[i]) * step.
struct KvGrid {
  int8_t first[256];
  int8_t second[256];
  int num_points;
  float step;
};
const KvGrid& kv_grid(KvElement element);

// For each square of the plane, the points that can be the nearest of some position in it, in
// ascending order. Cell (row, column) covers [column, row] * kCellSize - kCellSize * kCells / 2 and
// kCellSize more, in steps of the grid.
struct KvGridSearch {
  static constexpr int kCells = 64;  // per side
  static constexpr float kCellSize = 4;
  std::span<const int32_t> begin;  // [kCells * kCells + 1], of cell row * kCells + column
  std::span<const uint8_t> candidates;
};
KvGridSearch kv_grid_search(KvElement element);

}  // namespace lathe
