// What a model file says about its architecture, with Hugging Face's names. Filled from config.json
// (transformers 4 and 5 spellings) or from GGUF metadata; validated here, once.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lathe {

enum class Architecture { kLlama, kQwen2, kQwen3, kMistral, kGemma3, kPhi3, kQwen3Moe, kMixtral };

enum class Activation { kSilu, kGeluTanh };

// Rotary position embedding of one kind of layer.
struct RopeConfig {
  enum class Scaling { kNone, kLinear, kLlama3, kYarn, kLongRope, kDynamic };
  double theta = 10000;
  Scaling scaling = Scaling::kNone;
  double factor = 1;
  double low_freq_factor = 1;                    // llama3
  double high_freq_factor = 4;                   // llama3
  int64_t original_max_position_embeddings = 0;  // llama3, yarn, longrope
  double beta_fast = 32, beta_slow = 1;          // yarn
  double attention_factor = 0;  // yarn, longrope: scales cos and sin; 0: by the published formula
  std::vector<double> short_factor = {}, long_factor = {};  // longrope, one per rotated pair

  bool operator==(const RopeConfig&) const = default;
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string model_type;  // as the file spells it: "llama", "gemma3_text", ...

  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // dimensions of a head that rotate (partial_rotary_factor * head_dim)
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  Activation hidden_act = Activation::kSilu;
  bool tie_word_embeddings = false;

  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;          // RMSNorm of each head of q and k before RoPE
  bool norm_plus_one = false;    // Gemma: RMSNorm multiplies by 1 + weight
  bool sandwich_norms = false;   // Gemma: norms behind attention and MLP too
  double embedding_scale = 1;    // Gemma: sqrt(hidden_size), rounded to the weights' dtype
  double attention_scale = 0;    // factor on q.k: head_dim^-0.5, or query_pre_attn_scalar^-0.5
  double attention_softcap = 0;  // 0: none
  double final_logit_softcap = 0;

  RopeConfig rope;                     // full-attention layers
  RopeConfig rope_local;               // sliding layers (Gemma 3); equal to rope elsewhere
  int64_t sliding_window = 0;          // a token sees itself and sliding_window - 1 before it
  std::vector<bool> layer_is_sliding;  // [num_layers]

  int64_t num_experts = 0;  // 0: dense
  int64_t num_experts_per_token = 0;
  int64_t moe_intermediate_size = 0;
  bool norm_topk_prob = true;      // renormalise the chosen experts' probabilities
  std::vector<bool> layer_is_moe;  // [num_layers]

  int64_t bos_token_id = -1;
  std::vector<int64_t> eos_token_ids;

  bool operator==(const ModelConfig&) const = default;
  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
};

// Size limits that hold whatever the file format, the agreement of sizes with one another, and the
// per-layer lists (filled with false when empty). Throws kCorruptData. `what` names the file.
void validate(ModelConfig& config, const std::string& what);

// From config.json's text. Throws kCorruptData (missing or impossible value: names the key and the
// value) or kUnsupported (an architecture or feature lathe does not run).
ModelConfig parse_hf_config(const std::string& json_text, const std::string& what);

}  // namespace lathe
