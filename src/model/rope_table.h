// Cosines and sines of rotary position embedding, per position and rotated pair, with the frequency
// scalings that Hugging Face configs know.
//   none     f_j = theta^(-2j / rotary_dim)
//   linear   f_j / factor                                         (Chen et al. 2023)
//   dynamic  theta grown with the sequence length ("NTK-aware")    (bloc97 2023)
//   llama3   low frequencies / factor, high ones kept, between: interpolated   (Llama 3.1)
//   yarn     the same with a linear ramp, and cos, sin scaled      (Peng et al. 2023)
//   longrope f_j / short_factor[j] or / long_factor[j], and cos, sin scaled (Ding et al. 2024)
#pragma once
#include <cstdint>
#include <vector>

#include "formats/model_config.h"

namespace lathe {

struct RopeFrequencies {
  std::vector<float> inverse;   // [rotary_dim / 2], radians per position
  double attention_factor = 1;  // on cos and sin
};

// The frequencies for a sequence of sequence_length tokens (only longrope and dynamic depend on
// it: beyond the length the model was first trained for they change for all positions).
// max_position_embeddings is the model's; a config without original_max_position_embeddings was
// trained for that many. Throws kInvalidArgument for a config that cannot be evaluated.
RopeFrequencies rope_frequencies(const RopeConfig& config, int64_t rotary_dim,
                                 int64_t max_position_embeddings, int64_t sequence_length);

// Tables for positions [0, num_positions), shared by all layers with the same RopeConfig.
class RopeTable {
 public:
  RopeTable(const RopeConfig& config, int64_t rotary_dim, int64_t max_position_embeddings,
            int64_t num_positions);

  struct View {
    const float* cos;  // [num_positions, rotary_dim / 2]
    const float* sin;
    int64_t num_positions;
  };
  // The table for a sequence that has, or will have, sequence_length tokens. Longrope and dynamic
  // have two (up to the original length, and beyond); keys rotated with one do not fit the other,
  // so a sequence keeps the table that its expected length asks for when it starts. For dynamic,
  // whose frequencies change with every token beyond the original length, the second table is the
  // one of num_positions tokens.
  View view(int64_t sequence_length) const;

 private:
  struct Table {
    std::vector<float> cos, sin;
  };
  static Table make_table(const RopeFrequencies& frequencies, int64_t num_positions);
  Table first_;
  Table beyond_;  // empty unless the scaling depends on the length
  int64_t original_length_;
  int64_t num_positions_;
};

}  // namespace lathe
