// Root-mean-square normalisation with a learned gain, over rows of norm_size:
//   y[t, h, j] = gain[j] * x[t, h, j] / sqrt(mean_j(x[t, h, j]^2) + eps)
// with gain = weight, or 1 + weight (Gemma). A hidden state is one row per token (num_heads = 1);
// the q/k norm of Qwen3 and Gemma 3 is one row per head.
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), eq. 4.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/registry.h"

namespace lathe {

// Plain data; borrows every buffer.
struct RmsNormArgs {
  const float* x = nullptr;       // [num_tokens, num_heads, norm_size], token stride x_stride
  const float* weight = nullptr;  // [norm_size]
  float* y = nullptr;             // same shape, token stride y_stride; may be x itself
  int64_t num_tokens = 0;         // 0 is a no-op
  int64_t num_heads = 1;          // rows per token, dense behind one another
  int64_t norm_size = 0;          // >= 1
  int64_t x_stride = 0;           // >= num_heads * norm_size; 0 means exactly that
  int64_t y_stride = 0;           // likewise
  float eps = 0;                  // > 0; rms_norm_eps of the model config
  bool plus_one = false;          // gain is 1 + weight
};

// Runs the best kernel this machine has. Does not allocate. Rows are independent: the same bits
// alone or in a batch. Throws kInvalidArgument on a bad size, stride or eps.
void rms_norm(const RmsNormArgs& args, Exec& exec);
// Every compiled-in kernel, best first; the last one is the reference. They take args with the
// strides filled in.
std::span<const Kernel<RmsNormArgs>> rms_norm_kernels();

void rms_norm_ref(const RmsNormArgs& args, Exec& exec);
void rms_norm_avx2(const RmsNormArgs& args, Exec& exec);
void rms_norm_avx512(const RmsNormArgs& args, Exec& exec);

}  // namespace lathe
