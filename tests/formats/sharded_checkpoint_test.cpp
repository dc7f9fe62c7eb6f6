// The ranks' parts of every linear layer, put together again, are the dequantized whole, bit for
// bit.
#include "formats/sharded_checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "formats/model_tensors.h"
#include "formats/random_checkpoint.h"
#include "formats/temporary_directory.h"
#include "formats/tiny_compressed_model.h"

namespace lathe {
namespace {

struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<float> values;
  std::vector<float> bias;
};

Matrix dequantized(const LinearWeights& weights) {
  Matrix matrix;
  if (weights.quantized) {
    matrix.rows = weights.quantized->rows;
    matrix.cols = weights.quantized->cols;
    matrix.values.resize(static_cast<std::size_t>(matrix.rows * matrix.cols));
    dequantize_rows(*weights.quantized, 0, matrix.rows, matrix.values.data());
  } else {
    const Tensor dense = convert(weights.dense.view(), DType::kF32);
    matrix.rows = dense.dim(0);
    matrix.cols = dense.dim(1);
    matrix.values.assign(dense.as<float>(), dense.as<float>() + dense.num_elements());
  }
  if (!weights.bias.empty()) {
    matrix.bias.assign(weights.bias.as<float>(),
                       weights.bias.as<float>() + weights.bias.num_elements());
  }
  return matrix;
}

// Columns [begin, end) beside what is there.
void append_columns(Matrix& all, const Matrix& part) {
  Matrix joined = {all.cols == 0 ? part.rows : all.rows, all.cols + part.cols, {}, all.bias};
  ASSERT_EQ(joined.rows, part.rows);
  for (int64_t row = 0; row < joined.rows; ++row) {
    for (const Matrix* from : {static_cast<const Matrix*>(&all), &part}) {
      joined.values.insert(joined.values.end(), from->values.begin() + row * from->cols,
                           from->values.begin() + (row + 1) * from->cols);
    }
  }
  all = std::move(joined);
}

// What the ranks' parts of `module` are together. replicas: ranks that follow each other with the
// same rows.
Matrix put_together(const Checkpoint& source, const std::string& module, int size, int replicas) {
  const bool by_columns = module.ends_with("o_proj") || module.ends_with("down_proj");
  Matrix all;
  for (int rank = 0; rank < size; ++rank) {
    const auto shard = sharded_checkpoint(source, {rank, size});
    const Matrix part = dequantized(shard->load_linear(module, DType::kF32));
    if (by_columns) {
      append_columns(all, part);
      if (rank == 0) {
        all.bias = part.bias;
      } else {
        EXPECT_TRUE(part.bias.empty()) << "a bias that is added once by each rank";
      }
      continue;
    }
    if (rank % replicas != 0) continue;
    all.rows += part.rows;
    all.cols = part.cols;
    all.values.insert(all.values.end(), part.values.begin(), part.values.end());
    all.bias.insert(all.bias.end(), part.bias.begin(), part.bias.end());
  }
  return all;
}

void expect_whole(const Checkpoint& source, int size) {
  const ModelConfig& config = source.config();
  const auto replicas = static_cast<int>(std::max<int64_t>(1, size / config.num_kv_heads));
  std::vector<std::string> modules = {"lm_head"};
  for (const LinearModule& linear : model_tensors(config).linears) modules.push_back(linear.name);
  for (const std::string& module : modules) {
    SCOPED_TRACE(module + " over " + std::to_string(size));
    if (module.ends_with(".mlp.gate")) continue;
    const bool is_kv = module.ends_with("k_proj") || module.ends_with("v_proj");
    const Matrix whole = dequantized(source.load_linear(module, DType::kF32));
    const Matrix parts = put_together(source, module, size, is_kv ? replicas : 1);
    EXPECT_EQ(parts.rows, whole.rows);
    EXPECT_EQ(parts.cols, whole.cols);
    EXPECT_EQ(parts.values, whole.values);
    EXPECT_EQ(parts.bias, whole.bias);
  }
}

TEST(ShardedCheckpoint, PartsOfEveryFormatAreTheWhole) {
  for (const char* format : {"mxfp4", "nvfp4", "int4", "int8", "fp8", "mxfp8"}) {
    SCOPED_TRACE(format);
    const TemporaryDirectory scratch;
    write_tiny_compressed_model(scratch / "m", format, ActivationFormat::kNone, 0);
    expect_whole(*Checkpoint::open(scratch / "m"), 2);
  }
}

// Groups of 16 allow four ranks; each of the two KV heads is then on two of them.
TEST(ShardedCheckpoint, KvHeadsAreOnSeveralRanksWhereThereAreFewer) {
  const TemporaryDirectory scratch;
  write_tiny_compressed_model(scratch / "m", "nvfp4", ActivationFormat::kNvfp4, 16);
  const auto source = Checkpoint::open(scratch / "m");
  expect_whole(*source, 4);
  const auto rows_of = [&](int rank) {
    const auto shard = sharded_checkpoint(*source, {rank, 4});
    EXPECT_EQ(shard->config().num_heads, 1);
    EXPECT_EQ(shard->config().num_kv_heads, 1);
    return dequantized(shard->load_linear("model.layers.0.self_attn.k_proj", DType::kF32)).values;
  };
  EXPECT_EQ(rows_of(0), rows_of(1));
  EXPECT_EQ(rows_of(2), rows_of(3));
  EXPECT_NE(rows_of(0), rows_of(2));
  const LinearWeights down =
      sharded_checkpoint(*source, {3, 4})->load_linear("model.layers.1.mlp.down_proj", DType::kF32);
  EXPECT_EQ(down.scheme.hadamard, 16);
  EXPECT_EQ(down.scheme.activations, ActivationFormat::kNvfp4);
  EXPECT_EQ(down.scheme.input_global_scale, 300);
}

TEST(ShardedCheckpoint, BiasesAndExpertsAreDivided) {
  const TemporaryDirectory scratch;
  for (const char* name : {"llama", "moe"}) std::filesystem::create_directory(scratch / name);
  scratch.write("llama/config.json", R"({"architectures": ["LlamaForCausalLM"],
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64, "hidden_act": "silu", "attention_bias": true, "mlp_bias": true,
    "tie_word_embeddings": false})");
  scratch.write("moe/config.json", R"({"architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 101,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "hidden_act": "silu", "num_experts": 3,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": true,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": false})");
  for (const char* name : {"llama", "moe"}) {
    SCOPED_TRACE(name);
    const auto source = open_random_checkpoint(scratch / name, {});
    expect_whole(*source, 2);
    expect_whole(*source, 4);
  }
  const auto moe = open_random_checkpoint(scratch / "moe", {});
  const LinearWeights router =
      sharded_checkpoint(*moe, {1, 2})->load_linear("model.layers.0.mlp.gate", DType::kF32);
  EXPECT_EQ(router.dense.dim(0), 3);
}

TEST(ShardedCheckpoint, VocabularyRangesFollowOneAnother) {
  for (const int64_t vocab : {32, 33, 101, 4097, 49152, 128256, 151936}) {
    for (const int size : {1, 2}) {
      int64_t end = 0;
      for (int rank = 0; rank < size; ++rank) {
        const VocabularyRange range = vocabulary_range(vocab, {rank, size});
        EXPECT_EQ(range.begin, end);
        EXPECT_EQ(range.begin % 16, 0);
        EXPECT_GT(range.size(), 0);
        end = range.end;
      }
      EXPECT_EQ(end, vocab);
    }
  }
}

// The message of the error, and its code in front.
template <typename Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return std::string(to_string(error.code())) + ": " + error.what();
  }
  return "no error";
}

TEST(ShardedCheckpoint, SizesThatCannotBeSplitAreRefused) {
  ModelConfig config;
  config.num_heads = 12;
  config.num_kv_heads = 4;
  config.head_dim = 64;
  config.intermediate_size = 96;
  config.vocab_size = 1000;
  const auto error = [](const ModelConfig& c, int size) {
    return error_of([&] { shard_config(c, size); });
  };
  EXPECT_EQ(error(config, 2), "no error");
  EXPECT_EQ(error(config, 12), "no error");  // each KV head on three ranks
  EXPECT_EQ(error(config, 3),
            "unsupported: 12 heads, 4 KV heads and an MLP of 96 cannot be split over 3 ranks; "
            "--tensor-parallel can be 1, 2, 4, 12");
  EXPECT_NE(error(config, 0), "no error");
  EXPECT_NE(error(config, -1), "no error");
  EXPECT_NE(error(config, 5), "no error");
  ModelConfig narrow = config;
  narrow.intermediate_size = 97;
  EXPECT_NE(error(narrow, 2), "no error");
  ModelConfig few_words = config;
  few_words.vocab_size = 31;
  EXPECT_NE(error(few_words, 2), "no error");
  ModelConfig experts = config;
  experts.num_experts = 2;
  experts.moe_intermediate_size = 7;
  EXPECT_NE(error(experts, 2), "no error");
}

TEST(ShardedCheckpoint, GroupsAndRotatedBlocksAreNotCut) {
  struct Case {
    const char* format;
    ActivationFormat activations;
    int64_t hadamard;
    int size;
    const char* error;  // o has 64 inputs
  };
  for (const Case& c : {
           Case{"mxfp4", ActivationFormat::kNone, 0, 4,
                "the 16 input features of each would cut a group of 32"},
           Case{"nvfp4", ActivationFormat::kNone, 0, 4, nullptr},
           Case{"nvfp4", ActivationFormat::kNone, 64, 2,
                "32 input features of each would cut a rotated block of 64"},
           Case{"mxfp4", ActivationFormat::kMxfp4, 64, 2, "a rotated block of 64"},
           Case{"fp8", ActivationFormat::kFp8, 0, 4, nullptr},
           Case{"int8", ActivationFormat::kInt8, 0, 4, "a group of 32"},
       }) {
    SCOPED_TRACE(std::string(c.format) + " over " + std::to_string(c.size));
    const TemporaryDirectory scratch;
    write_tiny_compressed_model(scratch / "m", c.format, c.activations, c.hadamard);
    const auto source = Checkpoint::open(scratch / "m");
    const std::string error = error_of([&] {
      sharded_checkpoint(*source, {1, c.size})
          ->load_linear("model.layers.0.self_attn.o_proj", DType::kBF16);
    });
    if (c.error == nullptr) {
      EXPECT_EQ(error, "no error");
    } else {
      EXPECT_NE(error.find(c.error), std::string::npos) << error;
      EXPECT_NE(error.find("self_attn.o_proj"), std::string::npos) << error;
      EXPECT_EQ(error.find("unsupported"), 0u) << error;
    }
  }
}

}  // namespace
}  // namespace lathe
