#include "model/moe.h"

#include <algorithm>
#include <cmath>

namespace lathe {
namespace {

void softmax(float* x, int64_t size) {
  const float max = *std::max_element(x, x + size);
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += x[i] = std::exp(x[i] - max);
  for (int64_t i = 0; i < size; ++i) x[i] /= sum;
}

// Indices of the k largest values, largest first; NaN counts as smallest, so that any row of scores
// gives k different experts.
void top_k(const float* x, int64_t size, int64_t k, int32_t* chosen) {
  for (int64_t i = 0; i < k; ++i) {
    int32_t best = -1;
    for (int32_t e = 0; e < size; ++e) {
      if (std::find(chosen, chosen + i, e) != chosen + i) continue;
      if (best < 0 || x[e] > x[best] || (std::isnan(x[best]) && !std::isnan(x[e]))) best = e;
    }
    chosen[i] = best;
  }
}

}  // namespace

ExpertRows choose_experts(const ModelConfig& config, float* scores, int64_t num_rows, Exec& exec) {
  const int64_t num_experts = config.num_experts;
  const int64_t k = config.num_experts_per_token;
  int64_t* offsets = exec.workspace.allocate_as<int64_t>(num_experts + 1);
  int32_t* rows = exec.workspace.allocate_as<int32_t>(num_rows * k);
  float* weights = exec.workspace.allocate_as<float>(num_rows * k);
  const Workspace::Scope scope(exec.workspace);
  int32_t* chosen = exec.workspace.allocate_as<int32_t>(num_rows * k);
  int64_t* next = exec.workspace.allocate_as<int64_t>(num_experts);

  exec.threads.parallel_for(num_rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      softmax(scores + t * num_experts, num_experts);
      top_k(scores + t * num_experts, num_experts, k, chosen + t * k);
    }
  });
  std::fill(offsets, offsets + num_experts + 1, int64_t{0});
  for (int64_t i = 0; i < num_rows * k; ++i) ++offsets[chosen[i] + 1];
  for (int64_t e = 0; e < num_experts; ++e) {
    next[e] = offsets[e];
    offsets[e + 1] += offsets[e];
  }
  for (int64_t t = 0; t < num_rows; ++t) {
    const float* p = scores + t * num_experts;
    float sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += p[chosen[t * k + i]];
    for (int64_t i = 0; i < k; ++i) {
      const int32_t expert = chosen[t * k + i];
      const int64_t entry = next[expert]++;
      rows[entry] = static_cast<int32_t>(t);
      weights[entry] = config.norm_topk_prob ? p[expert] / sum : p[expert];
    }
  }
  return {offsets, rows, weights};
}

}  // namespace lathe
