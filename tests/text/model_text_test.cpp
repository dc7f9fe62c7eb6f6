#include "text/model_text.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "support/shared_data.h"
#include "text/tokenizer_json.h"

namespace lathe {
namespace {

using Ids = std::vector<int32_t>;

const char* const kModels[] = {"smollm2", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b",
                               "gemma3-270m"};

void expect_golden_ids(const Tokenizer& tokenizer, const Json& golden) {
  ASSERT_EQ(golden["cases"].size(), golden["num_cases"].get<size_t>());
  for (const Json& item : golden["cases"]) {
    SCOPED_TRACE(golden["model"].get<std::string>() + ": " + item["id"].get<std::string>());
    const auto text = item["text"].get<std::string>();
    const auto special = item["hf"]["special"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text, false), item["hf"]["plain"].get<Ids>());
    EXPECT_EQ(tokenizer.encode(text, true), special);
    EXPECT_EQ(tokenizer.decode(special, false), item["hf"]["detok"].get<std::string>());
    std::string bytes;
    for (const int32_t id : special) bytes += tokenizer.token_bytes(id);
    EXPECT_EQ(bytes, item["hf"]["detok"].get<std::string>());
  }
}

// Every string of the reference data, for the vocabulary in the GGUF file and for the
// tokenizer.json that lathe writes from it.
TEST(ModelText, GgufTokenizersAgreeWithHuggingFace) {
  int found = 0;
  for (const char* model : kModels) {
    const auto path = model_path(model);
    const auto golden_file = shared_path("golden/tokenizer/" + std::string(model) + ".json");
    if (!path || !golden_file) continue;
    ++found;
    const Json golden = read_json_file(*golden_file);
    expect_golden_ids(load_tokenizer(*path), golden);
    const TokenizerSpec spec = spec_from_gguf(read_gguf_vocabulary(GgufFile(*path)));
    expect_golden_ids(Tokenizer(parse_tokenizer_json(write_tokenizer_json(spec))), golden);
  }
  if (found == 0) GTEST_SKIP() << "models and reference data are not on this machine";
}

TEST(ModelText, RenderedConversationsHaveTheReferenceIds) {
  int found = 0;
  for (const char* model : kModels) {
    const auto path = model_path(model);
    const auto golden_file = shared_path("golden/chat/" + std::string(model) + ".json");
    if (!path || !golden_file) continue;
    ++found;
    const Json golden = read_json_file(*golden_file);
    const Tokenizer tokenizer = load_tokenizer(*path);
    for (const Json& item : golden["cases"]) {
      const Json& rendered = item["rendered_with_generation_prompt"];
      if (!rendered.contains("text")) continue;
      EXPECT_EQ(tokenizer.encode(rendered["text"].get<std::string>(), true),
                rendered["ids"].get<Ids>())
          << model << ": " << item["id"];
    }
  }
  if (found == 0) GTEST_SKIP() << "models and reference data are not on this machine";
}

TEST(ModelText, GgufFilesKnowTheirTemplateAndEnds) {
  const auto path = model_path("qwen2.5-coder-0.5b");
  LATHE_SKIP_WITHOUT(path, "qwen2.5-coder-0.5b.gguf");
  const auto checkpoint = Checkpoint::open(*path);
  const Tokenizer tokenizer = load_tokenizer(*checkpoint);
  EXPECT_EQ(tokenizer.eos_id(), 151645);
  EXPECT_EQ(tokenizer.vocab_size(), 151936);
  EXPECT_FALSE(tokenizer.add_bos());
  const Ids ends(tokenizer.end_ids().begin(), tokenizer.end_ids().end());
  EXPECT_EQ(ends, (Ids{151645, 151643}));
  const auto chat = load_chat_template(*checkpoint, tokenizer);
  ASSERT_TRUE(chat.has_value());
  EXPECT_TRUE(chat->supports_tools());
}

class ModelDirectory : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "model_text_test";
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  void TearDown() override { std::filesystem::remove_all(path_); }
  void write(const std::string& name, const std::string& content) {
    write_file_atomically(path_ + "/" + name, content);
  }
  std::string path_;
};

TEST_F(ModelDirectory, TokenizerComesFromItsFiles) {
  try {
    load_tokenizer(path_);
    ADD_FAILURE() << "no tokenizer.json";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
  }
  write("tokenizer.json", read_file(golden_path("text/qwen2.tokenizer.json")));
  write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "<|end|>"})");
  write("generation_config.json", R"({"eos_token_id": [0, 1]})");
  const Tokenizer tokenizer = load_tokenizer(path_);
  EXPECT_EQ(tokenizer.bos_id(), tokenizer.find_token("<s>"));
  EXPECT_EQ(tokenizer.eos_id(), tokenizer.find_token("<|end|>"));
  const Ids ends(tokenizer.end_ids().begin(), tokenizer.end_ids().end());
  EXPECT_EQ(ends, (Ids{*tokenizer.eos_id(), 0, 1}));

  write("tokenizer.json", "{");
  try {
    load_tokenizer(path_);
    ADD_FAILURE() << "accepted half a file";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorruptData);
    EXPECT_NE(std::string(error.what()).find(path_), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace lathe
