#include "formats/model_config.h"

#include <cmath>

#include "base/error.h"

namespace lathe {
namespace {

// Far above any published model, and low enough that no product of two of them overflows int64 and
// no list of layers or experts eats the memory.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxWidth = int64_t{1} << 20;  // hidden and intermediate sizes
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxPositions = int64_t{1} << 40;
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxExpertsOfAllLayers = 1 << 17;

void check_range(const std::string& what, const char* name, int64_t value, int64_t min,
                 int64_t max) {
  if (value < min || value > max) {
    fail(ErrorCode::kCorruptData, what, ": ", name, " = ", value, ": must be between ", min,
         " and ", max);
  }
}

void check_rope(const std::string& what, const RopeConfig& rope, int64_t rotary_dim) {
  const auto refuse = [&](const auto&... parts) {
    fail(ErrorCode::kCorruptData, what, ": rope: ", parts...);
  };
  if (!(rope.theta > 0) || !std::isfinite(rope.theta)) refuse("theta = ", rope.theta);
  if (!(rope.factor > 0) || !std::isfinite(rope.factor)) refuse("factor = ", rope.factor);
  if (rope.scaling == RopeConfig::Scaling::kLlama3 &&
      !(rope.low_freq_factor > 0 && rope.high_freq_factor > rope.low_freq_factor)) {
    refuse("low_freq_factor = ", rope.low_freq_factor,
           " must lie below high_freq_factor = ", rope.high_freq_factor);
  }
  const bool needs_original = rope.scaling == RopeConfig::Scaling::kLlama3 ||
                              rope.scaling == RopeConfig::Scaling::kYarn ||
                              rope.scaling == RopeConfig::Scaling::kLongRope ||
                              rope.scaling == RopeConfig::Scaling::kDynamic;
  if (needs_original && rope.original_max_position_embeddings < 1) {
    refuse("original_max_position_embeddings is missing");
  }
  if (rope.scaling == RopeConfig::Scaling::kLongRope) {
    const auto pairs = static_cast<std::size_t>(rotary_dim / 2);
    if (rope.short_factor.size() != pairs || rope.long_factor.size() != pairs) {
      refuse("short_factor and long_factor have ", rope.short_factor.size(), " and ",
             rope.long_factor.size(), " numbers, ", rotary_dim, " rotated dimensions need ", pairs);
    }
    for (const auto* factors : {&rope.short_factor, &rope.long_factor}) {
      for (const double factor : *factors) {
        if (!(factor > 0) || !std::isfinite(factor)) refuse("a longrope factor is ", factor);
      }
    }
  }
}

}  // namespace

void validate(ModelConfig& config, const std::string& what) {
  const auto range = [&](const char* name, int64_t value, int64_t max, int64_t min = 1) {
    check_range(what, name, value, min, max);
  };
  range("vocab_size", config.vocab_size, kMaxVocab);
  range("hidden_size", config.hidden_size, kMaxWidth);
  range("intermediate_size", config.intermediate_size, kMaxWidth);
  range("num_hidden_layers", config.num_layers, kMaxLayers);
  range("num_attention_heads", config.num_heads, kMaxHeads);
  range("num_key_value_heads", config.num_kv_heads, kMaxHeads);
  range("head_dim", config.head_dim, kMaxHeadDim);
  range("max_position_embeddings", config.max_position_embeddings, kMaxPositions);
  range("sliding_window", config.sliding_window, kMaxPositions, 0);
  if (config.num_heads % config.num_kv_heads != 0) {
    fail(ErrorCode::kCorruptData, what, ": num_attention_heads = ", config.num_heads,
         " is not a multiple of num_key_value_heads = ", config.num_kv_heads);
  }
  if (config.head_dim % 2 != 0) {
    fail(ErrorCode::kCorruptData, what, ": head_dim = ", config.head_dim, " is odd");
  }
  range("rotary dimensions", config.rotary_dim, config.head_dim, 2);
  if (config.rotary_dim % 2 != 0) {
    fail(ErrorCode::kCorruptData, what, ": ", config.rotary_dim, " rotary dimensions: odd");
  }
  if (!(config.rms_norm_eps > 0 && config.rms_norm_eps < 1)) {
    fail(ErrorCode::kCorruptData, what, ": rms_norm_eps = ", config.rms_norm_eps);
  }
  for (const double value : {config.attention_scale, config.embedding_scale}) {
    if (!(value > 0) || !std::isfinite(value)) {
      fail(ErrorCode::kCorruptData, what, ": attention or embedding scale = ", value);
    }
  }
  for (const double value : {config.attention_softcap, config.final_logit_softcap}) {
    if (!(value >= 0) || !std::isfinite(value)) {
      fail(ErrorCode::kCorruptData, what, ": soft cap = ", value);
    }
  }
  check_rope(what, config.rope, config.rotary_dim);
  check_rope(what, config.rope_local, config.rotary_dim);

  const auto layers = static_cast<std::size_t>(config.num_layers);
  if (config.layer_is_sliding.empty()) config.layer_is_sliding.assign(layers, false);
  if (config.layer_is_moe.empty()) config.layer_is_moe.assign(layers, false);
  if (config.layer_is_sliding.size() != layers || config.layer_is_moe.size() != layers) {
    fail(ErrorCode::kCorruptData, what, ": a list of layer kinds does not have ", layers,
         " entries");
  }
  for (std::size_t layer = 0; layer < layers; ++layer) {
    if (config.layer_is_sliding[layer] && config.sliding_window < 1) {
      fail(ErrorCode::kCorruptData, what, ": layer ", layer,
           " has sliding attention, but there is no sliding_window");
    }
    if (config.layer_is_moe[layer] && config.num_experts < 1) {
      fail(ErrorCode::kCorruptData, what, ": layer ", layer, " needs num_experts");
    }
  }
  range("num_experts", config.num_experts, kMaxExperts, 0);
  if (config.num_experts > 0) {
    range("num_experts_per_tok", config.num_experts_per_token, config.num_experts);
    range("moe_intermediate_size", config.moe_intermediate_size, kMaxWidth);
    if (config.num_experts * config.num_layers > kMaxExpertsOfAllLayers) {
      fail(ErrorCode::kCorruptData, what, ": num_experts = ", config.num_experts, " in ",
           config.num_layers, " layers are more than ", kMaxExpertsOfAllLayers, " experts");
    }
  }
  for (const int64_t id : config.eos_token_ids) {
    check_range(what, "eos_token_id", id, 0, config.vocab_size - 1);
  }
  if (config.bos_token_id != -1) {
    check_range(what, "bos_token_id", config.bos_token_id, 0, config.vocab_size - 1);
  }
}

}  // namespace lathe
