// kv_rotate() by a warp, on a head in shared memory.
#pragma once
#include <cstdint>

namespace lathe {

// In place; all lanes have the result behind it. The additions are those of kv_rotate(), so the
// bits are too.
__device__ inline void rotate_head(float* x, int head_dim, int lane) {
  for (int begin = 0; begin < head_dim;) {
    const int size = 1 << (31 - __clz(head_dim - begin));
    float* piece = x + begin;
    for (int distance = 1; distance < size; distance *= 2) {
      __syncwarp();
      for (int i = lane; i < size / 2; i += 32) {
        const int at = (i & ~(distance - 1)) * 2 + (i & (distance - 1));
        const float a = piece[at], b = piece[at + distance];
        piece[at] = a + b;
        piece[at + distance] = a - b;
      }
    }
    __syncwarp();
    const float factor = 1 / sqrtf(static_cast<float>(size));
    for (int i = lane; i < size; i += 32) piece[i] *= factor;
    begin += size;
  }
  __syncwarp();
}

}  // namespace lathe
