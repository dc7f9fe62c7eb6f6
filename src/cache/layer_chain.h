// Where the reconstructed rows of each layer are kept while a block is encoded or decoded layer by
// layer: as few buffers as the chains need, one for a model whose layers all predict from the one
// below, two when sliding and global layers chain separately.
#pragma once
#include <cstdint>
#include <vector>

#include "cache/kv_codec.h"

namespace lathe {

struct LayerChain {
  int64_t num_buffers = 0;
  std::vector<int64_t> base;    // [num_layers], the base layer or -1
  std::vector<int64_t> buffer;  // [num_layers], which buffer takes the layer's rows. It is the base
                                // layer's own where no later layer needs that one.
};

// Throws kInvalidArgument when a base is not below its layer.
LayerChain plan_layer_chain(const KvCodec& codec, int64_t num_layers);

}  // namespace lathe
