// Which tensors a model has, by its config: names as transformers' modules have them (experts one
// by one, q/k/v and gate/up apart), with shapes. Every checkpoint format is checked against this
// list.
#pragma once
#include <string>
#include <vector>

#include "formats/model_config.h"
#include "tensor/tensor.h"

namespace lathe {

struct LinearModule {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t rows = 0;  // N, output features
  int64_t cols = 0;  // K, input features
  bool has_bias = false;
};

struct PlainTensor {
  std::string name;  // "model.norm.weight"
  Shape shape;
};

struct ModelTensors {
  std::vector<LinearModule> linears;  // by layer, in the order of the forward pass; lm_head last,
                                      // unless the embedding is tied
  std::vector<PlainTensor> plain;     // embedding and norms
};

ModelTensors model_tensors(const ModelConfig& config);

// The linears of one layer, in the order of the forward pass; a MoE layer: the router
// ("...mlp.gate"), then every expert's gate, up, down.
std::vector<LinearModule> layer_linears(const ModelConfig& config, int64_t layer);

// "model.layers.3."
std::string layer_prefix(int64_t layer);

}  // namespace lathe
