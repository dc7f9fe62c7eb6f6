#include "model/layer_weights.h"

#include <optional>
#include <span>
#include <string_view>

#include "formats/model_tensors.h"

namespace lathe {
namespace {

// Which kind a module of formats/model_tensors.h is, by the end of its name; nullopt: the router.
std::optional<LinearKind> linear_kind(std::string_view module) {
  const std::string_view name = module.substr(module.rfind('.') + 1);
  if (name == "q_proj" || name == "k_proj" || name == "v_proj") return LinearKind::kQkv;
  if (name == "o_proj") return LinearKind::kO;
  if (name == "gate_proj" || name == "up_proj") return LinearKind::kGateUp;
  if (name == "down_proj") return LinearKind::kDown;
  return std::nullopt;
}

}  // namespace

std::vector<LinearSlot> layer_slots(const ModelConfig& config, int64_t layer) {
  std::vector<LinearSlot> slots;
  int64_t expert = -1;
  for (LinearModule& module : layer_linears(config, layer)) {
    const std::optional<LinearKind> kind = linear_kind(module.name);
    if (!kind) continue;
    // An expert's three modules follow one another: gate, up, down.
    const bool is_expert = module.name.find(".experts.") != std::string::npos;
    if (is_expert && module.name.ends_with(".gate_proj")) ++expert;
    slots.push_back(
        {std::move(module.name), *kind, is_expert ? expert : -1, module.rows, module.cols});
  }
  return slots;
}

Tensor load_norm(const Checkpoint& checkpoint, const std::string& name) {
  Tensor gain = checkpoint.load(name, DType::kF32);
  if (checkpoint.config().norm_plus_one) {
    for (float& value : std::span(gain.as<float>(), static_cast<std::size_t>(gain.num_elements())))
      value += 1.0f;
  }
  return gain;
}

LayerWeights load_layer_weights(const Checkpoint& checkpoint, int64_t layer, DType dense_dtype) {
  const ModelConfig& config = checkpoint.config();
  const std::string prefix = layer_prefix(layer);
  LayerWeights weights;
  weights.layer = layer;
  for (LinearSlot& slot : layer_slots(config, layer)) {
    LinearWeights linear = checkpoint.load_linear(slot.module, dense_dtype);
    weights.linears.push_back({std::move(slot), std::move(linear)});
  }

  const auto norm = [&](const char* name) { return load_norm(checkpoint, prefix + name); };
  weights.input_norm = norm("input_layernorm.weight");
  if (config.sandwich_norms) {
    weights.post_attention_norm = norm("post_attention_layernorm.weight");
    weights.mlp_norm = norm("pre_feedforward_layernorm.weight");
    weights.post_mlp_norm = norm("post_feedforward_layernorm.weight");
  } else {
    // Llama's name for it; it stands behind attention and before the MLP.
    weights.mlp_norm = norm("post_attention_layernorm.weight");
  }
  if (config.qk_norm) {
    weights.q_norm = norm("self_attn.q_norm.weight");
    weights.k_norm = norm("self_attn.k_norm.weight");
  }

  if (config.layer_is_moe[static_cast<std::size_t>(layer)]) {
    weights.router = checkpoint.load(prefix + "mlp.gate.weight", DType::kF32);
  }
  return weights;
}

Tensor key_bias(const LayerWeights& weights) {
  if (!weights.k_norm.empty()) return {};
  for (const LayerLinear& linear : weights.linears) {
    const Tensor& bias = linear.weights.bias;
    if (linear.slot.module.ends_with("k_proj") && !bias.empty()) {
      return convert(bias.view(), DType::kF32);
    }
  }
  return {};
}

}  // namespace lathe
