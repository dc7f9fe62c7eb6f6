// RoPE and kv_rotate() by a warp, on a head in shared memory.
#pragma once
#include <cstdint>

namespace lathe {

// In place, the pairs (j, j + half) by the angles whose cosines and sines are given; all lanes have
// the result behind it.
__device__ inline void rope_head(float* x, const float* cos, const float* sin, int half, int lane) {
  for (int j = lane; j < half; j += 32) {
    const float c = cos[j], s = sin[j];
    const float a = x[j], b = x[j + half];
    x[j] = a * c - b * s;
    x[j + half] = b * c + a * s;
  }
  __syncwarp();
}

// In place; n a power of two. All lanes have the result behind the next __syncwarp().
__device__ inline void hadamard_butterflies(float* x, int n, int lane) {
  for (int distance = 1; distance < n; distance *= 2) {
    __syncwarp();
    for (int i = lane; i < n / 2; i += 32) {
      const int at = (i & ~(distance - 1)) * 2 + (i & (distance - 1));
      const float a = x[at], b = x[at + distance];
      x[at] = a + b;
      x[at + distance] = a - b;
    }
  }
  __syncwarp();
}

// In place; all lanes have the result behind it. The additions are those of kv_rotate(), so the
// bits are too.
__device__ inline void rotate_head(float* x, int head_dim, int lane) {
  for (int begin = 0; begin < head_dim;) {
    const int size = 1 << (31 - __clz(head_dim - begin));
    hadamard_butterflies(x + begin, size, lane);
    const float factor = 1 / sqrtf(static_cast<float>(size));
    for (int i = lane; i < size; i += 32) x[begin + i] *= factor;
    begin += size;
  }
  __syncwarp();
}

}  // namespace lathe
