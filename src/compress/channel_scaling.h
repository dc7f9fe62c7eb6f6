// Per-channel factors between a linear layer's input and its weight, x / t and W t, merged into
// what produces the input: SmoothQuant moves the difficulty of outlier channels from activations to
// weights, AWQ protects the weights of the channels that carry the most signal.
//
//   input of    produced by                       so 1/t goes into
//   q/k/v       the norm before attention         its gain
//   gate/up     the norm before the MLP           its gain (not for experts: the router reads it
//   too) o           attention over v                  v_proj's rows; heads that share a v head
//   share t down        act(gate) * up                    up_proj's rows
//
// Sources: Xiao et al., "SmoothQuant" (2023), eq. 4; Lin et al., "AWQ" (2024), section 3.2;
// spec/mr-gptq.md 5.1 (which leaves the places of o and down open).
#pragma once
#include <vector>

#include "compress/layer_pass.h"
#include "compress/quantize_options.h"
#include "model/layer_weights.h"

namespace lathe {

// Changes the weights (f32, dense) and the gains, and brings the statistics up to date.
// store_dtype: gains are rounded to it before t is fixed, so that the stored gain and t belong
// together exactly. Besides the quantized weights, input_norm, mlp_norm and the biases must then be
// stored anew.
void smooth_layer(LayerWeights& weights, LayerStatistics& statistics, const ModelConfig& config,
                  const QuantizeOptions& options, DType store_dtype, Exec& exec);

}  // namespace lathe
