// Codes of keys that have much in common: they are kept without it (attention.h, KeyOffset).
#include <gtest/gtest.h>

#include <map>

#include "base/error.h"
#include "compress/random_model.h"
#include "model/model_runner.h"

namespace lathe {
namespace {

// What codes of its keys and values change a random model's logits by.
double cost(KvFormat format, double key_bias_stddev) {
  const TemporaryDirectory temporary;
  write_random_model(temporary.path(), kQwen2Config, 7, key_bias_stddev);
  OwnedExec owned(2);
  const auto ids = random_sequences(1, 150, 101, 4).front();
  const auto exact = logits_of(temporary.path(), ids, owned.exec);
  return relative_distance(logits_of(temporary.path(), ids, owned.exec, format), exact);
}

// Biases of a hundred times what tells keys apart, as Qwen2.5 has them: with them in the codes
// nothing of the keys would be left.
TEST(KeyOffset, BiasesOfKeysDoNotCountInTheirCodes) {
  EXPECT_EQ(cost(KvFormat::kF32, 30), 0);
  // About twice what it is (the biases make peaked weights, which codes of the values cost more
  // than they cost a model without); with the biases in the codes it is 0.40, 0.054, 0.75, 0.91.
  const std::pair<KvFormat, double> limits[] = {{KvFormat::kFp8, 0.05},
                                                {KvFormat::kInt8, 0.004},
                                                {KvFormat::kQ4, 0.2},
                                                {KvFormat::kHiggs4, 0.25}};
  for (const auto& [format, limit] : limits) {
    const double large = cost(format, 30);
    EXPECT_GT(large, 0) << kv_format_name(format);
    EXPECT_LT(large, limit) << kv_format_name(format);
  }
}

// Keys with biases of 30 that a norm follows, so that no bias is to be left out: what they have in
// common is their mean. Rotated over the whole context, and over a window with a base of its own.
constexpr const char* kNormedConfig = R"({"architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 101,
  "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "hidden_act": "silu",
  "attention_bias": true, "rope_theta": 10000.0, "tie_word_embeddings": true,
  "torch_dtype": "float32"})";

class KeyMeans : public testing::Test {
 protected:
  // Logits of 150 tokens of a model that has learnt from these texts, or from none.
  std::vector<float> logits(KvFormat format, const std::vector<std::vector<int32_t>>& texts,
                            const std::vector<std::vector<int32_t>>& later = {}) const {
    LoadedModel loaded(directory_.path());
    if (!texts.empty()) loaded.model->learn_key_means(texts, loaded.owned.exec);
    if (!later.empty()) loaded.model->learn_key_means(later, loaded.owned.exec);
    SequenceRunner runner(loaded, 160, format);
    return runner.feed(ids_).logits;
  }
  double cost(KvFormat format, const std::vector<std::vector<int32_t>>& texts) const {
    return relative_distance(logits(format, texts), logits(KvFormat::kF32, {}));
  }
  void write(const char* config, double key_bias_stddev) {
    write_random_model(directory_.path(), config, 7, key_bias_stddev);
  }

  const TemporaryDirectory directory_;
  const std::vector<int32_t> ids_ = random_sequences(1, 150, 101, 4).front();
  const std::vector<std::vector<int32_t>> texts_ = random_sequences(3, 50, 101, 5);
};

TEST_F(KeyMeans, DoNotCountInTheCodes) {
  write(kNormedConfig, 30);
  // About twice what it is; whole keys cost 0.31, 0.0085, 0.22, 0.23.
  const std::map<KvFormat, double> limits = {{KvFormat::kFp8, 0.005},
                                             {KvFormat::kInt8, 0.0001},
                                             {KvFormat::kQ4, 0.01},
                                             {KvFormat::kHiggs4, 0.025}};
  for (const auto& [format, limit] : limits) {
    const double with = cost(format, texts_);
    EXPECT_GT(with, 0) << kv_format_name(format);
    EXPECT_LT(with, limit) << kv_format_name(format);
  }
}

TEST_F(KeyMeans, KnowEachLayersRotation) {
  write(kGemma3Config, 0);
  EXPECT_LT(cost(KvFormat::kInt8, texts_), 2e-6);  // as without means: 1e-6
}

TEST_F(KeyMeans, TheSameTextsGiveTheSameBits) {
  write(kQwen2Config, 30);
  const std::vector<float> once = logits(KvFormat::kQ4, texts_);
  EXPECT_EQ(once, logits(KvFormat::kQ4, texts_));
  EXPECT_EQ(once, logits(KvFormat::kQ4, texts_, random_sequences(1, 30, 101, 6))) << "once is all";
  EXPECT_NE(once, logits(KvFormat::kQ4, {}));
  EXPECT_EQ(logits(KvFormat::kF32, texts_), logits(KvFormat::kF32, {}));
  EXPECT_EQ(logits(KvFormat::kBF16, texts_), logits(KvFormat::kBF16, {}));
}

TEST_F(KeyMeans, TakeTextsOfAnyLength) {
  write(kQwen2Config, 30);
  const auto sinks_alone = random_sequences(2, 4, 101, 5);
  EXPECT_EQ(logits(KvFormat::kQ4, sinks_alone), logits(KvFormat::kQ4, {})) << "biases stay";
  EXPECT_LT(cost(KvFormat::kInt8, random_sequences(1, 5, 101, 5)), 0.004);
  EXPECT_LT(cost(KvFormat::kInt8, random_sequences(1, 256, 101, 5)), 0.004);
}

TEST_F(KeyMeans, RefuseWhatIsNoText) {
  write(kQwen2Config, 30);
  LoadedModel loaded(directory_.path());
  const std::vector<std::vector<std::vector<int32_t>>> all = {
      {{7, 101}}, {{-1, 7}}, {{}}, {{7, 8, 9}, {}}};
  for (const auto& texts : all) {
    EXPECT_THROW(loaded.model->learn_key_means(texts, loaded.owned.exec), Error);
  }
}

}  // namespace
}  // namespace lathe
