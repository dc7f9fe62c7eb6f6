// The names of what quantize_model() writes, by family.
#include "compress/stored_layer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "compress/quantize_model.h"
#include "compress/random_model.h"
#include "formats/hf_names.h"
#include "formats/safetensors.h"
#include "quant/hadamard.h"

namespace lathe {
namespace {

constexpr const char* kPhi3Config = R"({"architectures": ["Phi3ForCausalLM"],
  "model_type": "phi3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101, "rms_norm_eps": 1e-5,
  "max_position_embeddings": 256, "original_max_position_embeddings": 256, "hidden_act": "silu",
  "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float32"})";
constexpr const char* kMixtralConfig = R"({"architectures": ["MixtralForCausalLM"],
  "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101, "rms_norm_eps": 1e-5,
  "max_position_embeddings": 256, "hidden_act": "silu", "rope_theta": 10000.0,
  "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": false,
  "torch_dtype": "float32"})";

class StoredLayer : public testing::Test {
 protected:
  QuantizeResult quantize(const std::string& from, const char* format, QuantizeMethod method,
                          ActivationFormat activations, const std::string& out,
                          bool dense = false) {
    const auto checkpoint = Checkpoint::open(from);
    QuantizeJob job;
    job.source = checkpoint.get();
    job.out = out;
    job.options = recommended_options(weight_format_from_name(format), method, activations);
    job.options.samples = 8;
    job.options.seq_len = 32;
    job.options.min_expert_tokens = 1;
    if (job.options.needs_calibration()) job.sequences = random_sequences(8, 32, 101, 3);
    job.dense_output = dense;
    job.config_json = read_file(from + "/config.json");
    job.manifest.source = "test";
    return quantize_model(job, {}, owned_.exec);
  }

  // The modules of a directory's stored tensors: names up to what says which tensor of the module.
  static std::set<std::string> stored_modules(const std::string& directory) {
    const SafetensorsSet files(directory);
    std::set<std::string> modules;
    for (const auto& [name, view] : files.tensors()) {
      std::string module = name.substr(0, name.rfind('.'));
      if (module.ends_with("_input")) module = module.substr(0, module.rfind('.'));  // a rotation
      modules.insert(module);
    }
    return modules;
  }

  // Every linear layer's weight, decoded and rotated back.
  static std::map<std::string, std::vector<float>> weights_of(const std::string& path) {
    const auto checkpoint = Checkpoint::open(path);
    std::map<std::string, std::vector<float>> all;
    for (int64_t layer = 0; layer < checkpoint->config().num_layers; ++layer) {
      for (const LayerLinear& linear :
           load_layer_weights(*checkpoint, layer, DType::kF32).linears) {
        std::vector<float>& w = all[linear.slot.module];
        w.resize(static_cast<std::size_t>(linear.slot.n * linear.slot.k));
        if (linear.weights.quantized) {
          dequantize_rows(*linear.weights.quantized, 0, linear.slot.n, w.data());
          hadamard_rows(w.data(), linear.slot.n, linear.slot.k, linear.weights.scheme.hadamard);
        } else {
          std::copy_n(linear.weights.dense.as<float>(), w.size(), w.begin());
        }
      }
    }
    return all;
  }

  OwnedExec owned_{2};
  TemporaryDirectory directory_;
};

// What published checkpoints of the family have, and lathe reads it back as it was chosen: each
// part of a stacked tensor near the source's weight, and the same as in the decoded output.
TEST_F(StoredLayer, HasTheNamesOfItsFamily) {
  struct Case {
    const char* name;
    const char* config;
    const char* format;
    QuantizeMethod method;
    ActivationFormat activations;
    std::set<std::string> linears;  // of layer 1, but for expert 1 to 3
  };
  const std::set<std::string> phi3 = {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj",
                                      "mlp.down_proj"};
  const std::set<std::string> mixtral = {"self_attn.q_proj",
                                         "self_attn.k_proj",
                                         "self_attn.v_proj",
                                         "self_attn.o_proj",
                                         "block_sparse_moe.gate",
                                         "block_sparse_moe.experts.0.w1",
                                         "block_sparse_moe.experts.0.w2",
                                         "block_sparse_moe.experts.0.w3"};
  const std::vector<int32_t> prompt = random_sequences(1, 40, 101, 99)[0];
  for (const Case& c :
       {Case{"phi3-nvfp4", kPhi3Config, "nvfp4", QuantizeMethod::kMrGptq, ActivationFormat::kNvfp4,
             phi3},
        Case{"phi3-int4", kPhi3Config, "int4", QuantizeMethod::kAwq, ActivationFormat::kNone, phi3},
        Case{"phi3-mxfp8", kPhi3Config, "mxfp8", QuantizeMethod::kQuaRot, ActivationFormat::kNone,
             phi3},
        Case{"mixtral", kMixtralConfig, "nvfp4", QuantizeMethod::kMrGptq, ActivationFormat::kNvfp4,
             mixtral},
        Case{"mixtral-quarot", kMixtralConfig, "mxfp4", QuantizeMethod::kQuaRot,
             ActivationFormat::kNone, mixtral}}) {
    SCOPED_TRACE(c.name);
    const std::string from = directory_ / (std::string(c.name) + "-source");
    std::filesystem::create_directories(from);
    write_random_model(from, c.config, 7);
    const std::string out = directory_ / c.name;
    quantize(from, c.format, c.method, c.activations, out);

    std::set<std::string> linears;
    for (const std::string& module : stored_modules(out)) {
      const std::string prefix = "model.layers.1.";
      if (!module.starts_with(prefix) || module.ends_with("norm")) continue;
      const std::string name = module.substr(prefix.size());
      const std::size_t expert = name.find(".experts.");
      if (expert == std::string::npos || name[expert + 9] == '0') linears.insert(name);
    }
    EXPECT_EQ(linears, c.linears);
    const Json config = parse_json(read_file(out + "/config.json"), "config.json");
    std::set<std::string> ignored;
    for (const Json& name : config["quantization_config"]["ignore"]) ignored.insert(name);
    EXPECT_TRUE(ignored.contains("lm_head"));
    EXPECT_EQ(ignored.contains("model.layers.1.block_sparse_moe.gate"), c.config == kMixtralConfig);

    EXPECT_LT(relative_distance(logits_of(out, prompt, owned_.exec),
                                logits_of(from, prompt, owned_.exec)),
              0.5);
  }
}

TEST_F(StoredLayer, StackedPartsKeepTheirOrder) {
  const std::string from = directory_ / "source";
  std::filesystem::create_directories(from);
  write_random_model(from, kPhi3Config, 7);
  for (const char* format : {"nvfp4", "mxfp4", "int4", "int8", "fp8", "mxfp8"}) {
    SCOPED_TRACE(format);
    const std::string coded = directory_ / (std::string(format) + "-coded");
    const std::string dense = directory_ / (std::string(format) + "-dense");
    quantize(from, format, QuantizeMethod::kMrGptq, ActivationFormat::kNone, coded);
    quantize(from, format, QuantizeMethod::kMrGptq, ActivationFormat::kNone, dense, true);
    EXPECT_TRUE(stored_modules(dense).contains("model.layers.1.self_attn.qkv_proj"));
    EXPECT_FALSE(stored_modules(dense).contains("model.layers.1.self_attn.q_proj"));
    const auto source = weights_of(from);
    const auto emulated = weights_of(dense);
    for (const auto& [module, weight] : weights_of(coded)) {
      EXPECT_EQ(weight, emulated.at(module)) << module;
      EXPECT_LT(relative_distance(weight, source.at(module)), 0.05) << module;
    }
  }
}

// A multimodal Gemma 3 keeps its prefix and its vision tower, whose linear layers are named as not
// quantized, for both places that engines have for them.
TEST_F(StoredLayer, KeepsTheMultimodalPrefix) {
  Json config = {{"architectures", {"Gemma3ForConditionalGeneration"}},
                 {"model_type", "gemma3"},
                 {"torch_dtype", "float32"},
                 {"vision_config", Json::object()}};
  config["text_config"] = parse_json(kGemma3Config, "text");
  for (const std::string prefix : {"language_model.model.", "model.language_model."}) {
    SCOPED_TRACE(prefix);
    const std::string vision = prefix.starts_with("model.") ? "model." : "";
    RandomTensors tensors = random_tensors(kGemma3Config, 7);
    for (auto& [name, tensor] : tensors) name = prefix + name.substr(6);
    for (int i = 0; i < 70; ++i) {
      tensors.emplace_back(str(vision, "vision_tower.layers.", i, ".fc1.weight"),
                           Tensor(DType::kF32, {2, 4}));
      std::fill_n(tensors.back().second.as<float>(), 8, static_cast<float>(i));
    }
    const std::string from = directory_ / (prefix + "source");
    const std::string out = directory_ / (prefix + "out");
    std::filesystem::create_directories(from);
    write_model(from, dump_json(config, 2), tensors);
    quantize(from, "mxfp4", QuantizeMethod::kRtn, ActivationFormat::kNone, out);
    EXPECT_EQ(stored_modules(out), stored_modules(from));
    const Json written = parse_json(read_file(out + "/config.json"), "config.json");
    std::set<std::string> ignored;
    for (const Json& name : written["quantization_config"]["ignore"]) ignored.insert(name);
    EXPECT_TRUE(ignored.contains("vision_tower.layers.69.fc1"));
    EXPECT_TRUE(ignored.contains("model.vision_tower.layers.69.fc1"));
    const std::vector<int32_t> prompt = random_sequences(1, 40, 101, 99)[0];
    EXPECT_LT(relative_distance(logits_of(out, prompt, owned_.exec),
                                logits_of(from, prompt, owned_.exec)),
              0.5);
  }
}

}  // namespace
}  // namespace lathe
