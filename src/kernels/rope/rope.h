// Rotary position embedding, half-split pairs as Hugging Face stores them ("NeoX" style): for each
// head and each j < rotary_dim / 2, with half = rotary_dim / 2 and p the row's position,
//   y[j]        = x[j] * cos[p, j] - x[j + half] * sin[p, j]
//   y[j + half] = x[j + half] * cos[p, j] + x[j] * sin[p, j]
// Dimensions from rotary_dim on pass unchanged. What frequencies the tables hold, and any attention
// factor on them, is the caller's business (model/rope_table.h).
// Source: Su et al., "RoFormer" (2021), eq. 34.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/registry.h"

namespace lathe {

struct RopeArgs {
  const float* x = nullptr;            // [num_rows, num_heads, head_dim], row stride x_stride
  float* y = nullptr;                  // same shape, row stride y_stride; may be x itself
  const int64_t* positions = nullptr;  // [num_rows], each in [0, num_positions)
  const float* cos = nullptr;          // [num_positions, rotary_dim / 2]
  const float* sin = nullptr;          // [num_positions, rotary_dim / 2]
  int64_t num_positions = 0;
  int64_t num_rows = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // even, <= head_dim
  int64_t x_stride = 0;    // >= num_heads * head_dim; 0 means exactly that
  int64_t y_stride = 0;    // likewise
};

// Runs the best kernel this machine has. Does not allocate. Throws kInvalidArgument on a bad size,
// stride or position.
void rope(const RopeArgs& args, Exec& exec);
std::span<const Kernel<RopeArgs>> rope_kernels();

void rope_ref(const RopeArgs& args, Exec& exec);
void rope_avx2(const RopeArgs& args, Exec& exec);
void rope_avx512(const RopeArgs& args, Exec& exec);

}  // namespace lathe
