// What evaluation asks of rows of logits on a GPU, so that they need not come to the host: the
// negative log-likelihood of a token under one model, or under two with the divergence between
// them.
#pragma once
#include <cstdint>

#include "tensor/cuda_stream.h"

namespace lathe {

struct LogitComparison {
  double kl = 0;             // KL(reference || model), nats
  double reference_nll = 0;  // -log p(target)
  double model_nll = 0;
  int32_t same_top = 0;  // 1: both find the same token most probable (the lower id at a tie)
};

struct CompareLogitsArgs {
  const float* reference = nullptr;  // [num_rows, reference_vocab] on the device, or null
  int64_t reference_vocab = 0;
  const float* model = nullptr;  // [num_rows, model_vocab] on the device
  int64_t model_vocab = 0;
  int64_t common = 0;                // tokens [0, common) count
  const int32_t* targets = nullptr;  // [num_rows] on the device, below common
  int64_t num_rows = 0;
  LogitComparison* out = nullptr;  // [num_rows] on the device; without a reference only model_nll
};

// Exponentials in fp32 of the distance to the maximum, sums in fp64. A NaN among a row's logits
// makes its results NaN. Only enqueues.
void compare_logits_cuda(const CompareLogitsArgs& args, CudaStream stream);

}  // namespace lathe
