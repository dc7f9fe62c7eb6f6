// config.json, as transformers 4 and 5 write it.
//
// The two differ in rope (4: rope_theta, rope_scaling, rope_local_base_freq, partial_rotary_factor
// at the top; 5: rope_parameters, for Gemma 3 one object per layer type), in sliding layers
// (4: sliding_window_pattern; 5: layer_types) and in the dtype's key. Missing keys take the
// defaults of transformers' configuration classes.
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/json.h"
#include "formats/json_fields.h"
#include "formats/model_config.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr int64_t kMaxInt = int64_t{1} << 48;  // validate() has the real limits
constexpr double kMaxNumber = 1e30;

struct Family {
  const char* model_type;
  Architecture architecture;
  double rope_theta;  // when the file does not say
  double rms_norm_eps;
};
constexpr Family kFamilies[] = {
    {"llama", Architecture::kLlama, 1e4, 1e-6},
    {"mistral", Architecture::kMistral, 1e4, 1e-6},
    {"qwen2", Architecture::kQwen2, 1e4, 1e-6},
    {"qwen3", Architecture::kQwen3, 1e4, 1e-6},
    {"gemma3_text", Architecture::kGemma3, 1e6, 1e-6},
    {"phi3", Architecture::kPhi3, 1e4, 1e-5},
    {"qwen3_moe", Architecture::kQwen3Moe, 1e4, 1e-6},
    {"mixtral", Architecture::kMixtral, 1e6, 1e-5},
};

const Family& family_of(const JsonFields& fields, const std::string& model_type) {
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.model_type == model_type) return family;
    known += std::string(known.empty() ? "" : ", ") + family.model_type;
  }
  fields.unsupported("model_type", "lathe runs " + known + ", gemma3");
}

RopeConfig::Scaling scaling_from_name(const JsonFields& rope, const char* key, bool is_phi3) {
  using Scaling = RopeConfig::Scaling;
  const std::string name = rope.text_or(key, "default");
  if (name == "default") return Scaling::kNone;
  if (name == "linear") return Scaling::kLinear;
  if (name == "llama3") return Scaling::kLlama3;
  // Phi-3's first configs said "su" and "yarn" for what became longrope.
  if (name == "longrope" || name == "su" || (is_phi3 && name == "yarn")) return Scaling::kLongRope;
  if (name == "yarn") return Scaling::kYarn;
  if (name == "dynamic") return Scaling::kDynamic;
  rope.unsupported(key, "lathe knows default, linear, llama3, yarn, longrope, dynamic");
}

// YaRN's mscale, eq. 22 of Peng et al. 2023 with DeepSeek's coefficient.
double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// One rope description: `rope` is rope_parameters (5) or rope_scaling (4), or nothing.
RopeConfig parse_rope(const std::optional<JsonFields>& rope, const JsonFields& top,
                      double default_theta, bool is_phi3) {
  RopeConfig config;
  config.theta = default_theta;
  if (!rope) return config;
  config.theta = rope->number_or("rope_theta", default_theta, 1e-3, kMaxNumber);
  config.scaling = scaling_from_name(*rope, rope->has("rope_type") ? "rope_type" : "type", is_phi3);
  if (config.scaling == RopeConfig::Scaling::kNone) return config;
  if (config.scaling == RopeConfig::Scaling::kLinear) {
    config.factor = rope->number("factor", 1e-6, 1e9);
    return config;
  }

  const int64_t max_positions = top.integer_or("max_position_embeddings", 0, 0, kMaxInt);
  // Phi-3 has the original length at the top; elsewhere it is in the object, and the current
  // length stands in for it.
  config.original_max_position_embeddings = rope->integer_or(
      "original_max_position_embeddings",
      top.integer_or("original_max_position_embeddings", max_positions, 1, kMaxInt), 1, kMaxInt);
  const bool by_lengths = config.scaling == RopeConfig::Scaling::kLongRope ||
                          config.scaling == RopeConfig::Scaling::kYarn;
  if (rope->has("factor") || !by_lengths) {
    config.factor = rope->number("factor", 1e-6, 1e9);
  } else {
    config.factor = static_cast<double>(max_positions) /
                    static_cast<double>(config.original_max_position_embeddings);
  }
  config.attention_factor = rope->number_or("attention_factor", 0, 0, 1e6);
  switch (config.scaling) {
    case RopeConfig::Scaling::kLlama3:
      config.low_freq_factor = rope->number("low_freq_factor", 1e-6, 1e9);
      config.high_freq_factor = rope->number("high_freq_factor", 1e-6, 1e9);
      break;
    case RopeConfig::Scaling::kYarn:
      config.beta_fast = rope->number_or("beta_fast", 32, 1e-6, 1e9);
      config.beta_slow = rope->number_or("beta_slow", 1, 1e-6, 1e9);
      if (!rope->boolean_or("truncate", true)) {
        rope->unsupported("truncate", "lathe rounds YaRN's bounds to whole dimensions");
      }
      if (config.attention_factor == 0 && rope->has("mscale") && rope->has("mscale_all_dim")) {
        config.attention_factor =
            yarn_mscale(config.factor, rope->number("mscale", 0, 1e6)) /
            yarn_mscale(config.factor, rope->number("mscale_all_dim", 0, 1e6));
      }
      break;
    case RopeConfig::Scaling::kLongRope:
      config.short_factor = rope->numbers("short_factor", 1e-6, 1e9);
      config.long_factor = rope->numbers("long_factor", 1e-6, 1e9);
      break;
    default:
      break;
  }
  return config;
}

// Both rope descriptions and the rotated part of a head.
void parse_ropes(const JsonFields& fields, const Family& family, ModelConfig& config) {
  const bool is_phi3 = family.architecture == Architecture::kPhi3;
  const bool is_gemma3 = family.architecture == Architecture::kGemma3;
  std::optional<JsonFields> parameters = fields.object("rope_parameters");
  std::optional<JsonFields> local_parameters;
  const bool nested =
      parameters && (parameters->has("full_attention") || parameters->has("sliding_attention"));
  if (nested) {
    local_parameters = parameters->object("sliding_attention");
    parameters = parameters->object("full_attention");
  } else if (!parameters) {
    parameters = fields.object("rope_scaling");
  }
  const double theta = fields.number_or("rope_theta", family.rope_theta, 1e-3, kMaxNumber);
  config.rope = parse_rope(parameters, fields, theta, is_phi3);
  if (is_gemma3) {
    const double local_theta = fields.number_or("rope_local_base_freq", 1e4, 1e-3, kMaxNumber);
    config.rope_local = parse_rope(local_parameters, fields, local_theta, is_phi3);
  } else {
    config.rope_local =
        local_parameters ? parse_rope(local_parameters, fields, theta, is_phi3) : config.rope;
  }
  const JsonFields& holder =
      parameters && parameters->has("partial_rotary_factor") ? *parameters : fields;
  const double rotated = holder.number_or("partial_rotary_factor", 1, 1e-3, 1);
  if (rotated != 1 && !is_phi3) {
    holder.unsupported("partial_rotary_factor", "only Phi-3 rotates a part of a head");
  }
  config.rotary_dim = static_cast<int64_t>(static_cast<double>(config.head_dim) * rotated);
}

// Which layers slide: layer_types where the family reads it, else the family's own rule.
void parse_sliding(const JsonFields& fields, ModelConfig& config) {
  const Architecture arch = config.architecture;
  const bool is_gemma3 = arch == Architecture::kGemma3;
  const bool has_switch = arch == Architecture::kQwen2 || arch == Architecture::kQwen3 ||
                          arch == Architecture::kQwen3Moe;
  const bool by_layer = is_gemma3 || arch == Architecture::kQwen2 || arch == Architecture::kQwen3;
  const auto layers = static_cast<std::size_t>(config.num_layers);
  config.layer_is_sliding.assign(layers, false);

  // A missing key is the class's default; an explicit null switches the window off.
  const int64_t default_window =
      has_switch || is_gemma3 || arch == Architecture::kMistral ? 4096 : 0;
  int64_t window = fields.integer_or(
      "sliding_window", fields.mentions("sliding_window") ? 0 : default_window, 1, kMaxInt);
  if (arch == Architecture::kLlama) window = 0;
  if (has_switch && !fields.boolean_or("use_sliding_window", false)) window = 0;
  if (by_layer && fields.has("layer_types")) {
    const std::vector<std::string> types = fields.texts("layer_types");
    if (types.size() != layers) {
      fields.refuse("layer_types", str("has ", types.size(), " entries for ", layers, " layers"));
    }
    for (std::size_t layer = 0; layer < layers; ++layer) {
      if (types[layer] != "full_attention" && types[layer] != "sliding_attention") {
        fields.unsupported("layer_types", "layer " + std::to_string(layer) + " is '" +
                                              types[layer].substr(0, 40) + "'");
      }
      config.layer_is_sliding[layer] = types[layer] == "sliding_attention";
    }
  } else if (is_gemma3) {
    const auto pattern =
        static_cast<std::size_t>(fields.integer_or("sliding_window_pattern", 6, 1, kMaxInt));
    for (std::size_t layer = 0; layer < layers; ++layer) {
      config.layer_is_sliding[layer] = (layer + 1) % pattern != 0;
    }
  } else if (window > 0) {
    const int64_t first = by_layer ? fields.integer_or("max_window_layers", 28, 0, kMaxInt) : 0;
    for (std::size_t layer = 0; layer < layers; ++layer) {
      config.layer_is_sliding[layer] = static_cast<int64_t>(layer) >= first;
    }
  }
  bool any = false;
  for (const bool sliding : config.layer_is_sliding) any = any || sliding;
  config.sliding_window = any ? window : 0;
}

void parse_experts(const JsonFields& fields, ModelConfig& config) {
  const auto layers = static_cast<std::size_t>(config.num_layers);
  if (config.architecture == Architecture::kMixtral) {
    config.num_experts = fields.integer_or("num_local_experts", 8, 1, kMaxInt);
    config.num_experts_per_token = fields.integer_or("num_experts_per_tok", 2, 1, kMaxInt);
    config.moe_intermediate_size = config.intermediate_size;
    config.layer_is_moe.assign(layers, true);
  } else if (config.architecture == Architecture::kQwen3Moe) {
    config.num_experts = fields.integer_or(
        "num_experts", fields.integer_or("num_local_experts", 128, 0, kMaxInt), 0, kMaxInt);
    config.num_experts_per_token = fields.integer_or("num_experts_per_tok", 8, 1, kMaxInt);
    config.moe_intermediate_size = fields.integer_or("moe_intermediate_size", 768, 1, kMaxInt);
    config.norm_topk_prob = fields.boolean_or("norm_topk_prob", false);
    const auto step =
        static_cast<std::size_t>(fields.integer_or("decoder_sparse_step", 1, 1, kMaxInt));
    config.layer_is_moe.resize(layers);
    for (std::size_t layer = 0; layer < layers; ++layer) {
      config.layer_is_moe[layer] = config.num_experts > 0 && (layer + 1) % step == 0;
    }
    if (fields.has("mlp_only_layers")) {
      for (const int64_t layer : fields.integers("mlp_only_layers", 0, kMaxInt)) {
        if (layer < config.num_layers) config.layer_is_moe[static_cast<std::size_t>(layer)] = false;
      }
    }
  }
}

void parse_token_ids(const JsonFields& fields, ModelConfig& config) {
  config.bos_token_id = fields.integer_or("bos_token_id", -1, -1, kMaxInt);
  const Json* eos = fields.find("eos_token_id");
  if (eos == nullptr) return;
  config.eos_token_ids = eos->is_array()
                             ? fields.integers("eos_token_id", 0, kMaxInt)
                             : std::vector<int64_t>{fields.integer("eos_token_id", -1, kMaxInt)};
  std::erase(config.eos_token_ids, -1);  // "none", as some converters write it
}

// Gemma multiplies embeddings by sqrt(hidden_size), rounded to the type that the weights have.
double gemma_embedding_scale(const JsonFields& fields, int64_t hidden_size) {
  const double exact = std::sqrt(static_cast<double>(hidden_size));
  const std::string dtype = fields.text_or("dtype", fields.text_or("torch_dtype", "float32"));
  if (dtype == "bfloat16") return float_from_bf16(bf16_from_float(static_cast<float>(exact)));
  if (dtype == "float16") return float_from_f16(f16_from_float(static_cast<float>(exact)));
  return exact;
}

Activation parse_activation(const JsonFields& fields, const char* key, const char* fallback) {
  const std::string name = fields.text_or(key, fallback);
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::kGeluTanh;
  fields.unsupported(key, "lathe knows silu and gelu_pytorch_tanh");
}

// `whole` is the file; `fields` the part that describes the language model (often the same).
ModelConfig parse_text_model(const JsonFields& fields, const JsonFields& whole,
                             const std::string& model_type) {
  const Family& family = family_of(fields, model_type);
  const Architecture arch = family.architecture;
  const bool is_gemma3 = arch == Architecture::kGemma3;
  ModelConfig config;
  config.architecture = arch;
  config.model_type = family.model_type;

  // The text_config of a multimodal Gemma 3 leaves out what equals the class's defaults.
  const auto size = [&](const char* key, int64_t gemma_default) {
    return is_gemma3 ? fields.integer_or(key, gemma_default, 1, kMaxInt)
                     : fields.integer(key, 1, kMaxInt);
  };
  config.vocab_size = size("vocab_size", 262208);
  config.hidden_size = size("hidden_size", 2304);
  config.intermediate_size = size("intermediate_size", 9216);
  config.num_layers = size("num_hidden_layers", 26);
  config.num_heads = size("num_attention_heads", 8);
  config.max_position_embeddings = size("max_position_embeddings", 131072);
  int64_t default_kv_heads = config.num_heads;
  if (!fields.mentions("num_key_value_heads")) {
    if (is_gemma3) default_kv_heads = 4;
    if (arch == Architecture::kMistral || arch == Architecture::kMixtral) default_kv_heads = 8;
  }
  config.num_kv_heads = fields.integer_or("num_key_value_heads", default_kv_heads, 1, kMaxInt);
  if (fields.has("head_dim") && arch != Architecture::kPhi3) {
    config.head_dim = fields.integer("head_dim", 1, kMaxInt);
  } else if (is_gemma3 || (arch == Architecture::kQwen3 && !fields.mentions("head_dim"))) {
    config.head_dim = is_gemma3 ? 256 : 128;
  } else {
    if (config.hidden_size % config.num_heads != 0) {
      fields.refuse("hidden_size",
                    str("is not a multiple of num_attention_heads = ", config.num_heads));
    }
    config.head_dim = config.hidden_size / config.num_heads;
  }
  if (config.num_layers > 4096) fields.refuse("num_hidden_layers", "must be at most 4096");

  config.rms_norm_eps = fields.number_or("rms_norm_eps", family.rms_norm_eps, 0, 1);
  config.hidden_act = is_gemma3 ? parse_activation(fields, "hidden_activation", "gelu_pytorch_tanh")
                                : parse_activation(fields, "hidden_act", "silu");
  const bool tie_default = is_gemma3;
  config.tie_word_embeddings = fields.boolean_or(
      "tie_word_embeddings", whole.boolean_or("tie_word_embeddings", tie_default));

  const bool bias_switch = arch == Architecture::kLlama || arch == Architecture::kQwen3 ||
                           arch == Architecture::kQwen3Moe || is_gemma3;
  const bool attention_bias = bias_switch && fields.boolean_or("attention_bias", false);
  config.qkv_bias = attention_bias || arch == Architecture::kQwen2;
  config.o_bias = attention_bias;
  config.mlp_bias = arch == Architecture::kLlama && fields.boolean_or("mlp_bias", false);
  config.qk_norm = is_gemma3 || arch == Architecture::kQwen3 || arch == Architecture::kQwen3Moe;
  config.norm_plus_one = is_gemma3;
  config.sandwich_norms = is_gemma3;

  double scale_dim = static_cast<double>(config.head_dim);
  if (is_gemma3) {
    config.embedding_scale = gemma_embedding_scale(
        fields.has("dtype") || fields.has("torch_dtype") ? fields : whole, config.hidden_size);
    scale_dim = fields.number_or("query_pre_attn_scalar", 256, 1e-6, 1e9);
    config.attention_softcap = fields.number_or("attn_logit_softcapping", 0, 0, 1e9);
    config.final_logit_softcap = fields.number_or("final_logit_softcapping", 0, 0, 1e9);
    if (fields.boolean_or("use_bidirectional_attention", false)) {
      fields.unsupported("use_bidirectional_attention", "lathe runs causal models");
    }
  }
  config.attention_scale = 1 / std::sqrt(scale_dim);

  parse_ropes(fields, family, config);
  parse_sliding(fields, config);
  parse_experts(fields, config);
  parse_token_ids(whole.has("eos_token_id") ? whole : fields, config);
  if (config.bos_token_id < 0)
    config.bos_token_id = fields.integer_or("bos_token_id", -1, -1, kMaxInt);
  return config;
}

}  // namespace

ModelConfig parse_hf_config(const std::string& json_text, const std::string& what) {
  const Json json = parse_json(json_text, what);
  const JsonFields whole(json, what);
  ModelConfig config;
  if (whole.text("model_type") == "gemma3") {
    const std::optional<JsonFields> text = whole.object("text_config");
    if (!text) fail(ErrorCode::kCorruptData, what, ": text_config is missing");
    config = parse_text_model(*text, whole, text->text_or("model_type", "gemma3_text"));
  } else {
    config = parse_text_model(whole, whole, whole.text("model_type"));
  }
  validate(config, what);
  return config;
}

}  // namespace lathe
