// Where the reconstructed rows of each layer's keys and values are kept while blocks are encoded or
// decoded layer by layer: as few buffers ("slots") as the predictors need. Three for a chain that
// predicts each layer from the one below; more when a far layer is still to be used.
#pragma once
#include <cstdint>
#include <vector>

#include "formats/kv_codec_file.h"

namespace lathe {

struct PlaneSlots {
  static constexpr int64_t kNone = -1;
  int64_t num_slots = 0;
  std::vector<int64_t> keys;    // [num_layers], which slot takes the layer's keys; kNone
  std::vector<int64_t> values;  // [num_layers]
};

// Who reads a layer's rows: predictors of other planes alone, or the caller too when the layer is
// done.
enum class PlaneReaders { kPredictors, kCaller };

// A slot is never that of one of the predictor's inputs. With kCaller both planes of a layer stay
// until the next layer; otherwise a plane that no predictor reads has no slot. The file must have
// been validated.
PlaneSlots plan_plane_slots(const KvCodecFile& file, PlaneReaders readers);

}  // namespace lathe
