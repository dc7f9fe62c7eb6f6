// What is in a row's codes, read by a warp: for the kernels that turn codes into rows and those
// that attend to codes. The numbers are those of quant/row_codes.h, bit for bit.
#pragma once
#include <cuda_fp16.h>

#include "kernels/attention/kv_encode_cuda.cuh"
#include "kernels/attention/kv_rotate_cuda.cuh"
#include "kernels/kv_rows/head_lanes.h"
#include "kernels/kv_rows/kv_rows_cuda.h"

namespace lathe {

__device__ constexpr float kLog8Steps[8] = {1.0f,        1.09050773f, 1.18920712f, 1.29683955f,
                                            1.41421356f, 1.54221083f, 1.68179283f, 1.83400809f};
__device__ inline int scale_bytes(RowScale scale) {
  return scale == RowScale::kLog8 ? 1 : scale == RowScale::kF16 ? 2 : 4;
}

// row_scale_value() of quant/row_codes.h.
__device__ inline float scale_value(RowScale scale, uint32_t bits) {
  if (scale == RowScale::kLog8) {
    if (bits == 0) return 0;
    if (bits == 255) return __uint_as_float(0x7fc00000u);
    const int eighths = static_cast<int>(bits) - 127;
    return log8_from_step(kLog8Steps[eighths & 7], eighths);
  }
  if (scale == RowScale::kF16) return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
  return __uint_as_float(bits);
}
// count: 1, 2 or 4.
__device__ inline uint32_t load_bytes(const uint8_t* at, int count) {
  uint32_t bits = at[0];
  if (count > 1) bits |= static_cast<uint32_t>(at[1]) << 8;
  if (count > 2) bits |= static_cast<uint32_t>(at[2]) << 16 | static_cast<uint32_t>(at[3]) << 24;
  return bits;
}

// Code i of a bit stream, lowest bits first; up to 8 bits.
__device__ inline int unpack_code(const uint8_t* packed, int i, int bits) {
  const int begin = i * bits, shift = begin & 7;
  uint32_t word = packed[begin >> 3];
  if (shift + bits > 8) word |= static_cast<uint32_t>(packed[(begin >> 3) + 1]) << 8;
  return static_cast<int>(word >> shift & ((1u << bits) - 1));
}

// In place on every piece: butterflies (where there is a Hadamard matrix), then times
// factor(piece).
template <typename Factor>
__device__ void transform_head(float* x, const KvRowsCudaFormat& format, int lane,
                               const Factor& factor) {
  if (!format.hadamard) {
    const float f = factor(1);
    for (int j = lane; j < format.head_dim; j += 32) x[j] = product_rn(x[j], f);
    __syncwarp();
    return;
  }
  for (int begin = 0; begin < format.head_dim;) {
    const int size = 1 << (31 - __clz(format.head_dim - begin));
    hadamard_butterflies(x + begin, size, lane);
    const float f = factor(size);
    for (int j = lane; j < size; j += 32) x[begin + j] = product_rn(x[begin + j], f);
    begin += size;
  }
  __syncwarp();
}

__device__ inline uint8_t* codes_of_row(const KvCodesCuda& codes, int64_t row) {
  const auto block = static_cast<uint32_t>(row / kBlockSize);
  int64_t begin;
  if (codes.blocks != nullptr) {
    begin = codes.blocks[block] * codes.block_stride;
  } else {  // divisions of 32 bits: those of 64 are a hundred instructions
    const auto piece_blocks = static_cast<uint32_t>(codes.piece_blocks);
    begin = block / piece_blocks * codes.piece_stride + block % piece_blocks * codes.block_stride;
  }
  return reinterpret_cast<uint8_t*>(codes.data) + begin + codes.offset +
         row % kBlockSize * codes.row_bytes;
}

// --- live blocks --------------------------------------------------------------------------------

__device__ inline uint8_t* head_of_block(const KvLiveRowsCuda& live, int64_t block, int head,
                                         int num_heads, int head_dim) {
  auto* plane = static_cast<uint8_t*>(live.is_value ? live.layer.values : live.layer.keys);
  return plane + (block * num_heads + head) * kv_cuda_head_bytes(live.layer.element, head_dim);
}
__device__ inline uint8_t* live_head(const KvLiveRowsCuda& live, int64_t row, int head,
                                     int num_heads, int head_dim) {
  return head_of_block(live, live.blocks[row / kBlockSize], head, num_heads, head_dim);
}
// The same of a row's exact numbers; null: it has none.
__device__ inline uint8_t* sink_head(const KvLiveRowsCuda& live, int64_t row, int head,
                                     int num_heads, int head_dim) {
  if (live.sink_block < 0 || row >= kLiveSinks) return nullptr;
  return head_of_block(live, live.sink_block, head, num_heads, head_dim);
}

// The row of cos and sin that turns row `row`.
__device__ inline int64_t rope_row(const KvLiveRowsCuda& live, int64_t row) {
  return live.first_positions == nullptr
             ? row
             : live.first_positions[row / kBlockSize] + row % kBlockSize;
}

// --- a head -------------------------------------------------------------------------------------

// A head of one row: its codes and where its scale is.
struct HeadCodes {
  uint8_t* scale;
  uint8_t* packed;
};
__device__ inline HeadCodes head_codes(const KvRowsCudaFormat& format, const KvCodesCuda& codes,
                                       int64_t row, int head) {
  uint8_t* at = codes_of_row(codes, row);
  const int head_bytes = format.head_dim / format.grid_dim * format.code_bits / 8;
  return {at + head * scale_bytes(format.scale),
          at + format.num_heads * scale_bytes(format.scale) + head * head_bytes};
}

__device__ inline void decode_row_head(const KvRowsCudaFormat& format, const HeadCodes& codes,
                                       const float* sigma, float* x, int lane) {
  const float scale = scale_value(format.scale, load_bytes(codes.scale, scale_bytes(format.scale)));
  for (int i = lane; i < format.head_dim / format.grid_dim; i += 32) {
    const float* point =
        format.points + unpack_code(codes.packed, i, format.code_bits) * format.grid_dim;
    for (int j = 0; j < format.grid_dim; ++j) x[i * format.grid_dim + j] = point[j];
  }
  __syncwarp();
  transform_head(x, format, lane, [&](int piece) {
    const double product = static_cast<double>(format.head_dim) * static_cast<double>(piece);
    return product_rn(scale, static_cast<float>(1 / sqrt(product)));
  });
  if (sigma == nullptr) return;
  for (int j = lane; j < format.head_dim; j += 32) x[j] = product_rn(x[j], sigma[j]);
  __syncwarp();
}

}  // namespace lathe
