// Mixture of experts on the GPU: which rows go to which expert, and the way there and back. The
// rules are those of model/moe.h; sums run in the order of the experts, so a row does not depend on
// the others.
#pragma once
#include <cstdint>

#include "kernels/linear/linear_cuda.h"

namespace lathe {

inline constexpr int64_t kMaxExperts = 1024;
inline constexpr int64_t kMaxExpertsPerToken = 32;

// Rows sorted by expert: expert e has entries [offsets[e], offsets[e + 1]). All on the device.
struct ExpertRowsCuda {
  int32_t* offsets = nullptr;  // [num_experts + 1]
  int32_t* rows = nullptr;     // [num_rows * experts_per_token], increasing within an expert
  float* weights = nullptr;    // likewise: p_e of that row
  int32_t* entries = nullptr;  // [num_rows, experts_per_token]: the row's entries, by expert
};

struct ChooseExpertsCudaArgs {
  const float* scores = nullptr;  // [num_rows, num_experts], router logits
  int64_t num_rows = 0;
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  bool normalize = false;     // norm_topk_prob: weights of a row sum to 1
  int32_t* chosen = nullptr;  // [num_rows, experts_per_token], increasing; scratch for the caller
  float* chosen_weights = nullptr;  // likewise
  ExpertRowsCuda out;
};
// A tie goes to the lower expert; NaN counts as smallest.
void choose_experts_cuda(const ChooseExpertsCudaArgs& args, CudaStream stream);

// to[i, :] = from[rows[i], :], rows of `row_bytes` (a multiple of 16), and the row scales with them
// where given (both or neither).
struct GatherRowsCudaArgs {
  const void* from = nullptr;
  void* to = nullptr;  // [count] rows
  int64_t row_bytes = 0;
  const int32_t* rows = nullptr;  // [count]
  int64_t count = 0;
  const float* from_scales = nullptr;
  float* to_scales = nullptr;
};
void gather_rows_cuda(const GatherRowsCudaArgs& args, CudaStream stream);

// y[t, :] = sum over the row's entries e, in order of expert, of weights[e] * results[e, :]. fp32
// sums.
struct CombineExpertsCudaArgs {
  const void* results = nullptr;  // [num_rows * experts_per_token, hidden_size], in entry order
  CudaElement element = CudaElement::kBF16;  // of results and y: kF32 or kBF16
  const float* weights = nullptr;            // ExpertRowsCuda::weights
  const int32_t* entries = nullptr;          // ExpertRowsCuda::entries
  int64_t num_rows = 0;
  int64_t experts_per_token = 0;
  int64_t hidden_size = 0;  // a multiple of 8
  void* y = nullptr;        // [num_rows, hidden_size]
};
void combine_experts_cuda(const CombineExpertsCudaArgs& args, CudaStream stream);

}  // namespace lathe
