// From packed weights to the bf16 registers of mma.m16n8k16's left operand, for few rows of x. Here
// the decoding is what competes with the memory, 36 weights a clock and multiprocessor on an H200:
// so it counts instructions, above all those of the integer unit, which takes two a clock. Which
// columns of x a register's halves meet is free (XOrder).
//
// A decoder has
//   kCodeBytes, kScaleBytes   of a tile of 64 x 64 weights
//   kOrder                    what x has to look like
//   kOutputScale              the power of two that the decoded weights lack
//   load()                    this thread's share of a tile, from shared memory: 16 bytes of codes
//                             and kScaleBytes / 32 of scales
//   decode<half>()            the left operands of two steps of 16 columns: half of the tile
//   kScalesSums               the scales are not in the operands; the sum of two steps is to be
//                             multiplied by
//   row_scales<half>()        of rows g and g + 8
#pragma once
#include <cstdint>

#include "kernels/linear/decode_words_sm90.h"
#include "kernels/linear/fp4_tiles.h"

namespace lathe {

// Which columns of x stand where among the 16 that a step, or the 32 that a pair of steps,
// multiplies. A word of the right operand is two neighbours along k; the words of thread t = 0..3
// are, first then second of a step:
//   kQuads      4t, 4t + 1       4t + 2, 4t + 3
//   kHalfPairs  2t, 2t + 16      2t + 1, 2t + 17     then 2t + 8, 2t + 24   2t + 9, 2t + 25
enum class XOrder { kQuads, kHalfPairs };

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
// Copies from global to shared memory past the registers.
__device__ __forceinline__ void copy_async_16(uint32_t to, const std::byte* from) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(from)
               : "memory");
}
template <int kBytes>
__device__ __forceinline__ void copy_async(uint32_t to, const std::byte* from) {  // 4 or 8
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes)
               : "memory");
}
constexpr uint32_t kTwoToThe112 = 0x77807780;  // as two bf16
constexpr uint32_t kTwoToThe127 = 0x7F007F00;

constexpr uint32_t kByteSigns = 0x80808080;

// The codes of a word as pairs of bf16: A0 A1, A2 A3, B0 B1, B2 B3. Upper and lower bytes of the
// eight magnitudes come from tables that the codes are selectors of.
__device__ __forceinline__ void e2m1_neighbours(uint32_t word, uint32_t (&pairs)[4]) {
  const uint32_t selectors = word & 0x77777777u;
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // A, B
    const uint32_t selector = i == 0 ? selectors : selectors >> 16;
    const uint32_t signs = (i == 0 ? word : word << 4) & kByteSigns;
    const uint32_t upper = select_bytes(0x3F3F3F00u, 0x40404040u, selector) | signs;
    const uint32_t lower = select_bytes(0xC0800000u, 0xC0804000u, selector);
    pairs[2 * i] = select_bytes(lower, upper, 0x5140);
    pairs[2 * i + 1] = select_bytes(lower, upper, 0x7362);
  }
}
// A_i B_i: pairs whose halves belong to two groups of 16, which need one word of scales. Times
// 2^-126: a magnitude's three bits are the low bits of an exponent and the first of a mantissa,
// subnormals included. Signs are words whose other bits are zero or lie under kMagnitudes.
constexpr uint32_t kMagnitudes = 0x01C001C0;
__device__ __forceinline__ void e2m1_pairs_apart_16(uint32_t word, uint32_t (&pairs)[4]) {
  const uint32_t a_signs = word & kByteSigns, b_signs = word << 4 & kByteSigns;
  const uint32_t upper = word >> 8;
  const uint32_t shifted[4] = {word << 6, word << 2, upper << 6, upper << 2};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t signs = select_bytes(a_signs, b_signs, 0x4000u | i << 4 | i << 12);
    pairs[i] = select_bits(shifted[i], signs, kMagnitudes);
  }
}

struct SmallDecodeMxfp4 {
  static constexpr bool kScalesSums = true;
  static constexpr int kCodeBytes = kTileCodeBytes;
  static constexpr int kScaleBytes = 128;
  static constexpr XOrder kOrder = XOrder::kQuads;
  static constexpr float kOutputScale = 1;
  struct Raw {
    uint4 codes;
    uint32_t scales;
  };
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales) {
    return {load_shared_128(codes), load_shared_32(scales)};
  }
  // half: columns 32 half .. 32 half + 31, which is a group.
  template <int kHalf>
  static __device__ __forceinline__ void decode(const Raw& raw, uint32_t (&a)[2][4]) {
    const uint32_t words[2] = {kHalf == 0 ? raw.codes.x : raw.codes.z,
                               kHalf == 0 ? raw.codes.y : raw.codes.w};
#pragma unroll
    for (int row = 0; row < 2; ++row) {  // g, g + 8
      uint32_t pairs[4];
      e2m1_neighbours(words[row], pairs);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][i % 2 * 2 + row] = pairs[i];
    }
  }
  // 2^(byte - 127), byte 1..127; 0 for 0, which is 2^-127 of the row's largest scale.
  template <int kHalf>
  static __device__ __forceinline__ float2 row_scales(const Raw& raw) {
    constexpr uint32_t kExponent = 0x7F800000;
    const uint32_t scales = raw.scales;
    if constexpr (kHalf == 0) {
      return {__uint_as_float(scales << 23 & kExponent), __uint_as_float(scales << 15 & kExponent)};
    } else {
      return {__uint_as_float(scales << 7 & kExponent), __uint_as_float(scales >> 1 & kExponent)};
    }
  }
};

struct SmallDecodeNvfp4 {
  static constexpr bool kScalesSums = false;
  static constexpr int kCodeBytes = kTileCodeBytes;
  static constexpr int kScaleBytes = 256;
  static constexpr XOrder kOrder = XOrder::kHalfPairs;
  static constexpr float kOutputScale = 128;
  struct Raw {
    uint4 codes;
    uint2 scales;
  };
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales) {
    return {load_shared_128(codes), load_shared_64(scales)};
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
      const uint32_t bytes = select_bytes(scales, 0, 0x4240u + 0x101u * row);
      const uint32_t scale = mul_bf16x2(mul_bf16x2(bytes * 16, kTwoToThe127), kTwoToThe112);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][i % 2 * 2 + row] = mul_bf16x2(pairs[i], scale);
    }
  }
};

// code * scale has up to twelve significant bits and is rounded to bf16.
struct SmallDecodeInt4 {
  static constexpr bool kScalesSums = false;
  static constexpr int kCodeBytes = kTileCodeBytes;
  static constexpr int kScaleBytes = 256;
  static constexpr XOrder kOrder = XOrder::kHalfPairs;
  static constexpr float kOutputScale = 1;
  using Raw = SmallDecodeNvfp4::Raw;
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales) {
    return SmallDecodeNvfp4::load(codes, scales);
  }
  template <int kHalf>
  static __device__ __forceinline__ void decode(const Raw& raw, uint32_t (&a)[2][4]) {
    const uint32_t words[2] = {kHalf == 0 ? raw.codes.x : raw.codes.z,
                               kHalf == 0 ? raw.codes.y : raw.codes.w};
    const uint32_t scales = kHalf == 0 ? raw.scales.x : raw.scales.y;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t scale = select_bytes(scales, 0, row == 0 ? 0x1010u : 0x3232u);
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
