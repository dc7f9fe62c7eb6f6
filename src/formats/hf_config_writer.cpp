#include "formats/hf_config_writer.h"

#include <cmath>

#include "base/check.h"
#include "base/json.h"

namespace lathe {
namespace {

struct FamilyName {
  Architecture architecture;
  const char* model_type;
  const char* class_name;
};
constexpr FamilyName kFamilies[] = {
    {Architecture::kLlama, "llama", "LlamaForCausalLM"},
    {Architecture::kQwen2, "qwen2", "Qwen2ForCausalLM"},
    {Architecture::kQwen3, "qwen3", "Qwen3ForCausalLM"},
    {Architecture::kMistral, "mistral", "MistralForCausalLM"},
    {Architecture::kGemma3, "gemma3_text", "Gemma3ForCausalLM"},
    {Architecture::kPhi3, "phi3", "Phi3ForCausalLM"},
    {Architecture::kQwen3Moe, "qwen3_moe", "Qwen3MoeForCausalLM"},
    {Architecture::kMixtral, "mixtral", "MixtralForCausalLM"},
};

const FamilyName& family_of(Architecture architecture) {
  for (const FamilyName& family : kFamilies) {
    if (family.architecture == architecture) return family;
  }
  LATHE_CHECK(false);
  return kFamilies[0];
}

const char* torch_name(DType dtype) {
  return dtype == DType::kBF16 ? "bfloat16" : dtype == DType::kF16 ? "float16" : "float32";
}

Json rope_scaling(const RopeConfig& rope) {
  using Scaling = RopeConfig::Scaling;
  Json json;
  switch (rope.scaling) {
    case Scaling::kNone:
      return nullptr;
    case Scaling::kLinear:
      return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case Scaling::kDynamic:
      json = {{"rope_type", "dynamic"}, {"factor", rope.factor}};
      break;
    case Scaling::kLlama3:
      json = {{"rope_type", "llama3"},
              {"factor", rope.factor},
              {"low_freq_factor", rope.low_freq_factor},
              {"high_freq_factor", rope.high_freq_factor}};
      break;
    case Scaling::kYarn:
      json = {{"rope_type", "yarn"},
              {"factor", rope.factor},
              {"beta_fast", rope.beta_fast},
              {"beta_slow", rope.beta_slow}};
      break;
    case Scaling::kLongRope:
      // The factor is the ratio of the two lengths, which readers compute themselves.
      json = {{"rope_type", "longrope"},
              {"short_factor", rope.short_factor},
              {"long_factor", rope.long_factor}};
      break;
  }
  if (rope.attention_factor != 0) json["attention_factor"] = rope.attention_factor;
  json["original_max_position_embeddings"] = rope.original_max_position_embeddings;
  return json;
}

Json token_ids(const std::vector<int64_t>& ids) {
  if (ids.empty()) return nullptr;
  return ids.size() == 1 ? Json(ids[0]) : Json(ids);
}

}  // namespace

std::string write_hf_config(const ModelConfig& config, DType dtype) {
  const Architecture arch = config.architecture;
  const FamilyName& family = family_of(arch);
  const bool is_gemma3 = arch == Architecture::kGemma3;
  const bool has_switch = arch == Architecture::kQwen2 || arch == Architecture::kQwen3 ||
                          arch == Architecture::kQwen3Moe;
  Json json = {
      {"architectures", Json::array({family.class_name})},
      {"model_type", family.model_type},
      {"torch_dtype", torch_name(dtype)},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"num_hidden_layers", config.num_layers},
      {"num_attention_heads", config.num_heads},
      {"num_key_value_heads", config.num_kv_heads},
      {"max_position_embeddings", config.max_position_embeddings},
      {"rms_norm_eps", config.rms_norm_eps},
      {"rope_theta", config.rope.theta},
      {"rope_scaling", rope_scaling(config.rope)},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"bos_token_id", config.bos_token_id < 0 ? Json(nullptr) : Json(config.bos_token_id)},
      {"eos_token_id", token_ids(config.eos_token_ids)},
      {"attention_dropout", 0.0},
      {"initializer_range", 0.02},
      {"use_cache", true},
  };
  const char* activation = config.hidden_act == Activation::kSilu ? "silu" : "gelu_pytorch_tanh";
  json[is_gemma3 ? "hidden_activation" : "hidden_act"] = activation;
  if (arch != Architecture::kPhi3 && arch != Architecture::kQwen2) {
    json["head_dim"] = config.head_dim;
    json["attention_bias"] = config.qkv_bias;
  }
  if (arch == Architecture::kLlama) json["mlp_bias"] = config.mlp_bias;

  bool any_sliding = false;
  Json layer_types = Json::array();
  for (const bool sliding : config.layer_is_sliding) {
    any_sliding = any_sliding || sliding;
    layer_types.push_back(sliding ? "sliding_attention" : "full_attention");
  }
  if (arch != Architecture::kLlama) {
    json["sliding_window"] = any_sliding ? Json(config.sliding_window) : Json(nullptr);
  }
  if (has_switch) {
    json["use_sliding_window"] = any_sliding;
    if (arch != Architecture::kQwen3Moe) json["max_window_layers"] = config.num_layers;
  }
  if (is_gemma3 || arch == Architecture::kQwen2 || arch == Architecture::kQwen3) {
    json["layer_types"] = layer_types;
  }
  if (is_gemma3) {
    // transformers 4 before layer_types: the first full layer ends the pattern.
    std::size_t pattern = 0;
    while (pattern < config.layer_is_sliding.size() && config.layer_is_sliding[pattern]) ++pattern;
    json["sliding_window_pattern"] = pattern + 1;
    json["rope_local_base_freq"] = config.rope_local.theta;
    json["query_pre_attn_scalar"] =
        std::llround(1 / (config.attention_scale * config.attention_scale));
    const auto cap = [](double value) { return value == 0 ? Json(nullptr) : Json(value); };
    json["attn_logit_softcapping"] = cap(config.attention_softcap);
    json["final_logit_softcapping"] = cap(config.final_logit_softcap);
  }
  if (arch == Architecture::kPhi3) {
    json["partial_rotary_factor"] =
        static_cast<double>(config.rotary_dim) / static_cast<double>(config.head_dim);
    json["original_max_position_embeddings"] = config.rope.original_max_position_embeddings > 0
                                                   ? config.rope.original_max_position_embeddings
                                                   : config.max_position_embeddings;
    json["pad_token_id"] = nullptr;  // the class's default lies outside small vocabularies
  }
  if (arch == Architecture::kMixtral) {
    json["num_local_experts"] = config.num_experts;
    json["num_experts_per_tok"] = config.num_experts_per_token;
  } else if (arch == Architecture::kQwen3Moe) {
    json["num_experts"] = config.num_experts;
    json["num_experts_per_tok"] = config.num_experts_per_token;
    json["moe_intermediate_size"] = config.moe_intermediate_size;
    json["norm_topk_prob"] = config.norm_topk_prob;
    json["decoder_sparse_step"] = 1;
    Json dense_layers = Json::array();
    for (std::size_t layer = 0; layer < config.layer_is_moe.size(); ++layer) {
      if (!config.layer_is_moe[layer]) dense_layers.push_back(layer);
    }
    json["mlp_only_layers"] = dense_layers;
  }
  return dump_json(json, 2) + "\n";
}

std::string write_generation_config(const ModelConfig& config) {
  Json json = Json::object();
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (!config.eos_token_ids.empty()) json["eos_token_id"] = token_ids(config.eos_token_ids);
  return dump_json(json, 2) + "\n";
}

}  // namespace lathe
