// Where the reconstructed rows of each layer's keys and values are kept while blocks are encoded or
// decoded layer by layer: as few buffers ("slots") as the predictors need. Three for a chain that
// predicts each layer from the one below; more when a far layer is still to be used.
#pragma once
#include <cstdint>
#include <vector>

#include "formats/kv_codec_file.h"

namespace lathe {

struct PlaneSlots {
  int64_t num_slots = 0;
  std::vector<int64_t> keys;    // [num_layers], which slot takes the layer's keys
  std::vector<int64_t> values;  // [num_layers]
};

// A slot is never that of one of the predictor's inputs, and both planes of a layer stay until the
// next layer. The file must have been validated.
PlaneSlots plan_plane_slots(const KvCodecFile& file);

}  // namespace lathe
