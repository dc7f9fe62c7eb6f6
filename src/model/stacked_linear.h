// Weights that share their input (q/k/v, gate/up), as one matrix where their formats allow it.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "kernels/linear/linear.h"

namespace lathe {

class StackedLinear {
 public:
  StackedLinear() = default;
  // Stacks the parts along n in their order. Neighbours with the same format and scheme become one
  // packed weight, others follow as weights of their own (checkpoints of mixed precision). The
  // parts are not needed afterwards.
  StackedLinear(std::span<const LinearWeights* const> parts, ComputeType compute, Exec& exec);

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
