// A row, or a segment of it, in the registers of one block: eight consecutive columns are a vector,
// and vector v of the segment belongs to thread v % blockDim.x, slot v / blockDim.x. A warp
// therefore holds runs of 32 vectors (256 columns), in which every Hadamard block and every group
// of columns lies whole.
//
// Sums are made chunk by chunk of 256 columns and the chunks added in one fixed order, so they do
// not depend on how many threads and slots a launch has.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace lathe {

inline constexpr int kVectorCols = 8;
inline constexpr int kMaxRowThreads = 1024;
// Four vectors and more in a thread need more than the 64 registers that 1024 threads leave.
constexpr int max_row_threads(int slots) { return slots <= 2 ? kMaxRowThreads : 512; }
inline constexpr int kMaxChunks = 128;  // kMaxQuantizeCols / 256
inline constexpr unsigned kFullWarp = 0xffffffffu;

template <int kSlots>
struct RowVectors {
  float x[kSlots][kVectorCols];
};

// Where the vectors of this thread are.
struct RowPlace {
  int64_t row;
  int first_vector;  // of the segment
  int num_vectors;   // of the row

  __device__ int vector(int slot) const {
    return first_vector + slot * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }
  __device__ bool has(int slot) const { return vector(slot) < num_vectors; }
  __device__ int64_t column(int slot) const { return int64_t{vector(slot)} * kVectorCols; }
};

__device__ inline void load_vector(const float* from, float (&x)[kVectorCols]) {
  const float4 low = reinterpret_cast<const float4*>(from)[0];
  const float4 high = reinterpret_cast<const float4*>(from)[1];
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

__device__ inline void load_vector(const __nv_bfloat16* from, float (&x)[kVectorCols]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ inline void store_vector(float* to, const float (&x)[kVectorCols]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__device__ inline void store_vector(__nv_bfloat16* to, const float (&x)[kVectorCols]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    words[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Nearest, ties to even, saturating; NaN becomes NaN: as e4m3_from_double().
__device__ inline uint32_t e4m3_pair(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

__device__ inline void store_vector(__nv_fp8_e4m3* to, const float (&x)[kVectorCols]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(e4m3_pair(x[0], x[1]) | e4m3_pair(x[2], x[3]) << 16,
                                             e4m3_pair(x[4], x[5]) | e4m3_pair(x[6], x[7]) << 16);
}

// Shared memory of one sum; each sum of a kernel has its own, so that one barrier is enough.
struct SumScratch {
  float chunks[kMaxChunks];
};

// The sum of x^2 over the whole row, the same bits in every thread. All threads call it.
template <int kSlots>
__device__ float row_sum_of_squares(const RowPlace& place, const RowVectors<kSlots>& v,
                                    SumScratch& scratch) {
  const int num_warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    float sum = 0;
    if (place.has(slot)) {
#pragma unroll
      for (int i = 0; i < kVectorCols; ++i) sum = __fmaf_rn(v.x[slot][i], v.x[slot][i], sum);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(kFullWarp, sum, distance);
    }
    const int chunk = slot * num_warps + warp;
    if (lane == 0 && chunk < kMaxChunks) scratch.chunks[chunk] = sum;
  }
  __syncthreads();
  const int num_chunks = (place.num_vectors + 31) / 32;
  float sum = 0;
  for (int chunk = lane; chunk < num_chunks; chunk += 32) sum += scratch.chunks[chunk];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, distance);
  }
  return sum;
}

struct MaxScratch {
  uint32_t warps[kMaxRowThreads / 32];
};

// The largest of the block's values, in every thread. All threads call it.
__device__ inline uint32_t block_max(uint32_t value, MaxScratch& scratch) {
  const int num_warps = static_cast<int>(blockDim.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  value = __reduce_max_sync(kFullWarp, value);
  if (lane == 0) scratch.warps[threadIdx.x / 32] = value;
  __syncthreads();
  return __reduce_max_sync(kFullWarp, lane < num_warps ? scratch.warps[lane] : 0u);
}

// The rotation of quant/hadamard.h with the same bits: butterflies of distance 1, 2, 4 inside a
// vector, the others between lanes, then one multiplication. block: 0 (nothing), 16, 32, 64, 128.
// All lanes of a warp call it.
template <int kSlots>
__device__ void rotate_vectors(RowVectors<kSlots>& v, int block) {
  if (block == 0) return;
  const float normalisation = block == 16   ? 0.25f
                              : block == 32 ? 0.17677669529663689f
                              : block == 64 ? 0.125f
                                            : 0.08838834764831845f;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    float(&x)[kVectorCols] = v.x[slot];
#pragma unroll
    for (int distance = 1; distance < kVectorCols; distance *= 2) {
#pragma unroll
      for (int i = 0; i < kVectorCols; ++i) {
        if ((i & distance) != 0) continue;
        const float a = x[i];
        const float b = x[i + distance];
        x[i] = __fadd_rn(a, b);
        x[i + distance] = __fsub_rn(a, b);
      }
    }
  }
  for (int distance = 1; distance < block / kVectorCols; distance *= 2) {
    const uint32_t sign = (lane & distance) != 0 ? 0x80000000u : 0u;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
      for (int i = 0; i < kVectorCols; ++i) {
        const float own = v.x[slot][i];
        const float other = __shfl_xor_sync(kFullWarp, own, distance);
        v.x[slot][i] = __fadd_rn(other, __uint_as_float(__float_as_uint(own) ^ sign));
      }
    }
  }
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
    for (int i = 0; i < kVectorCols; ++i) v.x[slot][i] = __fmul_rn(v.x[slot][i], normalisation);
  }
}

}  // namespace lathe
