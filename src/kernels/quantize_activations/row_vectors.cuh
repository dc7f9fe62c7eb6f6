// A row in the registers of one block, or of a cluster of blocks with a segment each: eight
// consecutive columns are a vector, and vector v of the segment belongs to thread v % blockDim.x,
// slot v / blockDim.x. A warp therefore holds runs of 32 vectors (256 columns), in which every
// Hadamard block and every group of columns lies whole.
//
// Sums are made chunk by chunk of 256 columns and the chunks added in one fixed order, so they do
// not depend on how many blocks, threads and slots a launch has.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace lathe {

inline constexpr int kVectorCols = 8;
inline constexpr int kMaxRowThreads = 1024;
// Four vectors and more in a thread need more than the 64 registers that 1024 threads leave.
constexpr int max_row_threads(int slots) { return slots <= 2 ? kMaxRowThreads : 512; }
constexpr int min_row_blocks(int slots) { return slots == 4 ? 2 : 1; }
inline constexpr int kMaxChunks = 128;  // of 256 columns
inline constexpr unsigned kFullWarp = 0xffffffffu;

template <int kSlots>
struct RowVectors {
  float x[kSlots][kVectorCols];
};

// Where the vectors of this thread are.
struct RowPlace {
  int64_t row;
  int first_vector;    // of the block's segment
  int num_vectors;     // of the row
  int cluster_blocks;  // that compute over the row together; 1: this one alone

  __device__ int vector(int slot) const {
    return first_vector + slot * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }
  __device__ bool has(int slot) const { return vector(slot) < num_vectors; }
  __device__ int64_t column(int slot) const { return int64_t{vector(slot)} * kVectorCols; }
};

// A vector as it lies in memory: half the registers for bf16 until it is unpacked.
template <typename T>
struct PackedVector;
template <>
struct PackedVector<float> {
  float4 low, high;
};
template <>
struct PackedVector<__nv_bfloat16> {
  uint4 bits;
};

template <typename T>
__device__ PackedVector<T> load_packed(const T* from) {
  return *reinterpret_cast<const PackedVector<T>*>(from);
}

__device__ inline void unpack(const PackedVector<float>& packed, float (&x)[kVectorCols]) {
  x[0] = packed.low.x, x[1] = packed.low.y, x[2] = packed.low.z, x[3] = packed.low.w;
  x[4] = packed.high.x, x[5] = packed.high.y, x[6] = packed.high.z, x[7] = packed.high.w;
}

__device__ inline void unpack(const PackedVector<__nv_bfloat16>& packed, float (&x)[kVectorCols]) {
  const uint32_t words[4] = {packed.bits.x, packed.bits.y, packed.bits.z, packed.bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

template <typename T>
__device__ void load_vector(const T* from, float (&x)[kVectorCols]) {
  unpack(load_packed(from), x);
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

__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The whole warp calls it: `word` to the same place in the shared memory of every block of the
// row's cluster.
__device__ inline void share_word(const RowPlace& place, uint32_t* to, uint32_t word) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (place.cluster_blocks == 1) {
    if (lane == 0) *to = word;
  } else if (lane < place.cluster_blocks) {
    const auto local = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    uint32_t remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(lane));
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(word) : "memory");
  }
}

// After it, what was shared is there.
__device__ inline void wait_for_shared(const RowPlace& place) {
  if (place.cluster_blocks == 1) {
    __syncthreads();
  } else {
    cluster_arrive();
    cluster_wait();
  }
}

// Shared memory of one sum or maximum; each of a kernel has its own, so that one barrier is enough.
struct RowScratch {
  uint32_t chunks[kMaxChunks + 8];  // or warps, one more at the end of each segment
};

// The sum of x^2 over the whole row, the same bits in every thread. All threads call it.
template <int kSlots>
__device__ float row_sum_of_squares(const RowPlace& place, const RowVectors<kSlots>& v,
                                    RowScratch& scratch) {
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
    const int chunk = place.vector(slot) / 32;
    if (chunk < kMaxChunks) share_word(place, scratch.chunks + chunk, __float_as_uint(sum));
  }
  wait_for_shared(place);
  const int num_chunks = (place.num_vectors + 31) / 32;
  float sum = 0;
  for (int chunk = lane; chunk < num_chunks; chunk += 32) {
    sum += __uint_as_float(scratch.chunks[chunk]);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, distance);
  }
  return sum;
}

// The largest of the row's values, in every thread. All threads call it.
__device__ inline uint32_t row_max(const RowPlace& place, uint32_t value, RowScratch& scratch) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto num_warps = static_cast<int>(blockDim.x) / 32;
  const int segment =
      place.cluster_blocks == 1 ? 0 : static_cast<int>(blockIdx.x) % place.cluster_blocks;
  value = __reduce_max_sync(kFullWarp, value);
  share_word(place, scratch.chunks + segment * num_warps + static_cast<int>(threadIdx.x) / 32,
             value);
  wait_for_shared(place);
  value = 0;
  for (int i = lane; i < place.cluster_blocks * num_warps; i += 32) {
    value = max(value, scratch.chunks[i]);
  }
  return __reduce_max_sync(kFullWarp, value);
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
    // other + own in the lower lane, other - own in the upper: the product is exact, so one
    // rounding, that of the sum.
    const float sign = (lane & distance) != 0 ? -1.0f : 1.0f;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
      for (int i = 0; i < kVectorCols; ++i) {
        const float own = v.x[slot][i];
        v.x[slot][i] = __fmaf_rn(own, sign, __shfl_xor_sync(kFullWarp, own, distance));
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
