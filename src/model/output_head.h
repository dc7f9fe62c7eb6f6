// The output head (lm_head) at serving precision. It is the largest matrix that quantization
// recipes leave alone, and every decoded token reads all of it: in bf16 it would be half of what a
// 4-bit model of 0.5B parameters reads per token. As int8 in groups of 32 (8.5 bits per weight,
// relative error 2^-9) it costs about a tenth of what 4-bit layers cost in KL divergence; figures
// in docs/results.
#pragma once
#include "formats/checkpoint.h"
#include "kernels/collective/collective.h"
#include "tensor/exec.h"

namespace lathe {

// head.dense [vocab_size, hidden_size] (f32, bf16 or f16) as int8 with a bf16 scale per 32 columns.
// A head that is quantized already, or whose hidden_size is not a multiple of 32, comes back as it
// is.
LinearWeights int8_output_head(LinearWeights head, Exec& exec);

// Throws kCorruptData unless a head of n outputs and k inputs is the config's, or the part of it
// that belongs to the collective's rank (null: all of it).
void check_output_head(const ModelConfig& config, int64_t n, int64_t k,
                       const Collective* collective);

}  // namespace lathe
