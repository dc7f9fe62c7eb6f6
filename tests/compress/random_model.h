// A seeded random model on disk, of any architecture that a config.json describes, and ways to run
// it; for tests of calibration.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/rng.h"
#include "cache/kv_cache.h"
#include "formats/checkpoint.h"
#include "formats/model_tensors.h"
#include "formats/safetensors_writer.h"
#include "formats/temporary_directory.h"
#include "model/model.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {

// Two small architectures: Llama with biases (Qwen2), and a mixture of experts (Qwen3-MoE).
inline constexpr const char* kQwen2Config = R"({"architectures": ["Qwen2ForCausalLM"],
  "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101, "rms_norm_eps": 1e-6,
  "max_position_embeddings": 256, "hidden_act": "silu", "rope_theta": 10000.0,
  "tie_word_embeddings": true, "torch_dtype": "float32"})";
inline constexpr const char* kQwen3MoeConfig = R"({"architectures": ["Qwen3MoeForCausalLM"],
  "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 101,
  "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "hidden_act": "silu",
  "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float32",
  "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
  "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": []})";
inline constexpr const char* kGemma3Config = R"({"architectures": ["Gemma3ForCausalLM"],
  "model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
  "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 101,
  "rms_norm_eps": 1e-6, "max_position_embeddings": 256,
  "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 1000000.0,
  "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 32, "sliding_window": 16,
  "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": true,
  "torch_dtype": "float32"})";

using RandomTensors = std::vector<std::pair<std::string, Tensor>>;

// Weights that keep the hidden state of order one, gains that vary, a few strong channels.
inline RandomTensors random_tensors(const std::string& config_json, uint64_t seed,
                                    double key_bias_stddev = 0.1) {
  const ModelConfig config = parse_hf_config(config_json, "test config");
  const ModelTensors tensors = model_tensors(config);
  RandomTensors all;
  const auto add = [&](const std::string& name, const Shape& shape, double stddev, double mean) {
    Tensor tensor(DType::kF32, shape);
    auto values = normal_values(tensor.num_elements(), seed++, stddev);
    for (std::size_t i = 0; i < values.size(); ++i) {
      tensor.as<float>()[i] = values[i] + static_cast<float>(mean);
    }
    all.emplace_back(name, std::move(tensor));
  };
  for (const LinearModule& linear : tensors.linears) {
    add(linear.name + ".weight", {linear.rows, linear.cols},
        1 / std::sqrt(static_cast<double>(linear.cols)), 0);
    const bool is_key = linear.name.ends_with("k_proj");
    if (linear.has_bias) {
      add(linear.name + ".bias", {linear.rows}, is_key ? key_bias_stddev : 0.1, 0);
    }
  }
  for (const PlainTensor& plain : tensors.plain) {
    const bool norm = plain.shape.size() == 1;
    add(plain.name, plain.shape, norm ? 0.2 : 1, norm && !config.norm_plus_one ? 1 : 0);
    if (norm) all.back().second.as<float>()[3] *= 8;  // an outlier channel
  }
  return all;
}

inline void write_model(const std::string& directory, const std::string& config_json,
                        const RandomTensors& all) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : all) specs.push_back({name, tensor.dtype(), tensor.shape()});
  SafetensorsWriter writer(directory + "/model.safetensors", specs);
  for (const auto& [name, tensor] : all) writer.write(name, tensor.view());
  writer.commit();
  write_file_atomically(directory + "/config.json", config_json);
}

inline void write_random_model(const std::string& directory, const std::string& config_json,
                               uint64_t seed, double key_bias_stddev = 0.1) {
  write_model(directory, config_json, random_tensors(config_json, seed, key_bias_stddev));
}

inline std::vector<std::vector<int32_t>> random_sequences(int64_t count, int64_t length,
                                                          int64_t vocab_size, uint64_t seed) {
  Rng rng(seed);
  std::vector<std::vector<int32_t>> sequences(static_cast<std::size_t>(count));
  for (auto& sequence : sequences) {
    for (int64_t i = 0; i < length; ++i) {
      sequence.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab_size))));
    }
  }
  return sequences;
}

// Logits of all positions, [ids.size(), vocab_size], in fp32 but for the cache.
inline std::vector<float> logits_of(const std::string& path, const std::vector<int32_t>& ids,
                                    Exec& exec, KvFormat format = KvFormat::kF32) {
  const auto checkpoint = Checkpoint::open(path);
  const auto model =
      Model::load(*checkpoint, {.dense_dtype = DType::kF32, .compute = ComputeType::kF32}, exec);
  const auto n = static_cast<int64_t>(ids.size());
  const auto cache = make_kv_cache(model->config(), format, n, n);
  KvSequence sequence = cache->new_sequence();
  EXPECT_TRUE(cache->reserve(sequence, n));
  const KvRows rows{.sequence = &sequence, .row_begin = 0, .num_rows = n};
  std::vector<int64_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<int32_t> logit_rows(ids.size());
  std::iota(logit_rows.begin(), logit_rows.end(), 0);
  std::vector<float> logits(static_cast<std::size_t>(n * model->config().vocab_size));
  model->forward(
      {.token_ids = ids, .positions = positions, .sequences = {&rows, 1}, .logit_rows = logit_rows},
      *cache, logits.data(), nullptr, exec);
  cache->release(sequence);
  return logits;
}

// Squared distance over squared norm.
inline double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double distance = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    distance += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
    norm += double{b[i]} * double{b[i]};
  }
  return distance / norm;
}

}  // namespace lathe
