// Weights that share their input (q/k/v, gate/up), as one matrix where their formats allow it.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "kernels/linear/linear.h"
#include "model/layer_weights.h"

namespace lathe {

// Neighbours that can be one packed weight; borrows the weights.
struct LinearStack {
  std::vector<LinearPart> parts;
  LinearScheme scheme;
};
// The parts in their order: neighbours with the same format and scheme become one stack, others
// follow as stacks of their own (checkpoints of mixed precision). Throws kCorruptData when they do
// not have the same k.
std::vector<LinearStack> stack_linears(std::span<const LinearWeights* const> parts);
// Those of one kind (and expert) of a layer. Throws kCorruptData unless they are [n, k] together.
std::vector<LinearStack> layer_stacks(const LayerWeights& weights, LinearKind kind, int64_t expert,
                                      int64_t n, int64_t k);

class StackedLinear {
 public:
  StackedLinear() = default;
  // One packed weight for each stack. The weights are not needed afterwards.
  StackedLinear(std::span<const LinearStack> stacks, ComputeType compute, Exec& exec);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t weight_bytes() const;
  std::string kernels() const;  // "fp4 avx2", "fp4 avx2 + dense bf16 avx2"

  // y[m, n] = x[m, k] W^T + bias; y has row stride y_stride. Scratch comes from exec.workspace.
  void run(const float* x, int64_t m, float* y, int64_t y_stride, Exec& exec) const;

 private:
  std::vector<std::unique_ptr<PackedLinear>> packed_;
  int64_t n_ = 0;
  int64_t k_ = 0;
};

}  // namespace lathe
