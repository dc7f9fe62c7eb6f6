// Forward passes of tiny random models against transformers in fp32 (golden/README.md): each covers
// one architecture, and its ablations say how far the logits move when one setting is wrong.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/json.h"
#include "formats/safetensors.h"
#include "formats/temporary_directory.h"
#include "model/model_runner.h"
#include "support/all_close.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

// golden/README.md: fp32 against fp64 differs by 1.3e-5 at most; the tolerance is eight times that.
constexpr double kTolerance = 1e-4;

struct Expected {
  std::vector<int32_t> ids;
  std::vector<float> logits;
};

Expected read_expected(const std::string& model_directory) {
  const SafetensorsFile file(model_directory + ".expected.safetensors");
  const TensorView& ids = file.at("input_ids");
  const Tensor logits = load_dense(file.at("logits"), DType::kF32);
  Expected expected;
  for (int64_t i = 0; i < ids.num_elements(); ++i) {
    int64_t id = 0;
    std::memcpy(&id, ids.data + i * 8, 8);
    expected.ids.push_back(static_cast<int32_t>(id));
  }
  expected.logits.assign(logits.as<float>(), logits.as<float>() + logits.num_elements());
  return expected;
}

// A copy of a model whose config.json went through `edit`.
void copy_model(const std::string& from, const TemporaryDirectory& to, const std::string& config,
                const std::function<void(Json&)>& edit) {
  for (const auto& entry : std::filesystem::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (name.find("safetensors") != std::string::npos) {
      std::filesystem::copy(entry.path(), to.path() + "/" + name);
    }
  }
  Json json = read_json_file(from + "/" + config);
  edit(json);
  to.write("config.json", dump_json(json));
}

std::vector<float> prompt_logits(const std::string& directory, std::span<const int32_t> ids) {
  LoadedModel loaded(directory);
  return SequenceRunner(loaded, 64).feed(ids).logits;
}

// The committed two, and the rest where the reference data is.
std::optional<std::string> tiny_directory(const std::string& name) {
  const std::string committed = golden_path("tiny/" + name);
  if (std::filesystem::exists(committed)) return committed;
  return shared_path("golden/tiny/" + name);
}

class TinyGolden : public testing::TestWithParam<const char*> {};

TEST_P(TinyGolden, LogitsMatchTransformers) {
  const auto directory = tiny_directory(GetParam());
  LATHE_SKIP_WITHOUT(directory, GetParam());
  const Expected expected = read_expected(*directory);
  EXPECT_TRUE(all_close(prompt_logits(*directory, expected.ids), expected.logits, 0, kTolerance));
}

TEST_P(TinyGolden, OlderConfigSpellingGivesTheSameModel) {
  const auto directory = tiny_directory(GetParam());
  LATHE_SKIP_WITHOUT(directory, GetParam());
  const Expected expected = read_expected(*directory);
  TemporaryDirectory copy;
  copy_model(*directory, copy, "config.transformers4.json", [](Json&) {});
  EXPECT_TRUE(all_close(prompt_logits(copy.path(), expected.ids), expected.logits, 0, kTolerance));
}

// Without this, a feature that no token of the prompt exercises would pass unseen.
TEST_P(TinyGolden, EveryAblationFails) {
  const auto directory = tiny_directory(GetParam());
  LATHE_SKIP_WITHOUT(directory, GetParam());
  const Expected expected = read_expected(*directory);
  const Json described = read_json_file(*directory + ".expected.json");
  for (const Json& ablation : described.at("ablations")) {
    SCOPED_TRACE(dump_json(ablation));
    TemporaryDirectory copy;
    copy_model(*directory, copy, "config.json", [&](Json& config) {
      for (const auto& [key, value] : ablation.at("change").items()) {
        config[key] = value;
        // These ablations keep the number of layers and move the full-attention one.
        if (key == "layer_types") {
          while (config[key].size() < config.at("num_hidden_layers").get<std::size_t>()) {
            config[key].push_back("sliding_attention");
          }
        }
      }
    });
    const std::vector<float> logits = prompt_logits(copy.path(), expected.ids);
    float moved = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      moved = std::max(moved, std::abs(logits[i] - expected.logits[i]));
    }
    // The same setting wrong in the same way moves the logits as far as it did there.
    EXPECT_NEAR(moved, ablation.at("max_abs_diff").get<double>(), 1e-3);
  }
}

// A row's bits may not depend on the chunk that it came in; on a GPU, where other numbers of rows
// take other kernels, its numbers may by what fp32 sums differ by.
TEST_P(TinyGolden, ChunksOfAnySizeGiveTheSameBits) {
  const auto directory = tiny_directory(GetParam());
  LATHE_SKIP_WITHOUT(directory, GetParam());
  const std::vector<int32_t> ids = read_expected(*directory).ids;
  LoadedModel loaded(*directory);
  const SequenceRunner::Result whole = SequenceRunner(loaded, 64).feed(ids);
  for (const std::size_t chunk : {1u, 3u, 7u, 32u}) {
    SCOPED_TRACE(chunk);
    SequenceRunner runner(loaded, 64);
    std::vector<float> logits;
    for (std::size_t begin = 0; begin < ids.size(); begin += chunk) {
      const std::size_t size = std::min(chunk, ids.size() - begin);
      const auto part = runner.feed(std::span(ids).subspan(begin, size));
      logits.insert(logits.end(), part.logits.begin(), part.logits.end());
    }
    if (loaded.model->batch_tolerance() == 0) {
      EXPECT_TRUE(same_bits(logits, whole.logits));
    } else {
      EXPECT_TRUE(all_close(logits, whole.logits, 0, kTolerance));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllModels, TinyGolden,
                         testing::Values("llama-rope-llama3", "qwen2-tied-mqa", "qwen3-sharded",
                                         "mistral-sliding-window", "gemma3-sliding-global", "phi3",
                                         "phi3-partial-longrope", "qwen3-moe", "mixtral"),
                         [](const auto& tested) {
                           std::string name = tested.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace lathe
