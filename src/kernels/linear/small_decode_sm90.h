// From packed weights to the bf16 registers of wgmma's left operand, for few rows of x. Here the
// decoding is what competes with the memory, 36 weights a clock and multiprocessor: so it counts
// instructions, and pairs of weights that lie 16 bits apart in a word go into one register as they
// lie. Which columns those are is undone in x (XOrder), whose order along k is free.
//
// MXFP4 can go to E5M2 instead, with less than half the work, and x to pairs of E4M3.
//
// A decoder has
//   kCodeBytes, kScaleBytes   of a tile of 64 x 64 weights
//   kSplitsX                  x is multiplied as pairs of E4M3 (small_split_sm90.h), else as bf16
//   kOrder                    what x has to look like
//   kOutputScale              the power of two that the decoded weights lack
//   load()                    this thread's share of a tile, from addresses in shared memory
//   decode<half>()            the left operands of two steps of 16 columns: half of the tile
//   decode()                  with kSplitsX: of two steps of 32 columns, the whole tile
#pragma once
#include <cstdint>

#include "kernels/linear/fp4_tiles.h"

namespace lathe {

// Which columns of x stand where among those that a step, or a pair of steps, multiplies. A word of
// the right operand is two neighbours along k; the words of thread t = 0..3 are, first then second
// of a step:
//   kNatural    2t, 2t + 1       2t + 8, 2t + 9
//   kBytePairs  4t, 4t + 2       4t + 1, 4t + 3
//   kHalfPairs  2t, 2t + 16      2t + 1, 2t + 17     then 2t + 8, 2t + 24   2t + 9, 2t + 25
enum class XOrder { kNatural, kBytePairs, kHalfPairs };

__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}
__device__ __forceinline__ uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}
__device__ __forceinline__ uint32_t add_bf16x2(uint32_t a, uint32_t b) {
  uint32_t sum;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}
// a where the mask is set, else b. Spelled out, since the compiler makes three instructions of it.
__device__ __forceinline__ uint32_t select_bits(uint32_t a, uint32_t b, uint32_t mask) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(result) : "r"(a), "r"(b), "r"(mask));
  return result;
}
// a & mask, out of the compiler's sight: it would mask anew what is shifted later.
__device__ __forceinline__ uint32_t keep_bits(uint32_t a, uint32_t mask) {
  uint32_t result;
  asm("and.b32 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(mask));
  return result;
}
// From shared memory.
__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}
__device__ __forceinline__ uint2 load_shared_8(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}
__device__ __forceinline__ uint32_t load_shared_4(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}
constexpr uint32_t kTwoToThe112 = 0x77807780;  // as two bf16
constexpr uint32_t kTwoToThe120 = 0x7B807B80;
constexpr uint32_t kTwoToThe127 = 0x7F007F00;

// The codes of a word as bf16, times 2^-126: a magnitude's three bits are the low bits of an
// exponent and the first of a mantissa, subnormals included. Two ways to pair them; signs come as
// words whose other bits are zero or lie under kMagnitudes.
constexpr uint32_t kMagnitudes = 0x01C001C0, kByteSigns = 0x80808080;

// A0 A2, A1 A3, B0 B2, B1 B3. Least work for the integer unit, which is the one that is short.
__device__ __forceinline__ void e2m1_pairs_apart_2(uint32_t word, uint32_t (&pairs)[4]) {
  const uint32_t a_signs = keep_bits(word, kByteSigns);       // of A_i at the top of byte i
  const uint32_t b_signs = keep_bits(word << 4, kByteSigns);  // of B_i
  const uint32_t a = permute_bytes(word, word, 0x1100);
  const uint32_t b = permute_bytes(word, word, 0x3322);
  pairs[0] = select_bits(a << 6, a_signs << 8, kMagnitudes);
  pairs[1] = select_bits(a << 2, a_signs, kMagnitudes);
  pairs[2] = select_bits(b << 6, b_signs << 8, kMagnitudes);
  pairs[3] = select_bits(b << 2, b_signs, kMagnitudes);
}
// A_i B_i: pairs whose halves belong to two groups of 16, which need one word of scales.
__device__ __forceinline__ void e2m1_pairs_apart_16(uint32_t word, uint32_t (&pairs)[4]) {
  const uint32_t a_signs = word & kByteSigns, b_signs = word << 4 & kByteSigns;
  const uint32_t upper = word >> 8;
  const uint32_t shifted[4] = {word << 6, word << 2, upper << 6, upper << 2};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t signs = permute_bytes(a_signs, b_signs, 0x4000u | i << 4 | i << 12);
    pairs[i] = select_bits(shifted[i], signs, kMagnitudes);
  }
}

struct SmallDecodeMxfp4 {
  static constexpr bool kSplitsX = false;
  static constexpr int kCodeBytes = kTileCodeBytes;
  static constexpr int kScaleBytes = 128;
  static constexpr XOrder kOrder = XOrder::kBytePairs;
  static constexpr float kOutputScale = 1;
  struct Raw {
    uint4 codes;
    uint32_t scales;
  };
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales, int thread) {
    return {load_shared_16(codes + thread * 16), load_shared_4(scales + thread / 4 * 4)};
  }
  // half: columns 32 half .. 32 half + 31, the left operands of two steps.
  template <int kHalf>
  static __device__ __forceinline__ void decode(const Raw& raw, uint32_t (&a)[2][4]) {
    const uint32_t words[2] = {kHalf == 0 ? raw.codes.x : raw.codes.z,
                               kHalf == 0 ? raw.codes.y : raw.codes.w};
#pragma unroll
    for (int row = 0; row < 2; ++row) {  // g, g + 8
      uint32_t pairs[4];
      e2m1_pairs_apart_2(words[row], pairs);
      // 2^(byte - 127 + 126) twice; byte <= 127, so that the exponent field does not run over.
      const uint32_t byte = permute_bytes(raw.scales, 0, 0x4040u + 0x101u * (2 * kHalf + row));
      const uint32_t scale = byte * 128 + 0x3F003F00u;
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][i % 2 * 2 + row] = mul_bf16x2(pairs[i], scale);
    }
  }
};

// To E5M2, exactly: the scale of a group is an addition to the exponents of a table of eight
// magnitudes, made once for the eight codes of a word. Scale bytes are 101..127, as pack_fp4() and
// mxfp4_row_exponents() leave them, but for codes that are all zero.
struct SmallDecodeMxfp4ToE5m2 {
  static constexpr bool kSplitsX = true;
  static constexpr int kCodeBytes = kTileCodeBytes;
  static constexpr int kScaleBytes = 128;
  static constexpr float kOutputScale = 0x1p-13f;
  using Raw = SmallDecodeMxfp4::Raw;
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales, int thread) {
    return SmallDecodeMxfp4::load(codes, scales, thread);
  }
  static __device__ __forceinline__ void decode(const Raw& raw, uint32_t (&a)[2][4]) {
    const uint32_t words[4] = {raw.codes.x, raw.codes.y, raw.codes.z, raw.codes.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // row i % 2, group i / 2, as the scale bytes lie
      // 0, .5, 1, 1.5 and 2, 3, 4, 6 times 2^(13 + e - 127) in E5M2; an exponent step is 4.
      const uint32_t e = permute_bytes(raw.scales, 0, 0x4440u + i);
      const uint32_t low = e * 0x04040400u + (0x3E3C3800u - 114u * 0x04040400u);
      const uint32_t high = e * 0x04040404u + (0x46444240u - 114u * 0x04040404u);
      const uint32_t selectors = words[i] & 0x77777777u;
      a[i / 2][i % 2] = permute_bytes(low, high, selectors) | (words[i] & kByteSigns);
      a[i / 2][2 + i % 2] =
          permute_bytes(low, high, selectors >> 16) | (words[i] << 4 & kByteSigns);
    }
  }
};

struct SmallDecodeNvfp4 {
  static constexpr bool kSplitsX = false;
  static constexpr int kCodeBytes = kTileCodeBytes;
  static constexpr int kScaleBytes = 256;
  static constexpr XOrder kOrder = XOrder::kHalfPairs;
  static constexpr float kOutputScale = 128;
  struct Raw {
    uint4 codes;
    uint2 scales;
  };
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales, int thread) {
    return {load_shared_16(codes + thread * 16), load_shared_8(scales + thread / 4 * 8)};
  }
  template <int kHalf>
  static __device__ __forceinline__ void decode(const Raw& raw, uint32_t (&a)[2][4]) {
    const uint32_t words[2] = {kHalf == 0 ? raw.codes.x : raw.codes.z,
                               kHalf == 0 ? raw.codes.y : raw.codes.w};
    const uint32_t scales = kHalf == 0 ? raw.scales.x : raw.scales.y;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      uint32_t pairs[4];
      e2m1_pairs_apart_16(words[row], pairs);
      // The byte shifted by four is a bf16 of 2^-120 times the E4M3 value, subnormals too. It needs
      // 2^(120 + 119), in two products; 448 * 2^119 is still finite.
      const uint32_t bytes = permute_bytes(scales, 0, 0x4240u + 0x101u * row);
      const uint32_t scale = mul_bf16x2(mul_bf16x2(bytes * 16, kTwoToThe127), kTwoToThe112);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][i % 2 * 2 + row] = mul_bf16x2(pairs[i], scale);
    }
  }
};

// code * scale has up to twelve significant bits and is rounded to bf16.
struct SmallDecodeInt4 {
  static constexpr bool kSplitsX = false;
  static constexpr int kCodeBytes = kTileCodeBytes;
  static constexpr int kScaleBytes = 256;
  static constexpr XOrder kOrder = XOrder::kHalfPairs;
  static constexpr float kOutputScale = 1;
  using Raw = SmallDecodeNvfp4::Raw;
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales, int thread) {
    return SmallDecodeNvfp4::load(codes, scales, thread);
  }
  template <int kHalf>
  static __device__ __forceinline__ void decode(const Raw& raw, uint32_t (&a)[2][4]) {
    const uint32_t words[2] = {kHalf == 0 ? raw.codes.x : raw.codes.z,
                               kHalf == 0 ? raw.codes.y : raw.codes.w};
    const uint32_t scales = kHalf == 0 ? raw.scales.x : raw.scales.y;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t scale = permute_bytes(scales, 0, row == 0 ? 0x1010u : 0x3232u);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // 128 + nibble as bf16; the nibble is the code + 8.
        const uint32_t biased = (words[row] >> (4 * i) & 0x000F000Fu) | 0x43004300u;
        a[i / 2][i % 2 * 2 + row] = mul_bf16x2(add_bf16x2(biased, 0xC308C308u), scale);
      }
    }
  }
};

}  // namespace lathe
