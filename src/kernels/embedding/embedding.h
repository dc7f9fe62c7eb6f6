// Rows of the embedding table as fp32: y[t, :] = scale * table[token_ids[t], :].
#pragma once
#include <cstdint>
#include <span>

#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace lathe {

// table: [vocab_size, hidden_size], f32, bf16 or f16. y: [token_ids.size(), hidden_size]. scale is
// Gemma's sqrt(hidden_size); 1 elsewhere. Does not allocate. Throws kInvalidArgument on a token id
// outside the vocabulary (naming it), kUnsupported for another dtype.
void embedding_lookup(const TensorView& table, std::span<const int32_t> token_ids, float scale,
                      float* y, Exec& exec);

}  // namespace lathe
