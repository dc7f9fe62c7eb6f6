// What the column loops of GPTQ and of coordinate descent share: a warp has one row and a block of
// 128 columns, lane l the columns l, l + 32, l + 64, l + 96; the factors between the columns of the
// block lie in shared memory.
#pragma once
#include <cstdint>

#include "compress/cuda_elements.cuh"

namespace lathe {

constexpr int kBlockColumns = 128;
constexpr int kLaneColumns = kBlockColumns / 32;
constexpr int kColumnThreads = 512;  // 16 rows at a time
constexpr int64_t kFactorBytes = kBlockColumns * kBlockColumns * sizeof(float);

// The code of a target, by the rule of round_column_ref().
template <ElementType kElement>
__device__ inline uint8_t round_target(float target, double stored, double global_scale,
                                       double lowest) {
  if (!(stored > 0)) return 0;
  return element_code<kElement>(__ddiv_rn(__dmul_rn(double{target}, global_scale), stored), lowest);
}

// factor[i][j] = m[first + i, first + j] for j > i, 0 elsewhere, so that a column that is done does
// not change any more. Ends with a barrier.
__device__ inline void load_block_factor(const float* m, int64_t cols, int64_t first, int width,
                                         float* factor) {
  for (int idx = static_cast<int>(threadIdx.x); idx < kBlockColumns * kBlockColumns;
       idx += kColumnThreads) {
    const int i = idx / kBlockColumns;
    const int j = idx % kBlockColumns;
    factor[idx] = i < j && j < width ? m[(first + i) * cols + first + j] : 0.0f;
  }
  __syncthreads();
}

__device__ inline double warp_sum(double value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

}  // namespace lathe
