#include "formats/kv_codec_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/atomic_file.h"
#include "formats/expect_error.h"
#include "formats/kv_codec_examples.h"
#include "formats/random_checkpoint.h"
#include "formats/safetensors.h"
#include "formats/safetensors_writer.h"
#include "formats/temporary_directory.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

constexpr RowShape kShape{2, 16};

TEST(KvCodecFile, RoundTripOfEveryVariant) {
  const TemporaryDirectory directory;
  for (const char* variant : kCodecVariants) {
    SCOPED_TRACE(variant);
    KvCodecFile file = random_codec(variant, 5, kShape);
    file.key_quality.assign(5, {0.25, 0.26, 0.75, 0.74});
    const std::string path = directory.path() + "/" + variant + ".safetensors";
    write_kv_codec(file, path);
    const KvCodecFile back = read_kv_codec(path);
    EXPECT_EQ(kv_codec_fingerprint(back), kv_codec_fingerprint(file));
    EXPECT_EQ(back.method, file.method);
    EXPECT_EQ(back.variant, variant);
    EXPECT_EQ(back.model_fingerprint, file.model_fingerprint);
    EXPECT_EQ(back.key_quality.size(), 5u);
    EXPECT_EQ(back.key_quality[4].heldout_explained_variance, 0.74);
    for (std::size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(back.keys[i].predictor.w1, file.keys[i].predictor.w1);
      EXPECT_EQ(back.values[i].predictor.inputs, file.values[i].predictor.inputs);
      EXPECT_EQ(back.values[i].format, file.values[i].format);
    }
    EXPECT_EQ(kv_token_bytes(back), kv_token_bytes(file));
  }
}

TEST(KvCodecFile, BitsPerValueCountEverything) {
  // Llama-3.2-3B's shape with one-byte scales: 28 layers of 8 x 128, layer 0 at 4 bits.
  KvCodecFile file;
  file.method = "aqua";
  file.shape = {8, 128};
  for (int l = 0; l < 28; ++l) {
    KvPlane plane;
    plane.format.bits = l == 0 ? 4 : 2;
    file.keys.push_back(plane);
    file.values.push_back(plane);
  }
  EXPECT_DOUBLE_EQ(kv_bits_per_value(file), 2 + 2.0 / 28 + 8.0 / 128);
  KvLatent latent;
  latent.rank = 128;
  latent.bits = 4;
  file.latents.push_back(latent);  // r bits / (2 s d) for s layers of the 28
  EXPECT_DOUBLE_EQ(kv_bits_per_value(file), 2 + 2.0 / 28 + 8.0 / 128 + 128 * 4.0 / (2 * 28 * 1024));
}

TEST(KvCodecFile, UnroundedNumbersAreNotWritten) {
  const TemporaryDirectory directory;
  KvCodecFile file = random_codec("dense", 3, kShape);
  file.keys[1].predictor.w1[7] = 0.1f;
  const std::string path = directory.path() + "/codec";
  expect_error(ErrorCode::kInvalidArgument, "layer.1.key.weight",
               [&] { write_kv_codec(file, path); });
  file.predictor_dtype = DType::kF32;
  write_kv_codec(file, path);
  EXPECT_EQ(read_kv_codec(path).keys[1].predictor.w1[7], 0.1f);
}

TEST(KvCodecFile, WhatCannotBeIsRefused) {
  using Kind = KvPredictorInput::Kind;
  struct Case {
    const char* variant;
    std::function<void(KvCodecFile&)> damage;
    const char* message;
  };
  const Case cases[] = {
      {"dense", [](auto& f) { f.method = "magic"; }, "method"},
      {"dense", [](auto& f) { f.values.pop_back(); }, "layers"},
      {"dense", [](auto& f) { f.keys.clear(), f.values.clear(); }, "layers"},
      {"dense", [](auto& f) { f.num_sinks = -1; }, "sinks"},
      {"dense", [](auto& f) { f.window = int64_t{1} << 40; }, "window"},
      {"dense", [](auto& f) { f.keys[2].predictor.inputs[0].index = 2; }, "key.2"},
      {"dense", [](auto& f) { f.keys[2].predictor.inputs[0].index = -1; }, "key.-1"},
      {"dense", [](auto& f) { f.values[2].predictor.inputs[1].index = 2; }, "value.2"},
      {"dense",
       [](auto& f) {
         f.keys[1].predictor.inputs[0] = {Kind::kKeys, 400};
       },
       "key.400"},
      {"dense", [](auto& f) { f.keys[1].predictor.w1.pop_back(); }, "weight"},
      {"dense", [](auto& f) { f.keys[1].predictor.w1[3] = NAN; }, "not finite"},
      {"dense", [](auto& f) { f.keys[1].predictor.bias.push_back(0); }, "bias"},
      {"dense", [](auto& f) { f.keys[1].predictor.inputs.clear(); }, "inputs"},
      {"dense", [](auto& f) { f.keys[0].format.bits = 5; }, "5 bits"},
      {"dense",
       [](auto& f) {
         f.shape = {2, 12};
       },
       "12"},
      {"dense", [](auto& f) { f.key_quality.resize(1); }, "quality"},
      {"dense", [](auto& f) { f.predictor_dtype = DType::kF16; }, "BF16"},
      {"low-rank", [](auto& f) { f.keys[1].predictor.rank = 0; }, "rank"},
      {"low-rank", [](auto& f) { f.keys[1].predictor.w2.pop_back(); }, "second weight"},
      {"latent",
       [](auto& f) {
         f.latents[0].layers = {1, 1};
       },
       "layer 1"},
      {"latent", [](auto& f) { f.latents[0].layers = {}; }, "no layers"},
      {"latent",
       [](auto& f) {
         f.latents[0].layers = {0, 77};
       },
       "layer 77"},
      {"latent", [](auto& f) { f.latents[0].rank = 7; }, "rank 7"},
      {"latent", [](auto& f) { f.latents[0].bits = 5; }, "5 bits"},
      {"latent", [](auto& f) { f.latents[0].sigma[0] = 0; }, "sigma"},
      {"latent", [](auto& f) { f.keys[0].predictor.inputs[0].index = 1; }, "latent.1"},
      {"latent", [](auto& f) { f.keys[0].predictor.inputs[0].index = 9; }, "latent.9"},
      {"sigma", [](auto& f) { f.keys[1].sigma[0] = -1; }, "sigma"},
      {"int", [](auto& f) { f.keys[1].format.group = 24; }, "groups of 24"},
  };
  const TemporaryDirectory directory;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.message);
    KvCodecFile file = random_codec(c.variant, 3, kShape);
    validate(file, "codec");
    c.damage(file);
    expect_error(ErrorCode::kCorruptData, c.message, [&] { validate(file, "codec"); });
    EXPECT_THROW(write_kv_codec(file, directory.path() + "/codec"), Error);
  }
}

// A file's metadata text with one part replaced, its tensors as they were.
void rewrite(const std::string& from, const std::string& to, const std::string& part,
             const std::string& replacement) {
  const SafetensorsFile source(from);
  SafetensorsMetadata metadata = source.metadata();
  bool found = false;
  for (auto& [key, value] : metadata) {
    const std::size_t at = value.find(part);
    if (key != "lathe_kv_codec" || at == std::string::npos) continue;
    value.replace(at, part.size(), replacement);
    found = true;
  }
  ASSERT_TRUE(found) << part;
  std::vector<TensorSpec> specs;
  for (const auto& tensor : source.tensors()) {
    specs.push_back({tensor.name, tensor.view.dtype, tensor.view.shape});
  }
  SafetensorsWriter writer(to, specs, metadata);
  for (const auto& tensor : source.tensors()) writer.write(tensor.name, tensor.view);
  writer.commit();
}

TEST(KvCodecFile, HostileMetadataIsRefused) {
  const TemporaryDirectory directory;
  const std::string good = directory.path() + "/good";
  const std::string bad = directory.path() + "/bad";
  write_kv_codec(random_codec("latent", 4, kShape), good);
  const struct {
    const char *part, *replacement;
    ErrorCode code;
  } cases[] = {
      {"\"version\":1", "\"version\":2", ErrorCode::kUnsupported},
      {"\"version\":1", "\"version\":-1", ErrorCode::kCorruptData},
      {"\"num_kv_heads\":2", "\"num_kv_heads\":3", ErrorCode::kCorruptData},
      {"\"num_kv_heads\":2", "\"num_kv_heads\":999999999999", ErrorCode::kCorruptData},
      {"\"head_dim\":16", "\"head_dim\":32", ErrorCode::kCorruptData},
      {"\"head_dim\":16", "\"head_dim\":null", ErrorCode::kCorruptData},
      {"\"layers\":[", "\"layers\":[7,", ErrorCode::kCorruptData},
      {"\"rank\":6", "\"rank\":8", ErrorCode::kCorruptData},
      {"\"rank\":6", "\"rank\":1e30", ErrorCode::kCorruptData},
      {"\"latent.0\"", "\"latent.7\"", ErrorCode::kCorruptData},
      {"\"latent.0\"", "\"latent.99999999999999999999\"", ErrorCode::kCorruptData},
      {"\"latent.0\"", "\"latent\"", ErrorCode::kCorruptData},
      {"\"latent.0\"", "\"secret.0\"", ErrorCode::kCorruptData},
      {"\"weight\":\"dense\"", "\"weight\":\"none\"", ErrorCode::kCorruptData},
      {"\"weight\":\"dense\"", "\"weight\":\"mlp\"", ErrorCode::kCorruptData},
      {"\"bias\":true", "\"bias\":false", ErrorCode::kCorruptData},
      {"\"sigma\":false", "\"sigma\":true", ErrorCode::kCorruptData},
      {"\"grid_sha256\":\"", "\"grid_sha256\":\"0", ErrorCode::kUnsupported},
      {"\"scale\":\"log8\"", "\"scale\":\"log9\"", ErrorCode::kUnsupported},
      {"\"method\":\"higgs\"", "\"method\":\"lower\"", ErrorCode::kCorruptData},
      {"\"sinks\":4", "\"sinks\":-4", ErrorCode::kCorruptData},
      {"{", "", ErrorCode::kCorruptData},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(std::string(c.part) + " -> " + c.replacement);
    rewrite(good, bad, c.part, c.replacement);
    expect_error(c.code, "bad", [&] { read_kv_codec(bad); });
  }
}

TEST(KvCodecFile, TornAndForeignFilesAreRefused) {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/codec";
  write_kv_codec(random_codec("dense", 3, kShape), path);
  const std::string whole = read_file(path);
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, whole.size() / 2, whole.size() - 1}) {
    write_file_atomically(path, whole.substr(0, size));
    EXPECT_THROW(read_kv_codec(path), Error) << size;
  }
  SafetensorsWriter(path, {}, {{"format", "pt"}}).commit();
  expect_error(ErrorCode::kCorruptData, "not a KV codec", [&] { read_kv_codec(path); });
  expect_error(ErrorCode::kNotFound, "nothing",
               [&] { read_kv_codec(directory.path() + "/nothing"); });
}

TEST(KvCodecFile, AnotherModelIsRefused) {
  const KvCodecFile file = random_codec("dense", 3, kShape);
  ModelConfig config;
  config.num_layers = 3;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  check_kv_codec(file, config, file.model_fingerprint, "codec");
  expect_error(ErrorCode::kInvalidArgument, "fit-kv",
               [&] { check_kv_codec(file, config, std::string(64, 'b'), "codec"); });
  config.head_dim = 32;
  expect_error(ErrorCode::kInvalidArgument, "2 x 32",
               [&] { check_kv_codec(file, config, file.model_fingerprint, "codec"); });
}

TEST(KvCodecFile, FingerprintsTellModelsApart) {
  const auto fingerprint = [](const std::string& name) {
    return kv_model_fingerprint(*Checkpoint::open(golden_path("tiny/" + name)));
  };
  const std::string qwen = fingerprint("qwen2-tied-mqa");
  EXPECT_EQ(qwen.size(), 64u);
  EXPECT_EQ(fingerprint("qwen2-tied-mqa"), qwen);
  EXPECT_NE(fingerprint("gemma3-sliding-global"), qwen);
}

TEST(KvCodecFile, APlainCodecFitsAnyModel) {
  const auto checkpoint = Checkpoint::open(golden_path("tiny/qwen2-tied-mqa"));
  const ModelConfig& config = checkpoint->config();
  const std::string fingerprint = kv_model_fingerprint(*checkpoint);
  const KvCodecFile file = plain_kv_codec(config, {.bits = 3}, fingerprint);
  validate(file, "codec");
  check_kv_codec(file, config, fingerprint, "codec");
  EXPECT_EQ(file.num_layers(), config.num_layers);
  EXPECT_EQ(kv_token_bytes(file),
            2 * config.num_layers * (config.kv_size() * 3 / 8 + config.num_kv_heads));
  EXPECT_EQ(kv_predictor_bytes(file), 0);
}

TEST(KvCodecFile, FingerprintsTellCodecsApart) {
  const KvCodecFile file = random_codec("dense", 3, kShape);
  KvCodecFile other = file;
  other.created_by = "somebody";  // not part of what the codes mean
  EXPECT_EQ(kv_codec_fingerprint(other), kv_codec_fingerprint(file));
  other.values[2].predictor.bias[0] += 1;
  EXPECT_NE(kv_codec_fingerprint(other), kv_codec_fingerprint(file));
}

}  // namespace
}  // namespace lathe
