// From the 4-bit words of a weight tile (fp4_tiles.h) to the registers of wgmma's left operand. A
// pipeline stage holds 64 rows x kColumns columns of codes, 128 bytes of x; a decoder takes half of
// it at a time:
//   load<half>   the words and scales of this thread, from shared memory; `codes` and `scales` are
//                the addresses of the thread's first word and scale in the stage
//   decode       the left operand of two products of 32 bytes of K
#pragma once
#include <cstdint>

#include "kernels/linear/decode_words_sm90.h"
#include "kernels/linear/fp4_tiles.h"
#include "kernels/linear/wgmma_sm90.h"

namespace lathe {

// Byte i of a word.
__device__ __forceinline__ uint32_t byte_of(uint32_t word, int i) {
  return select_bytes(word, 0, 0x4440u + static_cast<uint32_t>(i));
}

__device__ __forceinline__ void store_shared(uint32_t address, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
}

constexpr uint32_t kMagnitudeBits = 0x77777777;
constexpr uint32_t kByteSigns = 0x80808080;

// MXFP4 to E5M2. E2M1 times a power of two is exact in E5M2, whose normal numbers span 30 binades;
// so the scale of a group is an addition to the exponents of a table of eight magnitudes, made
// once for the eight codes of a word. With e the scale's exponent byte and e_max the largest of
// the row, a weight becomes
//   element * 2^(e - e_max + 13)
// and `2^(e_max - 140)` is left to the row's factor. e lies in e_max - 26 .. e_max
// (mxfp4_row_exponents sees to it), but for codes that are all zero: code 0 is 0 in every table.
struct DecodeMxfp4ToE5m2 {
  static constexpr WgmmaType kType = WgmmaType::kFp8;
  static constexpr int kColumns = 128;
  static constexpr int kTileScaleBytes = 128;
  static constexpr int kThreadScaleBytes = 4;

  struct Row {
    uint32_t low[2], high[2];  // tables at e = 0, rows g and g + 8 (modulo 2^32)
  };
  struct Raw {
    uint4 codes;
    uint32_t scales;
  };

  static __device__ __forceinline__ Row begin_row(const uint8_t* exponents, int row) {
    Row state;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t e_max = exponents[row + 8 * i];
      // 0, .5, 1, 1.5 and 2, 3, 4, 6 times 2^13 in E5M2; an exponent step is 4 in every byte.
      state.low[i] = 0x3E3C3800u + 13u * 0x04040400u - e_max * 0x04040400u;
      state.high[i] = 0x46444240u + 13u * 0x04040404u - e_max * 0x04040404u;
    }
    return state;
  }
  static __device__ __forceinline__ float row_factor(const uint8_t* exponents, int row) {
    const int e = int{exponents[row]} - 140;  // 2^e: two factors, since 2^-140 is subnormal
    return e < -100 ? __int_as_float((e + 100 + 127) << 23) * __int_as_float((-100 + 127) << 23)
                    : __int_as_float((e + 127) << 23);
  }
  template <int kHalf>
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales) {
    return {load_shared_128(codes + kHalf * kTileCodeBytes),
            load_shared_32(scales + kHalf * kTileScaleBytes)};
  }
  template <int kHalf>
  static __device__ __forceinline__ void decode(const Raw& raw, const Row& row,
                                                uint32_t (&a)[2][4]) {
    const uint32_t words[4] = {raw.codes.x, raw.codes.y, raw.codes.z, raw.codes.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // word i: row i % 2, group i / 2, as the scale bytes lie
      const uint32_t e = byte_of(raw.scales, i);
      const uint32_t low = row.low[i % 2] + e * 0x04040400u;
      const uint32_t high = row.high[i % 2] + e * 0x04040404u;
      const uint32_t selectors = words[i] & kMagnitudeBits;
      a[i / 2][i % 2] = select_bytes(low, high, selectors) | (words[i] & kByteSigns);
      a[i / 2][2 + i % 2] = select_bytes(low, high, selectors >> 16) | (words[i] << 4 & kByteSigns);
    }
  }
};

__device__ __forceinline__ uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// Four E2M1 codes to bf16 * 2^kShift, two words: the high bytes and the low bytes come from a table
// each, then they are interleaved. signs: at bit 7 of every byte.
template <int kShift>
__device__ __forceinline__ void e2m1_to_bf16(uint32_t selectors, uint32_t signs, uint32_t& first,
                                             uint32_t& second) {
  // bf16: 0 = 0000, .5 = 3F00, 1 = 3F80, 1.5 = 3FC0, 2 = 4000, 3 = 4040, 4 = 4080, 6 = 40C0.
  static_assert(kShift % 2 == 0);
  constexpr uint32_t kStep = kShift / 2 % 256;
  const uint32_t high = select_bytes(0x3F3F3F00u + kStep * 0x01010100u,
                                     0x40404040u + kStep * 0x01010101u, selectors) |
                        (signs & kByteSigns);
  const uint32_t low = select_bytes(0xC0800000u, 0xC0804000u, selectors);
  first = select_bytes(low, high, 0x5140);
  second = select_bytes(low, high, 0x7362);
}

// NVFP4 to bf16: element * E4M3 scale has five significant bits, so the product of two bf16 is
// exact. The scale's bits, shifted by four, are a bf16 of 2^-120 times its value (subnormals too);
// the elements carry 2^120.
struct DecodeNvfp4ToBf16 {
  static constexpr WgmmaType kType = WgmmaType::kBf16;
  static constexpr int kColumns = 64;
  static constexpr int kTileScaleBytes = 256;
  static constexpr int kThreadScaleBytes = 8;

  struct Row {};
  struct Raw {
    uint2 codes;
    uint32_t scales;
  };

  static __device__ __forceinline__ Row begin_row(const uint8_t*, int) { return {}; }
  static __device__ __forceinline__ float row_factor(const uint8_t*, int) { return 1; }
  template <int kHalf>
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales) {
    return {load_shared_64(codes + kHalf * 8), load_shared_32(scales + kHalf * 4)};
  }
  template <int kHalf>
  static __device__ __forceinline__ void decode(const Raw& raw, const Row&, uint32_t (&a)[2][4]) {
    const uint32_t words[2] = {raw.codes.x, raw.codes.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // row g + 8 i; scale bytes: (g, 0) (g + 8, 0) (g, 1) (g + 8, 1)
      const uint32_t selectors = words[i] & kMagnitudeBits;
      e2m1_to_bf16<120>(selectors, words[i], a[0][i], a[0][2 + i]);
      e2m1_to_bf16<120>(selectors >> 16, words[i] << 4, a[1][i], a[1][2 + i]);
      // The scale in both halves of a word, shifted by four: x * (1 + 2^16) * 2^4.
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t scale = byte_of(raw.scales, i + 2 * j) * 0x00100010u;
        a[j][i] = multiply_bf16x2(a[j][i], scale);
        a[j][2 + i] = multiply_bf16x2(a[j][2 + i], scale);
      }
    }
  }
};

// MXFP4 to bf16, exact (a product below 2^-133 or above the largest bf16 is rounded): for inputs
// that are not quantized.
struct DecodeMxfp4ToBf16 {
  static constexpr WgmmaType kType = WgmmaType::kBf16;
  static constexpr int kColumns = 64;
  static constexpr int kTileScaleBytes = 128;
  static constexpr int kThreadScaleBytes = 4;

  struct Row {};
  struct Raw {
    uint2 codes;
    uint32_t scales;
  };

  static __device__ __forceinline__ Row begin_row(const uint8_t*, int) { return {}; }
  static __device__ __forceinline__ float row_factor(const uint8_t*, int) { return 1; }
  template <int kHalf>
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales) {
    return {load_shared_64(codes + kHalf * 8), load_shared_32(scales)};
  }
  template <int kHalf>
  static __device__ __forceinline__ void decode(const Raw& raw, const Row&, uint32_t (&a)[2][4]) {
    const uint32_t words[2] = {raw.codes.x, raw.codes.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t selectors = words[i] & kMagnitudeBits;
      e2m1_to_bf16<0>(selectors, words[i], a[0][i], a[0][2 + i]);
      e2m1_to_bf16<0>(selectors >> 16, words[i] << 4, a[1][i], a[1][2 + i]);
      // 2^(e - 127): the exponent field is e, or, for e = 0, the subnormal half of 2^-126.
      const uint32_t e = byte_of(raw.scales, i + 2 * kHalf);
      const uint32_t scale = e == 0 ? 0x00400040u : e * 0x00800080u;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        a[j][i] = multiply_bf16x2(a[j][i], scale);
        a[j][2 + i] = multiply_bf16x2(a[j][2 + i], scale);
      }
    }
  }
};

// INT4 with a bf16 scale per 32, to bf16: (nibble - 8) * scale, rounded to bf16 (2^-9 relative), as
// the product may have 12 significant bits.
struct DecodeInt4ToBf16 {
  static constexpr WgmmaType kType = WgmmaType::kBf16;
  static constexpr int kColumns = 64;
  static constexpr int kTileScaleBytes = 256;
  static constexpr int kThreadScaleBytes = 8;

  struct Row {};
  struct Raw {
    uint2 codes;
    uint32_t scales;
  };

  static __device__ __forceinline__ Row begin_row(const uint8_t*, int) { return {}; }
  static __device__ __forceinline__ float row_factor(const uint8_t*, int) { return 1; }
  template <int kHalf>
  static __device__ __forceinline__ Raw load(uint32_t codes, uint32_t scales) {
    return {load_shared_64(codes + kHalf * 8), load_shared_32(scales + kHalf * 4)};
  }
  template <int kHalf>
  static __device__ __forceinline__ void decode(const Raw& raw, const Row&, uint32_t (&a)[2][4]) {
    const uint32_t words[2] = {raw.codes.x, raw.codes.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t scale = select_bytes(raw.scales, 0, i == 0 ? 0x1010 : 0x3232);
      const uint32_t odd = words[i] >> 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // codes 2 j and 2 j + 1: the nibbles of byte j
        // 0x4300 | v is 128 + v in bf16.
        const uint32_t pair =
            (select_bytes(words[i], odd, 0x0400u + 0x0101u * static_cast<uint32_t>(j)) &
             0x000F000Fu) |
            0x43004300u;
        uint32_t centred;
        asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(centred) : "r"(pair), "r"(0x43084308u));
        a[j / 2][i + 2 * (j % 2)] = multiply_bf16x2(centred, scale);
      }
    }
  }
};

}  // namespace lathe
