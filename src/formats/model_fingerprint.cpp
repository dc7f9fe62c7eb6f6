#include "formats/model_fingerprint.h"

#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/sha256.h"
#include "formats/gguf.h"
#include "formats/safetensors.h"

namespace lathe {
namespace {

constexpr int64_t kPlaces = 16;  // of a tensor
constexpr int64_t kPlaceBytes = 256;

class Hash {
 public:
  template <typename Value>
  void add(const Value& value) {
    static_assert(std::is_arithmetic_v<Value> || std::is_enum_v<Value>);
    sha_.update(std::as_bytes(std::span(&value, 1)));
  }
  void add(std::string_view text) {
    add(text.size());
    sha_.update(std::as_bytes(std::span(text)));
  }
  template <typename Value>
  void add(const std::vector<Value>& values) {
    add(values.size());
    for (const Value value : values) add(value);
  }
  void sample(std::span<const std::byte> bytes) {
    add(bytes.size());
    const auto size = static_cast<int64_t>(bytes.size());
    if (size <= kPlaces * kPlaceBytes) return sha_.update(bytes);
    for (int64_t i = 0; i < kPlaces; ++i) {
      const int64_t begin = i * (size - kPlaceBytes) / (kPlaces - 1);
      sha_.update(bytes.subspan(static_cast<std::size_t>(begin), kPlaceBytes));
    }
  }
  std::string hex() { return sha_.hex_digest(); }

 private:
  Sha256 sha_;
};

void add_rope(Hash& hash, const RopeConfig& rope) {
  hash.add(rope.theta);
  hash.add(rope.scaling);
  hash.add(rope.factor);
  hash.add(rope.low_freq_factor);
  hash.add(rope.high_freq_factor);
  hash.add(rope.original_max_position_embeddings);
  hash.add(rope.beta_fast);
  hash.add(rope.beta_slow);
  hash.add(rope.attention_factor);
  hash.add(rope.short_factor);
  hash.add(rope.long_factor);
}

// Every field but the ids of special tokens.
void add_config(Hash& hash, const ModelConfig& c) {
  hash.add(c.architecture);
  hash.add(std::string_view(c.model_type));
  for (const int64_t size :
       {c.vocab_size, c.hidden_size, c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads,
        c.head_dim, c.rotary_dim, c.max_position_embeddings, c.sliding_window, c.num_experts,
        c.num_experts_per_token, c.moe_intermediate_size}) {
    hash.add(size);
  }
  for (const double number : {c.rms_norm_eps, c.embedding_scale, c.attention_scale,
                              c.attention_softcap, c.final_logit_softcap}) {
    hash.add(number);
  }
  hash.add(c.hidden_act);
  for (const bool flag : {c.tie_word_embeddings, c.qkv_bias, c.o_bias, c.mlp_bias, c.qk_norm,
                          c.norm_plus_one, c.sandwich_norms, c.norm_topk_prob}) {
    hash.add(flag);
  }
  add_rope(hash, c.rope);
  add_rope(hash, c.rope_local);
  hash.add(c.layer_is_sliding);
  hash.add(c.layer_is_moe);
}

}  // namespace

std::string model_fingerprint(const Checkpoint& checkpoint) {
  Hash hash;
  hash.add(std::string_view("lathe model 1"));
  add_config(hash, checkpoint.config());
  if (checkpoint.is_gguf()) {
    const GgufFile file(checkpoint.path());
    for (const GgufTensor& tensor : file.tensors()) {
      hash.add(std::string_view(tensor.name));
      hash.add(tensor.type->type);
      hash.sample({tensor.data, static_cast<std::size_t>(tensor.num_bytes)});
    }
    return hash.hex();
  }
  const SafetensorsSet files(checkpoint.path());
  for (const auto& [name, view] : files.tensors()) {
    hash.add(std::string_view(name));
    hash.add(view.dtype);
    hash.sample({view.data, static_cast<std::size_t>(view.num_bytes())});
  }
  // How stored codes are read: groups, scales, rotations.
  hash.add(std::string_view(checkpoint.auxiliary_file("config.json").value_or("")));
  return hash.hex();
}

}  // namespace lathe
