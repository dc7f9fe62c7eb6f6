#include <algorithm>
#include <cmath>

#include "compress/cuda_rotation.h"
#include "quant/hadamard.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int kThreads = 256;

// One chunk of kBlock values over the lanes of a warp, value e in lane e % 32 as v[e / 32]; chunks
// of 16 come two to a warp. Butterflies of distance 1, 2, 4, ..., as hadamard_rows() has them.
template <int kBlock>
struct WarpChunk {
  static constexpr int kValues = kBlock < 32 ? 1 : kBlock / 32;
  static constexpr int kWidth = kBlock < 32 ? 32 : kBlock;  // columns that one warp handles
  float v[kValues];

  __device__ void rotate(float normalisation) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int distance = 1; distance < (kBlock < 32 ? kBlock : 32); distance *= 2) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const float other = __shfl_xor_sync(0xffffffffu, v[i], distance);
        v[i] = (lane & distance) == 0 ? __fadd_rn(v[i], other) : __fsub_rn(other, v[i]);
      }
    }
    if constexpr (kValues > 1) {
#pragma unroll
      for (int distance = 1; distance < kValues; distance *= 2) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
          if ((i & distance) != 0) continue;
          const float a = v[i];
          const float b = v[i + distance];
          v[i] = __fadd_rn(a, b);
          v[i + distance] = __fsub_rn(a, b);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) v[i] = __fmul_rn(v[i], normalisation);
  }
};

// count: values in all, a multiple of kBlock. kStore: in place; else only the largest magnitude.
template <int kBlock, bool kStore>
__global__ void rotate_kernel(float* x, int64_t count, float normalisation, float* amax) {
  using Chunk = WarpChunk<kBlock>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t num_warps = int64_t{gridDim.x} * (kThreads / 32);
  float largest = 0;
  for (int64_t chunk = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
       chunk * Chunk::kWidth < count; chunk += num_warps) {
    const int64_t base = chunk * Chunk::kWidth + lane;
    Chunk values;
#pragma unroll
    for (int i = 0; i < Chunk::kValues; ++i) {
      values.v[i] = base + 32 * i < count ? x[base + 32 * i] : 0.0f;
    }
    values.rotate(normalisation);
#pragma unroll
    for (int i = 0; i < Chunk::kValues; ++i) {
      if (kStore) {
        if (base + 32 * i < count) x[base + 32 * i] = values.v[i];
      } else {
        largest = fmaxf(largest, fabsf(values.v[i]));
      }
    }
  }
  if constexpr (!kStore) {
    for (int distance = 16; distance > 0; distance /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    }
    // Floats that are not negative compare as their bits do.
    if (lane == 0) atomicMax(reinterpret_cast<unsigned*>(amax), __float_as_uint(largest));
  }
}

__global__ void amax_kernel(const float* x, int64_t count, float* amax) {
  float largest = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    largest = fmaxf(largest, fabsf(x[i]));
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
  }
  if (threadIdx.x % 32 == 0) {
    atomicMax(reinterpret_cast<unsigned*>(amax), __float_as_uint(largest));
  }
}

// The left side: kBlock rows of h [k, k] are the entries, each thread has one column of them.
template <int kBlock>
__global__ void rotate_left_kernel(float* h, int64_t k, float normalisation) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= k) return;
  float* p = h + int64_t{blockIdx.y} * kBlock * k + column;
  float v[kBlock];
#pragma unroll
  for (int i = 0; i < kBlock; ++i) v[i] = p[i * k];
#pragma unroll
  for (int distance = 1; distance < kBlock; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
      if ((i & distance) != 0) continue;
      const float a = v[i];
      const float b = v[i + distance];
      v[i] = __fadd_rn(a, b);
      v[i + distance] = __fsub_rn(a, b);
    }
  }
#pragma unroll
  for (int i = 0; i < kBlock; ++i) p[i * k] = __fmul_rn(v[i], normalisation);
}

unsigned grid_for(int64_t warps) {
  return static_cast<unsigned>(
      std::clamp<int64_t>((warps + kThreads / 32 - 1) / (kThreads / 32), 1, 4096));
}

float normalisation_of(int64_t block) { return 1.0f / std::sqrt(static_cast<float>(block)); }

template <bool kStore>
void launch_rotate(float* x, int64_t count, int64_t block, float* amax, CudaStream stream) {
  const unsigned grid = grid_for(count / 32 + 1);
  const float factor = normalisation_of(block);
  switch (block) {
    case 16:
      rotate_kernel<16, kStore><<<grid, kThreads, 0, stream>>>(x, count, factor, amax);
      break;
    case 32:
      rotate_kernel<32, kStore><<<grid, kThreads, 0, stream>>>(x, count, factor, amax);
      break;
    case 64:
      rotate_kernel<64, kStore><<<grid, kThreads, 0, stream>>>(x, count, factor, amax);
      break;
    default:
      rotate_kernel<128, kStore><<<grid, kThreads, 0, stream>>>(x, count, factor, amax);
      break;
  }
  cuda_check_launch("a Hadamard rotation");
}

}  // namespace

void cuda_hadamard_rows(float* x, int64_t rows, int64_t cols, int64_t block, CudaStream stream) {
  check_hadamard(block, cols);
  if (block == 0 || rows == 0) return;
  launch_rotate<true>(x, rows * cols, block, nullptr, stream);
}

void cuda_rotate_hessian(float* h, int64_t k, int64_t block, CudaStream stream) {
  check_hadamard(block, k);
  if (block == 0) return;
  launch_rotate<true>(h, k * k, block, nullptr, stream);
  constexpr unsigned kColumns = 128;
  const dim3 grid(static_cast<unsigned>((k + kColumns - 1) / kColumns),
                  static_cast<unsigned>(k / block));
  const float factor = normalisation_of(block);
  switch (block) {
    case 16:
      rotate_left_kernel<16><<<grid, kColumns, 0, stream>>>(h, k, factor);
      break;
    case 32:
      rotate_left_kernel<32><<<grid, kColumns, 0, stream>>>(h, k, factor);
      break;
    case 64:
      rotate_left_kernel<64><<<grid, kColumns, 0, stream>>>(h, k, factor);
      break;
    default:
      rotate_left_kernel<128><<<grid, kColumns, 0, stream>>>(h, k, factor);
      break;
  }
  cuda_check_launch("a Hadamard rotation");
}

void cuda_rotated_amax(const float* x, int64_t rows, int64_t cols, int64_t block, float* amax,
                       CudaStream stream) {
  check_hadamard(block, cols);
  if (rows == 0) return;
  if (block == 0) {
    amax_kernel<<<grid_for(rows * cols / 128 + 1), kThreads, 0, stream>>>(x, rows * cols, amax);
    cuda_check_launch("a largest magnitude");
    return;
  }
  // Does not store.
  launch_rotate<false>(const_cast<float*>(x), rows * cols, block, amax, stream);
}

}  // namespace lathe
