#include <gtest/gtest.h>

#include <cmath>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/expect_error.h"
#include "formats/model_config.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

constexpr const char* kTiny[] = {"gemma3-sliding-global",
                                 "llama-rope-llama3",
                                 "mistral-sliding-window",
                                 "mixtral",
                                 "phi3",
                                 "phi3-partial-longrope",
                                 "qwen2-tied-mqa",
                                 "qwen3-moe",
                                 "qwen3-sharded"};

Json golden_json(const std::string& name, int transformers) {
  return read_json_file(golden_path("formats/configs/" + name + ".transformers" +
                                    std::to_string(transformers) + ".json"));
}
ModelConfig parse(const Json& json) { return parse_hf_config(dump_json(json), "config.json"); }
ModelConfig golden(const std::string& name) { return parse(golden_json(name, 5)); }

TEST(HfConfig, BothSpellingsSayTheSame) {
  for (const char* name : kTiny) {
    SCOPED_TRACE(name);
    EXPECT_TRUE(parse(golden_json(name, 4)) == parse(golden_json(name, 5)));
  }
}

TEST(HfConfig, Llama) {
  const ModelConfig c = golden("llama-rope-llama3");
  EXPECT_EQ(c.architecture, Architecture::kLlama);
  EXPECT_EQ(c.vocab_size, 256);
  EXPECT_EQ(c.hidden_size, 64);
  EXPECT_EQ(c.intermediate_size, 112);
  EXPECT_EQ(c.num_layers, 3);
  EXPECT_EQ(c.num_heads, 4);
  EXPECT_EQ(c.num_kv_heads, 2);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.rotary_dim, 16);
  EXPECT_EQ(c.max_position_embeddings, 256);
  EXPECT_EQ(c.rms_norm_eps, 1e-5);
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_FALSE(c.qkv_bias || c.o_bias || c.mlp_bias || c.qk_norm || c.norm_plus_one);
  EXPECT_EQ(c.attention_scale, 0.25);
  EXPECT_EQ(c.embedding_scale, 1);
  EXPECT_EQ(c.rope.scaling, RopeConfig::Scaling::kLlama3);
  EXPECT_EQ(c.rope.theta, 10000);
  EXPECT_EQ(c.rope.factor, 8);
  EXPECT_EQ(c.rope.low_freq_factor, 1);
  EXPECT_EQ(c.rope.high_freq_factor, 4);
  EXPECT_EQ(c.rope.original_max_position_embeddings, 32);
  EXPECT_TRUE(c.rope_local == c.rope);
  EXPECT_EQ(c.sliding_window, 0);
  EXPECT_EQ(c.layer_is_sliding, std::vector<bool>(3, false));
  EXPECT_EQ(c.bos_token_id, 1);
  EXPECT_EQ(c.eos_token_ids, std::vector<int64_t>{2});
}

TEST(HfConfig, Gemma3) {
  const ModelConfig c = golden("gemma3-sliding-global");
  EXPECT_EQ(c.architecture, Architecture::kGemma3);
  EXPECT_TRUE(c.norm_plus_one && c.sandwich_norms && c.qk_norm && c.tie_word_embeddings);
  EXPECT_EQ(c.hidden_act, Activation::kGeluTanh);
  EXPECT_EQ(c.embedding_scale, 8);
  EXPECT_DOUBLE_EQ(c.attention_scale, 1 / std::sqrt(24.0));
  EXPECT_EQ(c.rope.theta, 1e6);
  EXPECT_EQ(c.rope_local.theta, 1e4);
  EXPECT_EQ(c.sliding_window, 8);
  EXPECT_EQ(c.layer_is_sliding, (std::vector<bool>{true, true, false, true}));

  Json json = golden_json("gemma3-sliding-global", 5);
  json["hidden_size"] = 640;
  EXPECT_EQ(parse(json).embedding_scale, 25.25);  // sqrt(640) = 25.298 in bf16
  json["dtype"] = "float32";
  EXPECT_DOUBLE_EQ(parse(json).embedding_scale, std::sqrt(640.0));
}

TEST(HfConfig, Gemma3WithVision) {
  // As published for the 4B model: only what differs from the class's defaults.
  const ModelConfig c = parse_hf_config(R"({
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "eos_token_id": [1, 106], "torch_dtype": "bfloat16", "image_token_index": 262144,
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
      "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
      "sliding_window": 1024},
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"}})",
                                        "config.json");
  EXPECT_EQ(c.model_type, "gemma3_text");
  EXPECT_EQ(c.vocab_size, 262208);
  EXPECT_EQ(c.num_heads, 8);
  EXPECT_EQ(c.num_kv_heads, 4);
  EXPECT_EQ(c.head_dim, 256);
  EXPECT_TRUE(c.tie_word_embeddings);
  EXPECT_EQ(c.rope.scaling, RopeConfig::Scaling::kLinear);
  EXPECT_EQ(c.rope.factor, 8);
  EXPECT_EQ(c.rope.theta, 1e6);
  EXPECT_EQ(c.rope_local.scaling, RopeConfig::Scaling::kNone);
  EXPECT_EQ(c.rope_local.theta, 1e4);
  EXPECT_EQ(c.layer_is_sliding[4], true);
  EXPECT_EQ(c.layer_is_sliding[5], false);
  EXPECT_EQ(c.eos_token_ids, (std::vector<int64_t>{1, 106}));
  EXPECT_EQ(c.embedding_scale, 50.5);  // sqrt(2560) = 50.596 in bf16
}

TEST(HfConfig, Phi3) {
  const ModelConfig c = golden("phi3-partial-longrope");
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.rotary_dim, 12);
  EXPECT_EQ(c.rope.scaling, RopeConfig::Scaling::kLongRope);
  EXPECT_EQ(c.rope.original_max_position_embeddings, 32);
  EXPECT_EQ(c.rope.factor, 8);  // 256 / 32
  EXPECT_EQ(c.rope.long_factor, (std::vector<double>{1, 1.4, 2.1, 3.5, 6, 8}));
  EXPECT_EQ(c.rope.short_factor.back(), 2);
  EXPECT_TRUE(c.tie_word_embeddings);
  EXPECT_EQ(golden("phi3").rotary_dim, 16);
  EXPECT_EQ(golden("phi3").rope.scaling, RopeConfig::Scaling::kNone);

  Json json = golden_json("phi3-partial-longrope", 4);
  json["rope_scaling"]["type"] = "su";  // the first releases' name
  EXPECT_TRUE(parse(json) == c);
  json["rope_scaling"]["long_factor"].push_back(9.0);
  expect_error(ErrorCode::kCorruptData, "12 rotated dimensions need 6", [&] { parse(json); });
}

TEST(HfConfig, MistralSlidesEverywhere) {
  const ModelConfig c = golden("mistral-sliding-window");
  EXPECT_EQ(c.sliding_window, 8);
  EXPECT_EQ(c.layer_is_sliding, std::vector<bool>(3, true));
  EXPECT_EQ(c.q_size(), 128);
  Json json = golden_json("mistral-sliding-window", 4);
  json["sliding_window"] = nullptr;
  EXPECT_EQ(parse(json).layer_is_sliding, std::vector<bool>(3, false));
}

TEST(HfConfig, Qwen2SlidesFromMaxWindowLayersOn) {
  Json json = golden_json("qwen2-tied-mqa", 4);
  ModelConfig c = parse(json);
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.o_bias);
  EXPECT_TRUE(c.eos_token_ids.empty());
  EXPECT_EQ(c.bos_token_id, -1);
  json.erase("layer_types");
  json["sliding_window"] = 16;
  json["max_window_layers"] = 1;
  EXPECT_EQ(parse(json).sliding_window, 0);  // the switch is off
  json["use_sliding_window"] = true;
  c = parse(json);
  EXPECT_EQ(c.sliding_window, 16);
  EXPECT_EQ(c.layer_is_sliding, (std::vector<bool>{false, true, true}));
}

TEST(HfConfig, Qwen3) {
  const ModelConfig c = golden("qwen3-sharded");
  EXPECT_TRUE(c.qk_norm);
  EXPECT_FALSE(c.qkv_bias);
  EXPECT_EQ(c.head_dim, 24);
  Json json = golden_json("qwen3-sharded", 5);
  json["attention_bias"] = true;
  EXPECT_TRUE(parse(json).qkv_bias && parse(json).o_bias);
}

TEST(HfConfig, Experts) {
  ModelConfig c = golden("qwen3-moe");
  EXPECT_EQ(c.num_experts, 6);
  EXPECT_EQ(c.num_experts_per_token, 2);
  EXPECT_EQ(c.moe_intermediate_size, 32);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_EQ(c.layer_is_moe, std::vector<bool>(3, true));
  Json json = golden_json("qwen3-moe", 4);
  json["decoder_sparse_step"] = 2;
  EXPECT_EQ(parse(json).layer_is_moe, (std::vector<bool>{false, true, false}));
  json["decoder_sparse_step"] = 1;
  json["mlp_only_layers"] = {0, 2};
  json.erase("norm_topk_prob");
  c = parse(json);
  EXPECT_EQ(c.layer_is_moe, (std::vector<bool>{false, true, false}));
  EXPECT_FALSE(c.norm_topk_prob);
  json["num_experts"] = 4;
  EXPECT_EQ(parse(json).num_experts, 4);

  c = golden("mixtral");
  EXPECT_EQ(c.num_experts, 4);
  EXPECT_EQ(c.moe_intermediate_size, 64);
  EXPECT_EQ(c.head_dim, 12);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_EQ(c.rope.theta, 1e6);
  EXPECT_EQ(c.layer_is_moe, std::vector<bool>(2, true));
}

TEST(HfConfig, RopeScalings) {
  Json json = golden_json("qwen2-tied-mqa", 4);
  json["rope_scaling"] = {
      {"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32}};
  ModelConfig c = parse(json);
  EXPECT_EQ(c.rope.scaling, RopeConfig::Scaling::kYarn);
  EXPECT_EQ(c.rope.factor, 4);
  EXPECT_EQ(c.rope.original_max_position_embeddings, 32);
  EXPECT_EQ(c.rope.beta_fast, 32);
  EXPECT_EQ(c.rope.attention_factor, 0);
  json["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", 2}};
  c = parse(json);
  EXPECT_EQ(c.rope.scaling, RopeConfig::Scaling::kDynamic);
  EXPECT_EQ(c.rope.original_max_position_embeddings, 128);
  json["rope_scaling"] = {{"rope_type", "mrope"}};
  expect_error(ErrorCode::kUnsupported, "rope_type = \"mrope\"", [&] { parse(json); });
}

TEST(HfConfig, RefusesImpossibleValues) {
  const struct {
    const char* key;
    Json value;  // discarded: the key is removed
    const char* message;
    ErrorCode code = ErrorCode::kCorruptData;
  } cases[] = {
      {"model_type", Json::value_t::discarded, "model_type is missing"},
      {"model_type", "gpt2", "model_type = \"gpt2\": lathe runs llama", ErrorCode::kUnsupported},
      {"hidden_size", Json::value_t::discarded, "hidden_size is missing"},
      {"hidden_size", 0, "hidden_size = 0"},
      {"hidden_size", -64, "hidden_size = -64"},
      {"hidden_size", 64.5, "hidden_size = 64.5"},
      {"hidden_size", "64", "hidden_size = \"64\""},
      {"hidden_size", 1e300, "hidden_size = 1e+300"},
      {"hidden_size", 18446744073709551615u, "hidden_size = 18446744073709551615"},
      {"hidden_size", int64_t{1} << 30, "hidden_size = 1073741824"},
      {"vocab_size", 0, "vocab_size = 0"},
      {"vocab_size", int64_t{1} << 40, "vocab_size = 1099511627776"},
      {"num_hidden_layers", 1000000, "num_hidden_layers = 1000000"},
      {"num_attention_heads", 3, "num_attention_heads = 3 is not a multiple"},
      {"num_key_value_heads", 3, "num_attention_heads = 4 is not a multiple of num_key_value"},
      {"head_dim", 15, "head_dim = 15 is odd"},
      {"head_dim", 1 << 20, "head_dim = 1048576"},
      {"max_position_embeddings", 0, "max_position_embeddings = 0"},
      {"rms_norm_eps", 0, "rms_norm_eps = 0"},
      {"rms_norm_eps", -1e-5, "rms_norm_eps = -"},
      {"hidden_act", "relu", "hidden_act = \"relu\"", ErrorCode::kUnsupported},
      {"attention_bias", 1, "attention_bias = 1: must be true or false"},
      {"eos_token_id", 256, "eos_token_id = 256"},
      {"eos_token_id", "x", "eos_token_id = \"x\""},
      {"bos_token_id", 100000, "bos_token_id = 100000"},
      {"rope_parameters", 5, "rope_parameters = 5: must be an object"},
      {"rope_parameters", Json{{"rope_type", "llama3"}, {"rope_theta", 0}}, "rope_theta = 0"},
      {"rope_parameters", Json{{"rope_type", "llama3"}, {"factor", 8}},
       "low_freq_factor is missing"},
      {"rope_parameters", Json{{"rope_type", "linear"}}, "factor is missing"},
      {"partial_rotary_factor", 0.5, "partial_rotary_factor = 0.5", ErrorCode::kUnsupported},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(std::string(c.key) + " " + c.message);
    Json json = golden_json("llama-rope-llama3", 5);
    if (c.value.is_discarded()) {
      json.erase(c.key);
    } else {
      json[c.key] = c.value;
    }
    expect_error(c.code, c.message, [&] { parse(json); });
    expect_error(c.code, "config.json", [&] { parse(json); });
  }
  for (const char* text : {"", "[]", "5", "{", "{\"model_type\": null}"}) {
    SCOPED_TRACE(text);
    expect_error(ErrorCode::kCorruptData, "config.json",
                 [&] { parse_hf_config(text, "config.json"); });
  }
  Json experts = golden_json("mixtral", 5);
  experts["num_hidden_layers"] = 4000;
  experts["num_local_experts"] = 4000;
  expect_error(ErrorCode::kCorruptData, "num_experts = 4000 in 4000 layers",
               [&] { parse(experts); });
  Json gemma = golden_json("gemma3-sliding-global", 5);
  gemma["layer_types"].erase(0);
  expect_error(ErrorCode::kCorruptData, "has 3 entries for 4 layers", [&] { parse(gemma); });
  gemma = golden_json("gemma3-sliding-global", 5);
  gemma["sliding_window"] = nullptr;
  expect_error(ErrorCode::kCorruptData, "no sliding_window", [&] { parse(gemma); });
  gemma["use_bidirectional_attention"] = true;
  expect_error(ErrorCode::kUnsupported, "use_bidirectional_attention", [&] { parse(gemma); });
}

}  // namespace
}  // namespace lathe
