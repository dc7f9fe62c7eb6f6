// A model of given shape with random weights, made on demand: for measuring speed at sizes that
// nobody wants to download, as other engines do with dummy weights. It computes finite nonsense.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "formats/checkpoint.h"

namespace lathe {

struct RandomWeights {
  std::optional<WeightFormat> format;  // of the linear layers; nullopt: dense bf16
  LinearScheme scheme;
  uint64_t seed = 1;
};

// directory: one with a config.json; nothing else of it is read. Layers of the same kind share
// their numbers (which are loaded again for each, so they take their full memory). The embedding,
// the output head and the norms are dense.
std::unique_ptr<Checkpoint> open_random_checkpoint(const std::string& directory,
                                                   const RandomWeights& weights);

}  // namespace lathe
