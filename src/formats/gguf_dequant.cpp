#include "formats/gguf_dequant.h"

#include <cstring>

#include "quant/fp8.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

// Blocks lie at any address, so fields are read byte by byte or through memcpy.
const uint8_t* bytes_of(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }

uint16_t load_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

uint32_t load_u32(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float load_f16(const uint8_t* p) { return float_from_f16(load_u16(p)); }

// Decode(block, out) for every block.
template <int64_t kValues, int64_t kBytes, void (*Decode)(const uint8_t*, float*)>
void each_block(const std::byte* blocks, int64_t num_blocks, float* out) {
  const uint8_t* block = bytes_of(blocks);
  for (int64_t i = 0; i < num_blocks; ++i) Decode(block + i * kBytes, out + i * kValues);
}

void copy_f32(const std::byte* from, int64_t n, float* out) {
  if (n > 0) std::memcpy(out, from, static_cast<std::size_t>(n) * sizeof(float));
}

void decode_f16(const std::byte* from, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = load_f16(bytes_of(from) + 2 * i);
}

void decode_bf16(const std::byte* from, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = float_from_bf16(load_u16(bytes_of(from) + 2 * i));
}

// Types of 32 values: the low nibbles are values 0..15, the high ones 16..31.
//   Q4_0: d f16 | qs[16]              (q - 8) d
//   Q4_1: d f16 | m f16 | qs[16]      q d + m
//   Q5_0: d f16 | qh u32 | qs[16]     bit i of qh is the fifth bit of value i: (q - 16) d
//   Q5_1: d f16 | m f16 | qh u32 | qs[16]
//   Q8_0: d f16 | qs i8[32]
void decode_q4_0(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((block[2 + i] & 15) - 8);
    out[16 + i] = d * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

void decode_q4_1(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const float m = load_f16(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(block[4 + i] & 15) + m;
    out[16 + i] = d * static_cast<float>(block[4 + i] >> 4) + m;
  }
}

void decode_q5_0(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const uint32_t high = load_u32(block + 2);
  for (int i = 0; i < 16; ++i) {
    const int low_bit = static_cast<int>((high >> i) & 1) << 4;
    const int high_bit = static_cast<int>((high >> (16 + i)) & 1) << 4;
    out[i] = d * static_cast<float>(((block[6 + i] & 15) | low_bit) - 16);
    out[16 + i] = d * static_cast<float>(((block[6 + i] >> 4) | high_bit) - 16);
  }
}

void decode_q5_1(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const float m = load_f16(block + 2);
  const uint32_t high = load_u32(block + 4);
  for (int i = 0; i < 16; ++i) {
    const int low_bit = static_cast<int>((high >> i) & 1) << 4;
    const int high_bit = static_cast<int>((high >> (16 + i)) & 1) << 4;
    out[i] = d * static_cast<float>((block[8 + i] & 15) | low_bit) + m;
    out[16 + i] = d * static_cast<float>((block[8 + i] >> 4) | high_bit) + m;
  }
}

void decode_q8_0(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 32; ++i) {
    out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * d;
  }
}

// The "K" types: super-blocks of 256 values whose sub-blocks have small integer scales.

// Q2_K: scales[16] (low nibble scale, high nibble minimum) | qs[64] | d f16 | dmin f16.
// Sub-blocks of 16. Of each 32 bytes of qs, bits 0-1 are the first 32 values, bits 2-3 the next,
// ...
void decode_q2_k(const uint8_t* block, float* out) {
  const float d = load_f16(block + 80);
  const float dmin = load_f16(block + 82);
  for (int sub = 0; sub < 16; ++sub) {
    const float scale = d * static_cast<float>(block[sub] & 15);
    const float minimum = dmin * static_cast<float>(block[sub] >> 4);
    const uint8_t* qs = block + 16 + (sub / 8) * 32 + (sub % 2) * 16;
    const int shift = (sub % 8) / 2 * 2;
    for (int i = 0; i < 16; ++i) {
      *out++ = scale * static_cast<float>((qs[i] >> shift) & 3) - minimum;
    }
  }
}

// Q3_K: hmask[32] | qs[64] | scales[12] | d f16. Sub-blocks of 16 with signed 6-bit scales: the low
// four bits of scale s in nibble s / 8 of byte s % 8, the high two at bits 2 (s / 4) of byte
// 8 + s % 4. The third bit of a value, where it is 0, subtracts 4.
void decode_q3_k(const uint8_t* block, float* out) {
  const uint8_t* scales = block + 96;
  const float d = load_f16(block + 108);
  for (int sub = 0; sub < 16; ++sub) {
    const int low = (scales[sub % 8] >> (sub / 8 * 4)) & 15;
    const int high = (scales[8 + sub % 4] >> (sub / 4 * 2)) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    const uint8_t* qs = block + 32 + (sub / 8) * 32 + (sub % 2) * 16;
    const uint8_t* hmask = block + (sub % 2) * 16;
    const int shift = (sub % 8) / 2 * 2;
    const int bit = sub / 2;
    for (int i = 0; i < 16; ++i) {
      const int q = ((qs[i] >> shift) & 3) - (((hmask[i] >> bit) & 1) ^ 1) * 4;
      *out++ = scale * static_cast<float>(q);
    }
  }
}

// The eight 6-bit scales and minima of Q4_K and Q5_K, packed into 12 bytes: the first four of each
// in the low six bits of bytes 0-3 and 4-7; the others have four bits in bytes 8-11 (scale low,
// minimum high) and their upper two in the top of bytes 0-3 and 4-7.
struct ScaleMin {
  float scale[8];
  float minimum[8];
};
ScaleMin unpack_scales(const uint8_t* p, float d, float dmin) {
  ScaleMin result;
  for (int i = 0; i < 4; ++i) {
    result.scale[i] = d * static_cast<float>(p[i] & 63);
    result.minimum[i] = dmin * static_cast<float>(p[4 + i] & 63);
    result.scale[4 + i] = d * static_cast<float>((p[8 + i] & 15) | (p[i] >> 6) << 4);
    result.minimum[4 + i] = dmin * static_cast<float>((p[8 + i] >> 4) | (p[4 + i] >> 6) << 4);
  }
  return result;
}

// Q4_K: d f16 | dmin f16 | scales[12] | qs[128]. Sub-blocks of 32; two share 32 bytes of qs.
void decode_q4_k(const uint8_t* block, float* out) {
  const ScaleMin s = unpack_scales(block + 4, load_f16(block), load_f16(block + 2));
  for (int sub = 0; sub < 8; ++sub) {
    const uint8_t* qs = block + 16 + sub / 2 * 32;
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      *out++ = s.scale[sub] * static_cast<float>((qs[i] >> shift) & 15) - s.minimum[sub];
    }
  }
}

// Q5_K: d f16 | dmin f16 | scales[12] | qh[32] | qs[128]. Bit s of qh[i] is the fifth bit of value
// i of sub-block s.
void decode_q5_k(const uint8_t* block, float* out) {
  const ScaleMin s = unpack_scales(block + 4, load_f16(block), load_f16(block + 2));
  const uint8_t* qh = block + 16;
  for (int sub = 0; sub < 8; ++sub) {
    const uint8_t* qs = block + 48 + sub / 2 * 32;
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int q = ((qs[i] >> shift) & 15) | ((qh[i] >> sub) & 1) << 4;
      *out++ = s.scale[sub] * static_cast<float>(q) - s.minimum[sub];
    }
  }
}

// Q6_K: ql[128] | qh[64] | scales i8[16] | d f16. Two halves of 128 values; in each, 32 values at a
// time take a nibble of ql (two times 32 low, then two times 32 high) and two bits of qh.
void decode_q6_k(const uint8_t* block, float* out) {
  const float d = load_f16(block + 208);
  for (int part = 0; part < 8; ++part) {
    const int half = part / 4;
    const int quarter = part % 4;
    const uint8_t* ql = block + half * 64 + quarter % 2 * 32;
    const uint8_t* qh = block + 128 + half * 32;
    const int low_shift = quarter / 2 * 4;
    const int high_shift = quarter * 2;
    for (int sub = 0; sub < 2; ++sub) {
      const float scale = d * static_cast<float>(static_cast<int8_t>(block[192 + part * 2 + sub]));
      for (int i = sub * 16; i < sub * 16 + 16; ++i) {
        const int q = ((ql[i] >> low_shift) & 15) | ((qh[i] >> high_shift) & 3) << 4;
        *out++ = scale * static_cast<float>(q - 32);
      }
    }
  }
}

// A fitted 4-bit grid, denser around zero.
constexpr int8_t kNonLinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
// E2M1 times two; the scales of MXFP4 and NVFP4 are halved to match.
constexpr int8_t kE2m1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// n low nibbles, then n high nibbles, through a table.
void decode_nibbles(const uint8_t* qs, int n, float scale, const int8_t (&table)[16], float* out) {
  for (int i = 0; i < n; ++i) {
    out[i] = scale * static_cast<float>(table[qs[i] & 15]);
    out[n + i] = scale * static_cast<float>(table[qs[i] >> 4]);
  }
}

// IQ4_NL: d f16 | qs[16]
void decode_iq4_nl(const uint8_t* block, float* out) {
  decode_nibbles(block + 2, 16, load_f16(block), kNonLinear, out);
}

// IQ4_XS: d f16 | scales_h u16 | scales_l[4] | qs[128]. Sub-blocks of 32, 6-bit scales less 32.
void decode_iq4_xs(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const unsigned scales_high = load_u16(block + 2);
  for (int sub = 0; sub < 8; ++sub) {
    const int low = (block[4 + sub / 2] >> (sub % 2 * 4)) & 15;
    const int high = static_cast<int>(scales_high >> (2 * sub)) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    decode_nibbles(block + 8 + sub * 16, 16, scale, kNonLinear, out + sub * 32);
  }
}

// MXFP4: e8m0 u8 | qs[16]. Half the scale is 2^(e - 128): a subnormal for e < 2, as written here
// (bytes 0 and 1 are 2^-128 and 2^-127).
void decode_mxfp4(const uint8_t* block, float* out) {
  const uint32_t e = block[0];
  const uint32_t bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  decode_nibbles(block + 1, 16, scale, kE2m1Doubled, out);
}

// NVFP4: scales[4] | qs[32]. Four groups of 16; the scale is E4M3 without its sign, and 0x7f is 0.
// The tensor's fp32 scale is not in the block.
void decode_nvfp4(const uint8_t* block, float* out) {
  for (int group = 0; group < 4; ++group) {
    const uint8_t byte = block[group] & 0x7f;
    const float scale = block[group] == 0x7f ? 0.0f : e4m3_to_float(byte) * 0.5f;
    decode_nibbles(block + 4 + group * 8, 8, scale, kE2m1Doubled, out + group * 16);
  }
}

constexpr GgmlTypeInfo kTypes[] = {
    {GgmlType::kF32, "F32", 1, 4, copy_f32},
    {GgmlType::kF16, "F16", 1, 2, decode_f16},
    {GgmlType::kBF16, "BF16", 1, 2, decode_bf16},
    {GgmlType::kQ4_0, "Q4_0", 32, 18, each_block<32, 18, decode_q4_0>},
    {GgmlType::kQ4_1, "Q4_1", 32, 20, each_block<32, 20, decode_q4_1>},
    {GgmlType::kQ5_0, "Q5_0", 32, 22, each_block<32, 22, decode_q5_0>},
    {GgmlType::kQ5_1, "Q5_1", 32, 24, each_block<32, 24, decode_q5_1>},
    {GgmlType::kQ8_0, "Q8_0", 32, 34, each_block<32, 34, decode_q8_0>},
    {GgmlType::kQ2_K, "Q2_K", 256, 84, each_block<256, 84, decode_q2_k>},
    {GgmlType::kQ3_K, "Q3_K", 256, 110, each_block<256, 110, decode_q3_k>},
    {GgmlType::kQ4_K, "Q4_K", 256, 144, each_block<256, 144, decode_q4_k>},
    {GgmlType::kQ5_K, "Q5_K", 256, 176, each_block<256, 176, decode_q5_k>},
    {GgmlType::kQ6_K, "Q6_K", 256, 210, each_block<256, 210, decode_q6_k>},
    {GgmlType::kIQ4_NL, "IQ4_NL", 32, 18, each_block<32, 18, decode_iq4_nl>},
    {GgmlType::kIQ4_XS, "IQ4_XS", 256, 136, each_block<256, 136, decode_iq4_xs>},
    {GgmlType::kMXFP4, "MXFP4", 32, 17, each_block<32, 17, decode_mxfp4>},
    {GgmlType::kNVFP4, "NVFP4", 64, 36, each_block<64, 36, decode_nvfp4>},
};

}  // namespace

const GgmlTypeInfo* ggml_type_info(uint32_t type) {
  for (const GgmlTypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.type) == type) return &info;
  }
  return nullptr;
}

}  // namespace lathe
