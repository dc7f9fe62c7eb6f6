#include "formats/tiny_compressed_model.h"

#include <vector>

#include "formats/compressed_tensors_writer.h"
#include "formats/random_matrix.h"

namespace lathe {
namespace {

constexpr int64_t kHidden = 64;
constexpr int64_t kIntermediate = 128;
constexpr int64_t kKv = 32;
constexpr int64_t kVocab = 96;
constexpr int64_t kNumLayers = 2;

constexpr const char* kConfig = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
  "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96, "max_position_embeddings": 128,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": false,
  "mlp_bias": false, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
  "torch_dtype": "float32"})";

Tensor random_dense(const Shape& shape, uint32_t seed, float mean) {
  std::mt19937 random(seed);
  Tensor tensor(DType::kBF16, shape);
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    const float noise = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    tensor.as<uint16_t>()[i] = bf16_from_float(mean + 0.1f * noise);
  }
  return tensor;
}

}  // namespace

int64_t tiny_hadamard(int64_t hadamard, int64_t cols) {
  return hadamard != 0 && cols % hadamard != 0 ? hadamard / 2 : hadamard;
}

TinyCompressedModel write_tiny_compressed_model(const std::string& directory,
                                                const std::string& format,
                                                ActivationFormat activations, int64_t hadamard) {
  TinyCompressedModel model;
  model.scheme.activations = activations;
  if (activations == ActivationFormat::kNvfp4) model.scheme.input_global_scale = 300;

  CompressedTensorsWriter writer({.directory = directory,
                                  .num_parts = kNumLayers + 1,
                                  .settings = format,
                                  .config_json = kConfig,
                                  .auxiliary_files = {}});
  struct Layer {
    const char* name;
    int64_t rows, cols;
  };
  const Layer layers[] = {
      {"self_attn.q_proj", kHidden, kHidden},    {"self_attn.k_proj", kKv, kHidden},
      {"self_attn.v_proj", kKv, kHidden},        {"self_attn.o_proj", kHidden, kHidden},
      {"mlp.gate_proj", kIntermediate, kHidden}, {"mlp.up_proj", kIntermediate, kHidden},
      {"mlp.down_proj", kHidden, kIntermediate}};
  uint32_t seed = 1;
  for (int64_t layer = 0; layer < kNumLayers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    std::vector<QuantizedLinear> linears;
    for (const Layer& shape : layers) {
      const std::string module = prefix + shape.name;
      const auto [entry, is_new] = model.linears.emplace(
          module, random_matrix(weight_format_from_name(format), shape.rows, shape.cols, seed++));
      LinearScheme scheme = model.scheme;
      scheme.hadamard = tiny_hadamard(hadamard, shape.cols);
      linears.push_back({module, &entry->second, scheme});
    }
    const Tensor norms[] = {random_dense({kHidden}, seed++, 1), random_dense({kHidden}, seed++, 1)};
    const NamedTensor dense[] = {{prefix + "input_layernorm.weight", norms[0].view()},
                                 {prefix + "post_attention_layernorm.weight", norms[1].view()}};
    writer.write_part(layer, linears, dense, "");
  }
  const Tensor embedding = random_dense({kVocab, kHidden}, seed++, 0);
  const Tensor output = random_dense({kVocab, kHidden}, seed++, 0);
  const Tensor norm = random_dense({kHidden}, seed++, 1);
  const NamedTensor dense[] = {{"model.embed_tokens.weight", embedding.view()},
                               {"lm_head.weight", output.view()},
                               {"model.norm.weight", norm.view()}};
  writer.write_part(kNumLayers, {}, dense, "");
  writer.finish(Manifest{});
  return model;
}

}  // namespace lathe
