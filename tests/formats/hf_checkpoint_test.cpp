#include "formats/hf_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "base/atomic_file.h"
#include "base/json.h"
#include "base/sha256.h"
#include "formats/expect_error.h"
#include "formats/hf_names.h"
#include "formats/model_tensors.h"
#include "formats/temporary_directory.h"
#include "support/shared_data.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

TEST(HfCheckpoint, LoadsEveryTensorOfTheTinyModels) {
  const Json digests = read_json_file(golden_path("formats/tiny_digests.json"));
  for (const auto& [model, tensors] : digests.items()) {
    SCOPED_TRACE(model);
    const auto path = shared_path("golden/tiny/" + model);
    LATHE_SKIP_WITHOUT(path, "golden/tiny");
    const auto checkpoint = Checkpoint::open(*path);
    EXPECT_EQ(checkpoint->tensor_names().size(), tensors.size());
    for (const auto& [name, expected] : tensors.items()) {
      ASSERT_TRUE(checkpoint->has_tensor(name)) << name;
      const Tensor tensor = checkpoint->load(name, DType::kF32);
      EXPECT_EQ(tensor.shape(), expected[0].get<Shape>()) << name;
      EXPECT_EQ(sha256_hex({tensor.data(), static_cast<std::size_t>(tensor.num_bytes())}),
                expected[1].get<std::string>())
          << name;
    }
    // What the decoder asks for is there under the names of the config.
    for (const LinearModule& linear : model_tensors(checkpoint->config()).linears) {
      const LinearWeights weights =
          checkpoint->load_linear(linear.name, checkpoint->weight_dtype());
      EXPECT_EQ(weights.dense.shape(), (Shape{linear.rows, linear.cols})) << linear.name;
      EXPECT_EQ(!weights.bias.empty(), linear.has_bias) << linear.name;
      EXPECT_FALSE(weights.quantized.has_value());
    }
    checkpoint->release_pages();
    const LinearWeights head = checkpoint->load_linear("lm_head", DType::kF32);
    EXPECT_EQ(head.dense.dim(0), checkpoint->config().vocab_size);
    EXPECT_EQ(checkpoint->has_tensor("lm_head.weight"), !checkpoint->config().tie_word_embeddings);
  }
}

// A small Llama directory that tests can spoil.
class SmallModel : public testing::Test {
 protected:
  SmallModel() {
    config = Json{{"model_type", "llama"},      {"vocab_size", 8},
                  {"hidden_size", 4},           {"intermediate_size", 6},
                  {"num_hidden_layers", 1},     {"num_attention_heads", 2},
                  {"num_key_value_heads", 1},   {"max_position_embeddings", 16},
                  {"tie_word_embeddings", true}};
    add("model.embed_tokens.weight", {8, 4});
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
      add(std::string("model.layers.0.") + norm + ".weight", {4});
    }
    add("model.layers.0.self_attn.q_proj.weight", {4, 4});
    add("model.layers.0.self_attn.k_proj.weight", {2, 4});
    add("model.layers.0.self_attn.v_proj.weight", {2, 4});
    add("model.layers.0.self_attn.o_proj.weight", {4, 4});
    add("model.layers.0.mlp.gate_proj.weight", {6, 4});
    add("model.layers.0.mlp.up_proj.weight", {6, 4});
    add("model.layers.0.mlp.down_proj.weight", {4, 6});
    add("model.norm.weight", {4});
  }
  void add(const std::string& name, const Shape& shape, const char* dtype = "F32") {
    tensors.push_back({name, shape, dtype});
  }
  void remove(const std::string& name) {
    std::erase_if(tensors, [&](const Entry& entry) { return entry.name == name; });
  }
  // Consecutive numbers through the whole file, so that every element is different, but for the one
  // that is `special`.
  std::unique_ptr<Checkpoint> open() {
    Json header = Json::object();
    std::string data;
    float next = 0;
    int64_t place = 0;
    for (const Entry& entry : tensors) {
      const std::size_t begin = data.size();
      for (int64_t i = 0; i < num_elements(entry.shape); ++i, ++next) {
        const float value = special && special->first == place++ ? special->second : next;
        char bytes[8] = {};
        std::memcpy(bytes, &value, 4);
        if (entry.dtype == "BF16" || entry.dtype == "F16") {
          const uint16_t half =
              entry.dtype == "F16" ? f16_from_float(value) : bf16_from_float(value);
          std::memcpy(bytes, &half, 2);
        }
        data.append(bytes, static_cast<std::size_t>(dtype_size(*dtype_from_name(entry.dtype))));
      }
      header[entry.name] = {
          {"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {begin, data.size()}}};
    }
    const std::string text = dump_json(header);
    const uint64_t size = text.size();
    std::string file(8, '\0');
    std::memcpy(file.data(), &size, 8);
    directory.write("model.safetensors", file + text + data);
    directory.write("config.json", dump_json(config));
    return Checkpoint::open(directory.path());
  }
  struct Entry {
    std::string name;
    Shape shape;
    std::string dtype;
  };
  TemporaryDirectory directory;
  Json config;
  std::vector<Entry> tensors;
  std::optional<std::pair<int64_t, float>> special;
};

TEST_F(SmallModel, ReadsAuxiliaryFilesAndGenerationConfig) {
  config["eos_token_id"] = 2;
  directory.write("generation_config.json", R"({"eos_token_id": [2, 5]})");
  directory.write("tokenizer.json", "{}");
  const auto checkpoint = open();
  EXPECT_EQ(checkpoint->config().eos_token_ids, (std::vector<int64_t>{2, 5}));
  EXPECT_EQ(checkpoint->auxiliary_file("tokenizer.json"), "{}");
  EXPECT_EQ(checkpoint->auxiliary_file("chat_template.jinja"), std::nullopt);
  for (const char* name : {"", "../x", "a/b", ".."}) {
    expect_error(ErrorCode::kInvalidArgument, "plain file name",
                 [&] { checkpoint->auxiliary_file(name); });
  }
  expect_error(ErrorCode::kNotFound, "no tensor 'model.layers.1.x'",
               [&] { checkpoint->load("model.layers.1.x", DType::kF32); });
  directory.write("generation_config.json", R"({"eos_token_id": 8})");
  expect_error(ErrorCode::kCorruptData, "generation_config.json: eos_token_id = 8",
               [&] { open(); });
}

TEST_F(SmallModel, IgnoresASecondCopyOfATiedHead) {
  add("lm_head.weight", {8, 4});
  const auto checkpoint = open();
  EXPECT_FALSE(checkpoint->has_tensor("lm_head.weight"));
  EXPECT_EQ(checkpoint->load_linear("lm_head", DType::kF32).dense.as<float>()[5], 5);
}

TEST_F(SmallModel, RefusesWhatTheConfigDoesNotDescribe) {
  const auto base = tensors;
  const auto expect = [&](ErrorCode code, const char* message) {
    SCOPED_TRACE(message);
    expect_error(code, message, [&] { open(); });
    tensors = base;
  };
  remove("model.layers.0.mlp.up_proj.weight");
  expect(ErrorCode::kNotFound, "no tensor 'model.layers.0.mlp.up_proj.weight'");
  tensors[5].shape = {4, 2};
  expect(ErrorCode::kCorruptData, "v_proj.weight' has shape [4, 2], config.json asks for [2, 4]");
  tensors[0].dtype = "I32";
  expect(ErrorCode::kUnsupported, "embed_tokens.weight' is I32");
  add("model.language_model.norm.weight", {4});
  expect(ErrorCode::kCorruptData, "'model.norm.weight' is stored twice");
  add("model.layers.0.self_attn.qkv_proj.weight", {9, 4});
  expect(ErrorCode::kCorruptData, "config asks for 8 rows");
  config["tie_word_embeddings"] = false;
  expect(ErrorCode::kNotFound, "no tensor 'lm_head.weight'");
}

// Damage that the shapes do not show is found where the weight is read, and named: in every dtype,
// at the first place, behind it and at the last; biases and norms as well as matrices.
TEST_F(SmallModel, RefusesWeightsThatAreNotFinite) {
  const auto embedding = tensors[0];
  for (const char* dtype : {"F32", "BF16", "F16"}) {
    for (const int64_t place :
         {int64_t{0}, int64_t{5}, int64_t{512 * 4 + 1}, int64_t{4 * 515 - 1}}) {
      SCOPED_TRACE(testing::Message() << dtype << " " << place);
      config["vocab_size"] = 515;  // more than a run of the vectorised check, and a rest
      tensors[0] = {embedding.name, {515, 4}, dtype};
      special = {place, -std::numeric_limits<float>::infinity()};
      const auto checkpoint = open();
      for (const DType to : {DType::kF32, DType::kBF16, DType::kF16}) {
        expect_error(
            ErrorCode::kCorruptData,
            str("tensor 'model.embed_tokens.weight': element ", place, " of [515, 4] is -inf"),
            [&] { checkpoint->load("model.embed_tokens.weight", to); });
        expect_error(ErrorCode::kCorruptData, "tensor 'model.embed_tokens.weight'",
                     [&] { checkpoint->load_linear("lm_head", to); });
      }
      EXPECT_EQ(checkpoint->load("model.norm.weight", DType::kF32).dim(0), 4);
    }
  }
  tensors[0] = embedding;
  config["vocab_size"] = 8;
  special = {8 * 4 + 2 * 4 + 3, std::nanf("")};
  const auto checkpoint = open();
  expect_error(ErrorCode::kCorruptData,
               "tensor 'model.layers.0.self_attn.q_proj.weight': element 3 of [4, 4] is nan",
               [&] { checkpoint->load_linear("model.layers.0.self_attn.q_proj", DType::kF32); });
}

// Complete as it looks, a directory with a journal and no manifest was never finished.
TEST_F(SmallModel, RefusesAnUnfinishedDirectory) {
  directory.write("quantize.journal.json", "{}");
  expect_error(ErrorCode::kCorruptData, "not a whole model: the compression was interrupted",
               [&] { open(); });
  directory.write("lathe.json", "{}");
  open();
}

TEST_F(SmallModel, TakesTheMultimodalPrefixesOff) {
  for (const char* prefix : {"language_model.model.", "model.language_model."}) {
    for (Entry& entry : tensors) entry.name = prefix + entry.name.substr(entry.name.find('.') + 1);
    EXPECT_TRUE(open()->has_tensor("model.layers.0.self_attn.q_proj.weight"));
    for (Entry& entry : tensors) {
      entry.name = "model." + entry.name.substr(std::string_view(prefix).size());
    }
  }
}

TEST(HfNames, FusedExpertsComeApart) {
  ModelConfig config;
  config.num_experts = 2;
  config.moe_intermediate_size = 3;
  config.hidden_size = 4;
  std::vector<float> numbers(2 * 6 * 4);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  const auto* data = reinterpret_cast<const std::byte*>(numbers.data());
  const auto tensors = canonical_tensors(
      {{"model.layers.0.mlp.experts.gate_up_proj", {DType::kF32, {2, 6, 4}, data}},
       {"model.layers.0.mlp.experts.down_proj", {DType::kF32, {2, 4, 3}, data}}},
      config, "model");
  ASSERT_EQ(tensors.size(), 6u);
  const TensorView& up = tensors.at("model.layers.0.mlp.experts.1.up_proj.weight");
  EXPECT_EQ(up.shape, (Shape{3, 4}));
  EXPECT_EQ(up.as<float>()[0], 1 * 24 + 3 * 4);
  const TensorView& down = tensors.at("model.layers.0.mlp.experts.1.down_proj.weight");
  EXPECT_EQ(down.shape, (Shape{4, 3}));
  EXPECT_EQ(down.as<float>()[0], 12);
  expect_error(ErrorCode::kCorruptData, "the config asks for [2, 6, ...]", [&] {
    canonical_tensors({{"model.layers.0.mlp.experts.gate_up_proj", {DType::kF32, {2, 4, 6}, data}}},
                      config, "model");
  });
}

TEST(Checkpoint, NamesWhatItCannotOpen) {
  TemporaryDirectory directory;
  expect_error(ErrorCode::kNotFound, "no model at '",
               [&] { Checkpoint::open(directory.path() + "/none"); });
  expect_error(ErrorCode::kUnsupported, "neither a model directory nor a GGUF file",
               [&] { Checkpoint::open(directory.write("notes.txt", "hello")); });
  expect_error(ErrorCode::kNotFound, "config.json", [&] { Checkpoint::open(directory.path()); });
}

}  // namespace
}  // namespace lathe
