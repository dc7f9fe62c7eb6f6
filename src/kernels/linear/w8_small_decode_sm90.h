// Four 8-bit codes of a word, as two bf16 registers in the order of the columns.
#pragma once
#include <cstdint>

#include "kernels/linear/decode_words_sm90.h"

namespace lathe::w8_small {

// Two's complement: the low seven bits as 128 + b, less 128 or, where the sign is set, 256.
struct DecodeInt8 {
  static __device__ __forceinline__ void decode(uint32_t word, uint32_t& first, uint32_t& second) {
    first = pair(select_bytes(word, 0, 0x4140));
    second = pair(select_bytes(word, 0, 0x4342));
  }
  static __device__ __forceinline__ uint32_t pair(uint32_t bytes) {  // in bits 0..7, 16..23
    constexpr uint32_t k128 = 0x43004300;
    uint32_t difference;
    asm("sub.rn.bf16x2 %0, %1, %2;"
        : "=r"(difference)
        : "r"((bytes & 0x007F007Fu) | k128), "r"((bytes & 0x00800080u) | k128));
    return difference;
  }
};

// E4M3's exponent and mantissa are those of a bf16 2^120 times smaller; subnormals too.
struct DecodeE4m3 {
  static __device__ __forceinline__ void decode(uint32_t word, uint32_t& first, uint32_t& second) {
    first = pair(select_bytes(word, 0, 0x1404));
    second = pair(select_bytes(word, 0, 0x3424));
  }
  static __device__ __forceinline__ uint32_t pair(uint32_t bytes) {  // in bits 8..15, 24..31
    constexpr uint32_t kTwoToThe120 = 0x7B807B80;
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;"
        : "=r"(product)
        : "r"((bytes >> 4 & 0x07F007F0u) | (bytes & 0x80008000u)), "r"(kTwoToThe120));
    return product;
  }
};

// Scales of the four groups of 32 columns that a warp multiplies at once.
struct NoScale {
  static constexpr int kBytes = 0;  // of one scale
};
struct ScaleBf16 {
  static constexpr int kBytes = 2;
  // row: the four scales of a row in shared memory.
  static __device__ __forceinline__ void load(const uint8_t* row, float (&scales)[4]) {
    const uint2 bits = *reinterpret_cast<const uint2*>(row);
    scales[0] = __uint_as_float(bits.x << 16);
    scales[1] = __uint_as_float(bits.x & 0xFFFF0000u);
    scales[2] = __uint_as_float(bits.y << 16);
    scales[3] = __uint_as_float(bits.y & 0xFFFF0000u);
  }
};
struct ScaleE8m0 {
  static constexpr int kBytes = 1;
  static __device__ __forceinline__ void load(const uint8_t* row, float (&scales)[4]) {
    const uint32_t bits = *reinterpret_cast<const uint32_t*>(row);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t byte = bits >> (8 * i) & 255u;
      scales[i] = __uint_as_float(byte == 0 ? 0x00400000u : byte << 23);  // 2^-127 is subnormal
    }
  }
};

}  // namespace lathe::w8_small
