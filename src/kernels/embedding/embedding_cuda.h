// Rows of the embedding table on the GPU, as fp32: hidden[t, :] = scale * table[token_ids[t], :].
#pragma once
#include <cstdint>

#include "kernels/linear/linear_cuda.h"

namespace lathe {

struct EmbeddingCudaArgs {
  const void* table = nullptr;               // [vocab_size, hidden_size], on the device
  CudaElement element = CudaElement::kBF16;  // kF32 or kBF16
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;             // a multiple of 8
  const int32_t* token_ids = nullptr;  // [num_tokens], on the device
  int64_t num_tokens = 0;
  float scale = 1;          // Gemma's sqrt(hidden_size); 1 elsewhere
  float* hidden = nullptr;  // [num_tokens, hidden_size]
};

// Only enqueues. A token id outside the vocabulary, which the host cannot see here, gives a row of
// NaNs. Throws kInvalidArgument on a bad size or element.
void embedding_lookup_cuda(const EmbeddingCudaArgs& args, CudaStream stream);

}  // namespace lathe
