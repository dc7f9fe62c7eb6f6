// The beginning of a streamed calibration: all sequences through the embedding, into a HiddenStore.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "compress/hidden_store.h"
#include "formats/checkpoint.h"
#include "tensor/exec.h"

namespace lathe {

// Throws kInvalidArgument for a token that the model does not have.
void check_token_ids(const std::vector<std::vector<int32_t>>& sequences, int64_t vocab_size);

// The lengths that a HiddenStore is made of.
std::vector<int64_t> lengths_of(const std::vector<std::vector<int32_t>>& sequences);

// SHA-256 of the tokens and where sequences end.
std::string digest_of(const std::vector<std::vector<int32_t>>& sequences);

// Writes the inputs of layer 0 (a rank: of the sequences that it owns), whole on disk at return.
// transform (may be null): applied to the rows [tokens, hidden_size] of each sequence.
void embed_sequences(const Checkpoint& checkpoint,
                     const std::vector<std::vector<int32_t>>& sequences, DType dtype,
                     const std::function<void(float* rows, int64_t tokens)>& transform,
                     HiddenStore& store, Exec& exec);

}  // namespace lathe
