// A checkpoint with the decoder layers' linear weights rounded to a coarser format as they are
// loaded: the draft of self-speculation (a FP4 copy of the model, made in memory).
#pragma once
#include <memory>

#include "formats/checkpoint.h"

namespace lathe {

// Rounds to nearest, by the largest magnitude of each group. Weights that have at most as many bits
// already stay as they are, so do those whose width the group does not divide. `source` is
// borrowed. Throws kInvalidArgument when no weight would change: the copy would be the model.
std::unique_ptr<Checkpoint> requantized_checkpoint(const Checkpoint& source,
                                                   const WeightFormat& format);

}  // namespace lathe
