#include "formats/gguf_config.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace lathe {
namespace {

constexpr int64_t kMaxInt = int64_t{1} << 48;  // validate() has the real limits

struct Family {
  std::string_view name;  // general.architecture
  Architecture architecture;
  const char* model_type;  // Hugging Face's
};
constexpr Family kFamilies[] = {
    {"llama", Architecture::kLlama, "llama"},  // Mistral and Mixtral too
    {"qwen2", Architecture::kQwen2, "qwen2"},
    {"qwen3", Architecture::kQwen3, "qwen3"},
    {"qwen3moe", Architecture::kQwen3Moe, "qwen3_moe"},
    {"gemma3", Architecture::kGemma3, "gemma3_text"},
    {"phi3", Architecture::kPhi3, "phi3"},
};

const Family& family_of(const GgufFile& file) {
  const std::string name = file.text("general.architecture");
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.name == name) return family;
    known += std::string(known.empty() ? "" : ", ") + std::string(family.name);
  }
  fail(ErrorCode::kUnsupported, file.path(), ": general.architecture = '", name.substr(0, 60),
       "' (lathe runs ", known, ")");
}

// Keys of one architecture: "llama." + key.
class Hparams {
 public:
  Hparams(const GgufFile& file, std::string_view prefix) : file_(file), prefix_(prefix) {}
  std::string name(const char* key) const { return prefix_ + "." + key; }
  bool has(const char* key) const { return file_.has(name(key)); }
  int64_t integer(const char* key, int64_t max = kMaxInt) const {
    return file_.integer(name(key), 1, max);
  }
  int64_t integer_or(const char* key, int64_t fallback) const {
    return file_.integer_or(name(key), fallback, 0, kMaxInt);
  }
  double number_or(const char* key, double fallback) const {
    return file_.number_or(name(key), fallback, 0, 1e30);
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

// The numbers of a small fp32 tensor.
std::vector<double> read_factors(const GgufFile& file, const GgufTensor& tensor, int64_t expected) {
  if (tensor.type->type != GgmlType::kF32 || tensor.shape != Shape{expected}) {
    fail(ErrorCode::kCorruptData, file.path(), ": tensor '", tensor.name, "' is ",
         tensor.type->name, " ", to_string(tensor.shape), ", expected F32 [", expected, "]");
  }
  std::vector<float> values(static_cast<std::size_t>(expected));
  tensor.type->dequantize(tensor.data, expected, values.data());
  return {values.begin(), values.end()};
}

// Llama 3.1's scaling comes as the divisors of the frequencies. The published parameters that give
// these divisors, or, where none do, the divisors themselves as a longrope without a switch.
void set_llama3_scaling(const std::vector<double>& divisors, int64_t head_dim, RopeConfig& rope) {
  RopeConfig candidate = rope;
  candidate.scaling = RopeConfig::Scaling::kLlama3;
  candidate.factor = *std::max_element(divisors.begin(), divisors.end());
  candidate.low_freq_factor = 1;
  candidate.high_freq_factor = 4;
  candidate.original_max_position_embeddings = 8192;
  const double original = 8192;
  double worst = 0;
  for (std::size_t i = 0; i < divisors.size(); ++i) {
    const double frequency =
        std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    const double wavelength = 2 * M_PI / frequency;
    double divisor = 1;
    if (wavelength > original / candidate.low_freq_factor) {
      divisor = candidate.factor;
    } else if (wavelength > original / candidate.high_freq_factor) {
      const double smooth = (original / wavelength - candidate.low_freq_factor) /
                            (candidate.high_freq_factor - candidate.low_freq_factor);
      divisor = 1 / ((1 - smooth) / candidate.factor + smooth);
    }
    worst = std::max(worst, std::fabs(divisor / divisors[i] - 1));
  }
  if (worst < 1e-4) {
    rope = candidate;
    return;
  }
  rope.scaling = RopeConfig::Scaling::kLongRope;
  rope.short_factor = rope.long_factor = divisors;
  rope.original_max_position_embeddings = 8192;
  rope.attention_factor = 1;
}

void parse_rope(const GgufFile& file, const Hparams& hparams, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.theta = hparams.number_or("rope.freq_base", 10000);
  const int64_t pairs = config.rotary_dim / 2;
  const std::string type = file.text_or(hparams.name("rope.scaling.type"), "none");
  const int64_t original =
      hparams.integer_or("rope.scaling.original_context_length", config.max_position_embeddings);
  const GgufTensor* long_factors = file.find_tensor("rope_factors_long.weight");
  const GgufTensor* short_factors = file.find_tensor("rope_factors_short.weight");
  if (const GgufTensor* divisors = file.find_tensor("rope_freqs.weight")) {
    set_llama3_scaling(read_factors(file, *divisors, pairs), config.head_dim, rope);
  } else if (long_factors != nullptr && short_factors != nullptr) {
    rope.scaling = RopeConfig::Scaling::kLongRope;
    rope.long_factor = read_factors(file, *long_factors, pairs);
    rope.short_factor = read_factors(file, *short_factors, pairs);
    rope.original_max_position_embeddings = original;
    rope.factor =
        static_cast<double>(config.max_position_embeddings) / static_cast<double>(original);
    rope.attention_factor = hparams.number_or("rope.scaling.attn_factor", 0);
  } else if (type == "linear" && hparams.number_or("rope.scaling.factor", 1) != 1) {
    rope.scaling = RopeConfig::Scaling::kLinear;
    rope.factor = hparams.number_or("rope.scaling.factor", 1);
  } else if (type == "yarn") {
    rope.scaling = RopeConfig::Scaling::kYarn;
    rope.factor = hparams.number_or("rope.scaling.factor", 1);
    rope.original_max_position_embeddings = original;
    rope.beta_fast = hparams.number_or("rope.scaling.yarn_beta_fast", 32);
    rope.beta_slow = hparams.number_or("rope.scaling.yarn_beta_slow", 1);
  } else if (type != "none" && type != "linear") {
    fail(ErrorCode::kUnsupported, file.path(), ": ", hparams.name("rope.scaling.type"), " = '",
         type.substr(0, 40), "' without its factors");
  }
  config.rope_local = rope;
  if (config.architecture == Architecture::kGemma3) {
    config.rope_local = RopeConfig{};
    config.rope_local.theta = hparams.number_or("rope.freq_base_swa", 10000);
  }
}

void parse_sliding(const GgufFile& file, const Hparams& hparams, ModelConfig& config) {
  const auto layers = static_cast<std::size_t>(config.num_layers);
  config.layer_is_sliding.assign(layers, false);
  config.sliding_window = hparams.integer_or("attention.sliding_window", 0);
  if (config.sliding_window == 0) return;
  const std::string key = hparams.name("attention.sliding_window_pattern");
  if (file.is_array(key)) {
    const std::vector<int64_t> pattern = file.integers(key);
    if (pattern.size() < layers) {
      fail(ErrorCode::kCorruptData, file.path(), ": metadata '", key, "' has ", pattern.size(),
           " entries for ", layers, " layers");
    }
    for (std::size_t i = 0; i < layers; ++i) config.layer_is_sliding[i] = pattern[i] != 0;
  } else {
    // One global layer after every pattern - 1 sliding ones. Elsewhere all layers slide.
    const bool is_gemma3 = config.architecture == Architecture::kGemma3;
    const auto pattern = static_cast<std::size_t>(file.integer_or(key, is_gemma3 ? 6 : 0, 0, 1024));
    for (std::size_t i = 0; i < layers; ++i) {
      config.layer_is_sliding[i] = pattern == 0 || (i + 1) % pattern != 0;
    }
  }
  if (std::none_of(config.layer_is_sliding.begin(), config.layer_is_sliding.end(),
                   [](bool sliding) { return sliding; })) {
    config.sliding_window = 0;
  }
}

// The file has one end-of-text id; chat models also end a turn with a token of their own, which is
// known by its spelling.
void parse_token_ids(const GgufFile& file, ModelConfig& config) {
  const auto add = [&](int64_t id) {
    auto& ids = config.eos_token_ids;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  };
  const int64_t last = config.vocab_size - 1;
  config.bos_token_id = file.integer_or("tokenizer.ggml.bos_token_id", -1, 0, last);
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    if (file.has(key)) add(file.integer(key, 0, last));
  }
  if (!file.has("tokenizer.ggml.tokens") || !file.has("tokenizer.ggml.token_type")) return;
  constexpr std::array<std::string_view, 6> kEndOfTurn = {
      "<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|eom_id|>"};
  constexpr int64_t kControl = 3;
  const auto& tokens = file.strings("tokenizer.ggml.tokens");
  const std::vector<int64_t> types = file.integers("tokenizer.ggml.token_type");
  const std::size_t count =
      std::min({tokens.size(), types.size(), static_cast<std::size_t>(config.vocab_size)});
  for (std::size_t id = 0; id < count; ++id) {
    if (types[id] == kControl &&
        std::find(kEndOfTurn.begin(), kEndOfTurn.end(), tokens[id]) != kEndOfTurn.end()) {
      add(static_cast<int64_t>(id));
    }
  }
}

}  // namespace

bool has_interleaved_qk(const GgufFile& file) {
  return file.text("general.architecture") == "llama";
}

ModelConfig parse_gguf_config(const GgufFile& file) {
  const Family& family = family_of(file);
  if (file.integer_or("split.count", 1, 0, 65535) > 1) {
    fail(ErrorCode::kUnsupported, file.path(),
         ": is one part of a split model; join the parts with llama-gguf-split --merge");
  }
  const Hparams hparams(file, family.name);
  const Architecture arch = family.architecture;
  const bool is_gemma3 = arch == Architecture::kGemma3;
  ModelConfig config;
  config.architecture = arch;
  config.model_type = family.model_type;

  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    fail(ErrorCode::kNotFound, file.path(), ": no tensor 'token_embd.weight' [vocab, hidden]");
  }
  config.vocab_size = embedding->shape[0];
  config.hidden_size = hparams.integer("embedding_length");
  config.num_layers = hparams.integer("block_count", 4096);
  config.num_heads = hparams.integer("attention.head_count", 4096);
  config.num_kv_heads = hparams.integer_or("attention.head_count_kv", config.num_heads);
  config.max_position_embeddings = hparams.integer("context_length");
  config.rms_norm_eps = hparams.number_or("attention.layer_norm_rms_epsilon", 1e-6);
  config.tie_word_embeddings = file.find_tensor("output.weight") == nullptr;
  config.hidden_act = is_gemma3 ? Activation::kGeluTanh : Activation::kSilu;
  config.head_dim =
      hparams.integer_or("attention.key_length", config.hidden_size / config.num_heads);
  if (hparams.integer_or("attention.value_length", config.head_dim) != config.head_dim) {
    fail(ErrorCode::kUnsupported, file.path(), ": keys of ", config.head_dim,
         " dimensions, values of another number");
  }
  config.rotary_dim = hparams.integer_or("rope.dimension_count", config.head_dim);
  config.qkv_bias = file.find_tensor("blk.0.attn_q.bias") != nullptr;
  config.o_bias = file.find_tensor("blk.0.attn_output.bias") != nullptr;
  config.mlp_bias = file.find_tensor("blk.0.ffn_down.bias") != nullptr;
  config.qk_norm = is_gemma3 || arch == Architecture::kQwen3 || arch == Architecture::kQwen3Moe;
  config.norm_plus_one = is_gemma3;
  config.sandwich_norms = is_gemma3;

  config.num_experts = hparams.integer_or("expert_count", 0);
  config.intermediate_size = hparams.integer_or("feed_forward_length", 0);
  if (config.num_experts > 0) {
    config.num_experts_per_token = hparams.integer("expert_used_count");
    config.moe_intermediate_size =
        hparams.integer_or("expert_feed_forward_length", config.intermediate_size);
    if (config.intermediate_size == 0) config.intermediate_size = config.moe_intermediate_size;
    if (arch == Architecture::kLlama) {
      config.architecture = Architecture::kMixtral;
      config.model_type = "mixtral";
    }
    config.layer_is_moe.resize(static_cast<std::size_t>(config.num_layers));
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      config.layer_is_moe[static_cast<std::size_t>(layer)] =
          file.find_tensor("blk." + std::to_string(layer) + ".ffn_gate_inp.weight") != nullptr;
    }
  }

  double scale_dim = static_cast<double>(config.head_dim);
  if (is_gemma3) {
    config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
    config.attention_softcap = hparams.number_or("attn_logit_softcapping", 0);
    config.final_logit_softcap = hparams.number_or("final_logit_softcapping", 0);
    // query_pre_attn_scalar is the head's size in all models but the largest (62 layers).
    if (config.num_layers == 62) {
      scale_dim = static_cast<double>(config.hidden_size) / static_cast<double>(config.num_heads);
    }
  }
  config.attention_scale = hparams.has("attention.scale") ? hparams.number_or("attention.scale", 0)
                                                          : 1 / std::sqrt(scale_dim);
  parse_rope(file, hparams, config);
  parse_sliding(file, hparams, config);
  parse_token_ids(file, config);
  validate(config, file.path());
  return config;
}

}  // namespace lathe
