// 8-bit weights times 1 to 64 rows of bf16 on Hopper: bound by reading the weights once. The weight
// stays as a checkpoint has it, row-major; codes are exact in bf16, so products are exact, sums and
// scales are fp32.
#pragma once
#include <string>

#include "kernels/linear/linear_cuda.h"

namespace lathe {

inline constexpr int kW8SmallMaxRows = 64;

// An 8-bit weight on the device. k is a multiple of 32.
//   kInt8   kBF16 per 32 columns, or kF32 per row (group_size 0)
//   kE4M3   kE8M0 per 32 columns, or kF32 per row
// E4M3 codes are numbers, not NaN.
struct W8Matrix {
  ElementType element = ElementType::kInt8;
  ScaleType scale = ScaleType::kBF16;
  int64_t group_size = 32;
  int64_t n = 0;
  int64_t k = 0;
  const std::byte* codes = nullptr;   // [n, k], 16-byte aligned
  const std::byte* scales = nullptr;  // [n, k / group_size], or [n]; 16-byte aligned
  const float* row_scales = nullptr;  // [n], multiply y; null: ones. 1 / global scale
  const float* bias = nullptr;        // [n]; null: zeros
};

// What is chosen by the sizes alone. The bits of a row of y depend on nothing else.
struct W8SmallConfig {
  int rows = 8;     // of x, padded: 8, 16, 32 or 64
  int split = 1;    // warps of a block that share rows of W, along k: 1, 2, 4 or 8
  int cluster = 1;  // blocks that share rows of W, along k: 1, 2, 4 or 8
  int blocks = 1;   // a multiple of cluster; each cluster has a run of rows of W
  int stages = 2;   // of the ring that the copies fill
  bool operator==(const W8SmallConfig&) const = default;
};
std::string to_string(const W8SmallConfig& config);

// m = 1..64.
W8SmallConfig choose_w8_small_config(int64_t m, int64_t n, int64_t k, int num_sms);
// The same with `split` and `cluster` given. stages is 0 where it does not fit into shared memory.
W8SmallConfig w8_small_config(int64_t m, int64_t n, int split, int cluster, int num_sms);

// y[m, n] = (x W^T) * x.row_scales * w.row_scales + w.bias, rounded once to y's element; x is bf16,
// x.m 1..64 (0 is a no-op). Needs no scratch memory. Only enqueues; starts reading W before what
// stands in front of it in the stream has ended. Throws kInvalidArgument, kUnsupported (not a
// Hopper), kDevice.
void linear_w8_small_sm90(const W8Matrix& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                          const W8SmallConfig& config, CudaStream stream);

}  // namespace lathe
