#include "formats/convert_gguf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/expect_error.h"
#include "formats/hf_config_writer.h"
#include "formats/safetensors.h"
#include "formats/temporary_directory.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

constexpr const char* kSmall[] = {"llama", "qwen2", "gemma3", "phi3", "qwen3moe", "mixtral"};

std::string small(const std::string& name) { return golden_path("formats/small_gguf/" + name); }

// The directory has the names, shapes and numbers that transformers wrote for the same model.
TEST(ConvertGguf, GivesTheOriginalCheckpoint) {
  for (const char* name : kSmall) {
    SCOPED_TRACE(name);
    const GgufCheckpoint gguf(small(name) + ".gguf");
    TemporaryDirectory directory;
    const std::string out = directory.path() + "/new/model";
    int64_t last_done = 0, last_total = 0;
    ConvertOptions options;
    options.tokenizer_json = "{\"a\":1}";
    options.on_progress = [&](int64_t done, int64_t total) {
      EXPECT_GT(done, last_done);
      last_done = done;
      last_total = total;
    };
    convert_gguf_to_hf(gguf, out, options);
    EXPECT_EQ(last_done, last_total);

    const SafetensorsSet original(small(name));
    const SafetensorsSet converted(out);
    ASSERT_EQ(converted.tensors().size(), original.tensors().size());
    for (const auto& [tensor, view] : original.tensors()) {
      SCOPED_TRACE(tensor);
      const TensorView* written = converted.find(tensor);
      ASSERT_NE(written, nullptr);
      EXPECT_EQ(written->shape, view.shape);
      EXPECT_EQ(written->dtype, DType::kBF16);
      const Tensor expected = convert(view, DType::kBF16);
      EXPECT_EQ(std::memcmp(written->data, expected.data(),
                            static_cast<std::size_t>(expected.num_bytes())),
                0);
    }
    const auto checkpoint = Checkpoint::open(out);
    ModelConfig expected = gguf.config();
    ModelConfig actual = checkpoint->config();
    expected.embedding_scale = actual.embedding_scale = 1;  // rounded to bf16 in one of them
    EXPECT_TRUE(actual == expected);
    EXPECT_EQ(checkpoint->auxiliary_file("tokenizer.json"), options.tokenizer_json);
    const Json config = parse_json(*checkpoint->auxiliary_file("tokenizer_config.json"), "");
    EXPECT_EQ(config["bos_token"], "t1");
    EXPECT_EQ(config["eos_token"], "t2");
    EXPECT_EQ(gguf.auxiliary_file("config.json"), checkpoint->auxiliary_file("config.json"));
  }
}

TEST(ConvertGguf, IsNoModelBeforeItIsFinished) {
  const GgufCheckpoint gguf(small("llama") + ".gguf");
  TemporaryDirectory directory;
  ConvertOptions options;
  options.on_progress = [](int64_t done, int64_t total) {
    if (done > total / 2) fail(ErrorCode::kCanceled, "stop");
  };
  expect_error(ErrorCode::kCanceled, "stop",
               [&] { convert_gguf_to_hf(gguf, directory.path(), options); });
  EXPECT_FALSE(std::filesystem::exists(directory.path() + "/config.json"));
  expect_error(ErrorCode::kNotFound, "config.json", [&] { Checkpoint::open(directory.path()); });

  convert_gguf_to_hf(gguf, directory.path(), {});
  EXPECT_NO_THROW(Checkpoint::open(directory.path()));
  expect_error(ErrorCode::kInvalidArgument, "already holds a model",
               [&] { convert_gguf_to_hf(gguf, directory.path(), {}); });
  expect_error(ErrorCode::kIo, "cannot create",
               [&] { convert_gguf_to_hf(gguf, directory.path() + "/config.json/x", {}); });
}

TEST(ConvertGguf, WritesShards) {
  const GgufCheckpoint gguf(small("mixtral") + ".gguf");
  TemporaryDirectory directory;
  ConvertOptions options;
  options.max_shard_bytes = 10000;
  convert_gguf_to_hf(gguf, directory.path(), options);
  EXPECT_GT(SafetensorsSet(directory.path()).file_names().size(), 2u);
  EXPECT_NO_THROW(Checkpoint::open(directory.path()));
}

TEST(HfConfigWriter, ReadsBackAsItWas) {
  for (const auto& entry : std::filesystem::directory_iterator(golden_path("formats/configs"))) {
    SCOPED_TRACE(entry.path().filename().string());
    const ModelConfig config = parse_hf_config(read_file(entry.path().string()), "config.json");
    const DType dtype = config.model_type == "gemma3_text" ? DType::kBF16 : DType::kF32;
    EXPECT_TRUE(parse_hf_config(write_hf_config(config, dtype), "written") == config);
  }
}

}  // namespace
}  // namespace lathe
