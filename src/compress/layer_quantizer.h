// One decoder layer, from dense weights to codes: smoothing, calibration, quantization, in the
// order of spec/mr-gptq.md 4.1.
//
// Ranks collect the statistics together; each group of linears that share an input is the work of
// one rank, which gets its Hessian and hands its codes to all.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "compress/layer_pass.h"
#include "compress/linear_group.h"
#include "compress/quantize_options.h"
#include "model/layer_weights.h"

namespace lathe {

struct QuantizedLayer {
  // As LayerWeights, with `quantized` and `scheme` filled and the dense weights gone. Gains and
  // biases are those that belong to the quantized weights.
  LayerWeights weights;
  bool gains_changed = false;  // input_norm, mlp_norm, biases, router differ from the checkpoint's
  std::vector<LinearReport> reports;
};

// What runs while a layer is being worked on: the stage by name, and tokens done in it.
using OnStage = std::function<void(const std::string& stage, int64_t tokens_done)>;

// weights: f32, dense. pass: null when nothing is calibrated. store_dtype: of gains and biases. The
// result is the same on all ranks.
QuantizedLayer quantize_layer(LayerWeights weights, const ModelConfig& config,
                              const QuantizeOptions& options, DType store_dtype, LayerPass* pass,
                              const OnStage& on_stage, Communicator& ranks, Exec& exec,
                              CalibrationProfile* profile = nullptr);

// The layer as the calibration of the following layers sees it: with the activations' quantization
// when there is one; otherwise decoded to dense fp32 weights, rotated back, which is the same
// product without the online rotation.
CalibrationLayer pack_quantized_layer(const QuantizedLayer& layer, LayerPass& pass, Exec& exec,
                                      CalibrationProfile* profile = nullptr);

}  // namespace lathe
