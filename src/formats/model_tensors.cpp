#include "formats/model_tensors.h"

namespace lathe {

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

std::vector<LinearModule> layer_linears(const ModelConfig& config, int64_t layer) {
  const std::string attention = layer_prefix(layer) + "self_attn.";
  const std::string mlp = layer_prefix(layer) + "mlp.";
  const int64_t hidden = config.hidden_size;
  std::vector<LinearModule> linears = {
      {attention + "q_proj", config.q_size(), hidden, config.qkv_bias},
      {attention + "k_proj", config.kv_size(), hidden, config.qkv_bias},
      {attention + "v_proj", config.kv_size(), hidden, config.qkv_bias},
      {attention + "o_proj", hidden, config.q_size(), config.o_bias},
  };
  const auto add_mlp = [&](const std::string& prefix, int64_t intermediate) {
    linears.push_back({prefix + "gate_proj", intermediate, hidden, config.mlp_bias});
    linears.push_back({prefix + "up_proj", intermediate, hidden, config.mlp_bias});
    linears.push_back({prefix + "down_proj", hidden, intermediate, config.mlp_bias});
  };
  if (config.layer_is_moe[static_cast<std::size_t>(layer)]) {
    linears.push_back({mlp + "gate", config.num_experts, hidden, false});
    for (int64_t expert = 0; expert < config.num_experts; ++expert) {
      add_mlp(mlp + "experts." + std::to_string(expert) + ".", config.moe_intermediate_size);
    }
  } else {
    add_mlp(mlp, config.intermediate_size);
  }
  return linears;
}

ModelTensors model_tensors(const ModelConfig& config) {
  ModelTensors tensors;
  tensors.plain.push_back({"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = layer_prefix(layer);
    for (LinearModule& linear : layer_linears(config, layer)) {
      tensors.linears.push_back(std::move(linear));
    }
    const auto add_norm = [&](const char* name, int64_t size) {
      tensors.plain.push_back({prefix + name + ".weight", {size}});
    };
    add_norm("input_layernorm", config.hidden_size);
    add_norm("post_attention_layernorm", config.hidden_size);
    if (config.sandwich_norms) {
      add_norm("pre_feedforward_layernorm", config.hidden_size);
      add_norm("post_feedforward_layernorm", config.hidden_size);
    }
    if (config.qk_norm) {
      add_norm("self_attn.q_norm", config.head_dim);
      add_norm("self_attn.k_norm", config.head_dim);
    }
  }
  tensors.plain.push_back({"model.norm.weight", {config.hidden_size}});
  if (!config.tie_word_embeddings) {
    tensors.linears.push_back({"lm_head", config.vocab_size, config.hidden_size, false});
  }
  return tensors;
}

}  // namespace lathe
