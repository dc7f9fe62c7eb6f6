#include "compress/residual_rotation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "compress/layer_pass.h"
#include "compress/random_model.h"

namespace lathe {
namespace {

// Outputs of layer 0 for the given inputs, [tokens, hidden_size].
std::vector<float> layer_outputs(const LayerWeights& weights, const ModelConfig& config,
                                 const std::vector<float>& inputs, Exec& exec) {
  TemporaryDirectory scratch;
  const auto tokens = static_cast<int64_t>(inputs.size()) / config.hidden_size;
  HiddenStore store(scratch.path(), {tokens}, config.hidden_size);
  store.begin(0);
  store.write(0, 0, 1, inputs.data());
  store.finish(0);
  LayerPass pass(config, store, 64, exec);
  pass.propagate(pass.pack(weights, exec), {}, exec);
  std::vector<float> outputs(inputs.size());
  store.read(1, 0, 1, outputs.data());
  return outputs;
}

TEST(ResidualRotation, IsOrthogonalForEveryOddFactor) {
  for (const int64_t n : {64, 96, 576, 896, 640}) {
    const ResidualRotation rotation(n, 5);
    const float* q = rotation.matrix().as<float>();
    double worst = 0;
    for (int64_t i = 0; i < n; i += 7) {
      for (int64_t j = 0; j < n; ++j) {
        double dot = 0;
        for (int64_t c = 0; c < n; ++c) dot += double{q[i * n + c]} * double{q[j * n + c]};
        worst = std::max(worst, std::fabs(dot - (i == j ? 1 : 0)));
      }
    }
    EXPECT_LT(worst, 1e-5) << n;
    // It spreads every channel: no entry dominates a row.
    float largest = 0;
    for (int64_t i = 0; i < n * n; ++i) largest = std::max(largest, std::fabs(q[i]));
    EXPECT_LT(largest, 4 / std::sqrt(static_cast<float>(n & -n)));
  }
}

// A rotated layer does to rotated inputs what the layer does to plain ones, with biases, experts
// and all. fp32 through some ten products: 1e-4.
TEST(ResidualRotation, LayersCommuteWithIt) {
  OwnedExec owned(2);
  for (const char* config_json : {kQwen2Config, kQwen3MoeConfig}) {
    TemporaryDirectory directory;
    write_random_model(directory.path(), config_json, 17);
    const auto checkpoint = Checkpoint::open(directory.path());
    const ModelConfig& config = checkpoint->config();
    LayerWeights weights = load_layer_weights(*checkpoint, 0, DType::kF32);
    std::vector<float> x = normal_values(40 * config.hidden_size, 3);
    std::vector<float> expected = layer_outputs(weights, config, x, owned.exec);

    const ResidualRotation rotation(config.hidden_size, 9);
    rotation.rotate_layer(weights, config, owned.exec);
    rotation.rotate_rows(x.data(), 40, owned.exec);
    rotation.rotate_rows(expected.data(), 40, owned.exec);
    EXPECT_TRUE(all_close(layer_outputs(weights, config, x, owned.exec), expected, 1e-4));
  }
}

TEST(ResidualRotation, RefusesNormsBehindTheBranches) {
  OwnedExec owned(1);
  TemporaryDirectory directory;
  write_random_model(directory.path(), kGemma3Config, 17);
  const auto checkpoint = Checkpoint::open(directory.path());
  LayerWeights weights = load_layer_weights(*checkpoint, 0, DType::kF32);
  const ResidualRotation rotation(64, 9);
  EXPECT_THROW(rotation.rotate_layer(weights, checkpoint->config(), owned.exec), Error);
}

}  // namespace
}  // namespace lathe
