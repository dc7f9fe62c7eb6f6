#include "formats/gguf_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/atomic_file.h"
#include "base/json.h"
#include "base/sha256.h"
#include "formats/expect_error.h"
#include "formats/model_tensors.h"
#include "formats/temporary_directory.h"
#include "support/shared_data.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

std::string small(const std::string& name) { return golden_path("formats/small_gguf/" + name); }

// Bit for bit the tensors of the Hugging Face directory that the file was made from.
TEST(GgufCheckpoint, UndoesTheWritersConversions) {
  for (const char* name : {"llama", "qwen2", "gemma3", "phi3", "qwen3moe", "mixtral"}) {
    SCOPED_TRACE(name);
    const auto gguf = Checkpoint::open(small(name) + ".gguf");
    const auto hf = Checkpoint::open(small(name));
    EXPECT_TRUE(gguf->is_gguf());
    EXPECT_EQ(gguf->tensor_names(), hf->tensor_names());
    for (const std::string& tensor : hf->tensor_names()) {
      SCOPED_TRACE(tensor);
      const Tensor expected = hf->load(tensor, DType::kF32);
      const Tensor actual = gguf->load(tensor, DType::kF32);
      ASSERT_EQ(actual.shape(), expected.shape());
      EXPECT_EQ(gguf->tensor_shape(tensor), expected.shape());
      EXPECT_EQ(std::memcmp(actual.data(), expected.data(),
                            static_cast<std::size_t>(expected.num_bytes())),
                0);
      for (const DType dtype : {DType::kBF16, DType::kF16}) {
        const Tensor narrow = gguf->load(tensor, dtype);
        const Tensor reference = convert(expected.view(), dtype);
        EXPECT_EQ(std::memcmp(narrow.data(), reference.data(),
                              static_cast<std::size_t>(reference.num_bytes())),
                  0);
      }
    }
    for (const LinearModule& linear : model_tensors(gguf->config()).linears) {
      const LinearWeights weights = gguf->load_linear(linear.name, DType::kBF16);
      EXPECT_EQ(weights.dense.shape(), (Shape{linear.rows, linear.cols})) << linear.name;
      EXPECT_EQ(weights.bias.empty(), !linear.has_bias) << linear.name;
    }
    EXPECT_EQ(gguf->load_linear("lm_head", DType::kF32).dense.dim(0), 24);
    gguf->release_pages();
  }
}

TEST(GgufCheckpoint, SaysWhatConfigJsonSays) {
  for (const char* name : {"llama", "qwen2", "gemma3", "phi3", "qwen3moe", "mixtral"}) {
    SCOPED_TRACE(name);
    ModelConfig gguf = Checkpoint::open(small(name) + ".gguf")->config();
    const ModelConfig hf = Checkpoint::open(small(name))->config();
    if (std::string(name) == "mixtral") {
      gguf.rope.theta = gguf.rope_local.theta = hf.rope.theta;
    }
    if (std::string(name) == "phi3") {  // the divisors' type in the file is fp32, as here
      EXPECT_EQ(gguf.rope.short_factor, hf.rope.short_factor);
      EXPECT_EQ(gguf.rope.long_factor, hf.rope.long_factor);
    }
    EXPECT_TRUE(gguf == hf);
    EXPECT_EQ(gguf.rope.scaling, hf.rope.scaling);
    EXPECT_EQ(gguf.rope.factor, hf.rope.factor);
    EXPECT_EQ(gguf.layer_is_sliding, hf.layer_is_sliding);
    EXPECT_EQ(gguf.eos_token_ids, hf.eos_token_ids);
    EXPECT_EQ(gguf.rms_norm_eps, hf.rms_norm_eps);
  }
}

TEST(GgufCheckpoint, ReadsTheRealModels) {
  const Json digests = read_json_file(golden_path("formats/gguf_digests.json"));
  for (const auto& [model, tensors] : digests.items()) {
    SCOPED_TRACE(model);
    const auto path = model_path(model);
    LATHE_SKIP_WITHOUT(path, model + ".gguf");
    const auto checkpoint = Checkpoint::open(*path);
    for (const auto& [name, expected] : tensors.items()) {
      const Tensor tensor = checkpoint->load(name, DType::kF32);
      EXPECT_EQ(tensor.shape(), expected[0].get<Shape>()) << name;
      EXPECT_EQ(sha256_hex({tensor.data(), static_cast<std::size_t>(tensor.num_bytes())}),
                expected[1].get<std::string>())
          << name;
    }
  }
}

TEST(GgufCheckpoint, KnowsTheRealModelsConfigs) {
  const auto gemma = model_path("gemma3-270m");
  LATHE_SKIP_WITHOUT(gemma, "gemma3-270m.gguf");
  const ModelConfig c = Checkpoint::open(*gemma)->config();
  EXPECT_EQ(c.architecture, Architecture::kGemma3);
  EXPECT_EQ(c.vocab_size, 262144);
  EXPECT_EQ(c.head_dim, 256);
  EXPECT_EQ(c.attention_scale, 0.0625);
  EXPECT_DOUBLE_EQ(c.embedding_scale, std::sqrt(640.0));
  EXPECT_EQ(c.rope.theta, 1e6);
  EXPECT_EQ(c.rope_local.theta, 1e4);
  EXPECT_EQ(c.sliding_window, 512);
  EXPECT_TRUE(c.layer_is_sliding[4] && !c.layer_is_sliding[5] && !c.layer_is_sliding[17]);
  EXPECT_TRUE(c.tie_word_embeddings);
  EXPECT_EQ(c.bos_token_id, 2);
  EXPECT_EQ(c.eos_token_ids, (std::vector<int64_t>{1, 106}));

  const auto smollm = model_path("smollm2");
  LATHE_SKIP_WITHOUT(smollm, "smollm2.gguf");
  const ModelConfig s = Checkpoint::open(*smollm)->config();
  EXPECT_EQ(s.rope.theta, 100000);
  EXPECT_EQ(s.rms_norm_eps, 1e-5);
  EXPECT_EQ(s.num_kv_heads, 3);
  EXPECT_EQ(s.eos_token_ids, (std::vector<int64_t>{2, 0}));
}

// The small Llama file with one thing changed in its bytes.
TEST(GgufCheckpoint, RefusesWhatTheMetadataDoNotDescribe) {
  const std::string good = read_file(small("llama") + ".gguf");
  TemporaryDirectory directory;
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string bytes = good;
    const std::size_t at = bytes.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    EXPECT_EQ(from.size(), to.size());
    bytes.replace(at, from.size(), to);
    return directory.write("x.gguf", bytes);
  };
  // A number behind its key: type u32 = 4, then four bytes.
  const auto number = [&](const std::string& key, uint32_t value) {
    std::string bytes = good;
    const std::size_t at = bytes.find(key);
    EXPECT_NE(at, std::string::npos) << key;
    std::memcpy(bytes.data() + at + key.size() + 4, &value, 4);
    return directory.write("x.gguf", bytes);
  };
  const auto expect = [&](ErrorCode code, const char* message, const std::string& path) {
    SCOPED_TRACE(message);
    expect_error(code, message, [&] { Checkpoint::open(path); });
  };
  expect(ErrorCode::kUnsupported, "general.architecture = 'lhama'", replaced("llama", "lhama"));
  expect(ErrorCode::kCorruptData, "rotary dimensions = 16", number("attention.head_count", 3));
  expect(ErrorCode::kCorruptData, "'llama.block_count' = 0", number("llama.block_count", 0));
  expect(ErrorCode::kNotFound, "model.layers.1.", number("llama.block_count", 2));
  expect(ErrorCode::kCorruptData, "'llama.block_count' = 100000",
         number("llama.block_count", 100000));
  expect(ErrorCode::kCorruptData, "head_count' = 0", number("attention.head_count", 0));
  expect(ErrorCode::kCorruptData, "the metadata ask for", number("feed_forward_length", 64));
  expect(ErrorCode::kCorruptData, "rope", number("llama.rope.dimension_count", 8));
  expect(ErrorCode::kCorruptData, "bos_token_id' = 24", number("tokenizer.ggml.bos_token_id", 24));
  expect(ErrorCode::kNotFound, "token_embd", replaced("token_embd.weight", "token_embb.weight"));
  expect(ErrorCode::kNotFound, "no tensor 'model.layers.0.self_attn.v_proj.weight'",
         replaced("blk.0.attn_v.weight", "blk.0.attn_w.weight"));
  expect(ErrorCode::kCorruptData, "'blk.0.attn_q.weight' is there twice",
         replaced("blk.0.attn_v.weight", "blk.0.attn_q.weight"));
}

TEST(GgufCheckpoint, RefusesWeightsThatAreNotFinite) {
  std::string bytes = read_file(small("llama") + ".gguf");
  {
    const GgufFile file(small("llama") + ".gguf");
    const GgufTensor* norm = file.find_tensor("output_norm.weight");
    ASSERT_EQ(norm->type->type, GgmlType::kF32);
    const std::size_t at = bytes.find({reinterpret_cast<const char*>(norm->data), 16});
    ASSERT_NE(at, std::string::npos);
    const float infinity = std::numeric_limits<float>::infinity();
    std::memcpy(bytes.data() + at + 8, &infinity, 4);
  }
  TemporaryDirectory directory;
  const auto checkpoint = Checkpoint::open(directory.write("x.gguf", bytes));
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    expect_error(ErrorCode::kCorruptData,
                 "x.gguf: tensor 'output_norm.weight' (model.norm.weight): element 2 of [",
                 [&] { checkpoint->load("model.norm.weight", dtype); });
  }
  EXPECT_FALSE(checkpoint->load("model.embed_tokens.weight", DType::kF32).empty());
}

}  // namespace
}  // namespace lathe
