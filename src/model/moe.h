// Mixture of experts: every row goes through the few experts that its router chose.
//   p = softmax(router(x)); the num_experts_per_token largest p; y = sum over them of p_e *
//   mlp_e(x)
// with p renormalised over the chosen ones (norm_topk_prob).
// Sources: Jiang et al., "Mixtral of Experts" (2024); Qwen3-MoE.
#pragma once
#include <cstdint>

#include "formats/model_config.h"
#include "tensor/exec.h"

namespace lathe {

// Rows sorted by expert: expert e has entries [offsets[e], offsets[e + 1]).
struct ExpertRows {
  const int64_t* offsets = nullptr;  // [num_experts + 1]
  const int32_t* rows = nullptr;     // [num_rows * num_experts_per_token], increasing in an expert
  const float* weights = nullptr;    // likewise: p_e of that row
};

// scores: [num_rows, num_experts], overwritten by probabilities. A tie goes to the lower expert.
// Allocates from exec.workspace.
ExpertRows choose_experts(const ModelConfig& config, float* scores, int64_t num_rows, Exec& exec);

}  // namespace lathe
