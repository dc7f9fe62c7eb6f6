#include "compress/channel_scaling.h"

#include <gtest/gtest.h>

#include <cmath>

#include "compress/random_model.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

struct Layer {
  explicit Layer(const char* config_json) : owned(2) {
    write_random_model(directory.path(), config_json, 23);
    checkpoint = Checkpoint::open(directory.path());
    weights = load_layer_weights(*checkpoint, 0, DType::kF32);
    x = normal_values(6 * 40 * config().hidden_size, 3);
  }
  const ModelConfig& config() const { return checkpoint->config(); }

  // Outputs and statistics of the layer as it now is.
  std::vector<float> run(LayerStatistics* statistics) {
    TemporaryDirectory scratch;
    HiddenStore store(scratch.path(), std::vector<int64_t>(6, 40), config().hidden_size);
    store.begin(0);
    store.write(0, 0, 6, x.data());
    store.finish(0);
    LayerPass pass(config(), store, 100, owned.exec);
    const CalibrationLayer packed = pass.pack(weights, owned.exec);
    if (statistics != nullptr) {
      CollectOptions options;
      options.kinds = {LinearKind::kQkv, LinearKind::kO, LinearKind::kGateUp, LinearKind::kDown};
      *statistics = pass.collect(packed, options, {}, owned.exec);
    }
    pass.propagate(packed, {}, owned.exec);
    std::vector<float> outputs(x.size());
    store.read(1, 0, 6, outputs.data());
    return outputs;
  }

  OwnedExec owned;
  TemporaryDirectory directory;
  std::unique_ptr<Checkpoint> checkpoint;
  LayerWeights weights;
  std::vector<float> x;
};

QuantizeOptions options_for(QuantizeMethod method) {
  return recommended_options(weight_format_from_name("int4"), method, ActivationFormat::kNone);
}

// The layer computes the same function before and after, through grouped heads, biases, gains of
// both kinds and experts; and the statistics say what the new inputs would have shown.
TEST(ChannelScaling, LeavesTheLayersFunctionAlone) {
  for (const char* config_json : {kQwen2Config, kQwen3MoeConfig, kGemma3Config}) {
    for (const QuantizeMethod method : {QuantizeMethod::kSmoothQuant, QuantizeMethod::kAwq}) {
      Layer layer(config_json);
      LayerStatistics statistics;
      const std::vector<float> expected = layer.run(&statistics);
      smooth_layer(layer.weights, statistics, layer.config(), options_for(method), DType::kF32,
                   layer.owned.exec);
      LayerStatistics after;
      EXPECT_TRUE(all_close(layer.run(&after), expected, 1e-4));
      for (auto& [key, input] : statistics.inputs) {
        InputStatistics& seen = after.find(key.first, key.second)->calibration;
        EXPECT_TRUE(all_close(input.calibration.amax(), seen.amax(), 1e-4));
        const Buffer a = input.calibration.copy_hessian(layer.owned.exec);
        const Buffer b = seen.copy_hessian(layer.owned.exec);
        const auto size = static_cast<std::size_t>(a.size()) / sizeof(float);
        EXPECT_TRUE(all_close({a.as<float>(), size}, {b.as<float>(), size}, 1e-4));
      }
    }
  }
}

// SmoothQuant's point: the strong channel of the input is less strong afterwards.
TEST(ChannelScaling, SmoothingLowersTheOutlierChannel) {
  Layer layer(kQwen2Config);
  LayerStatistics statistics;
  layer.run(&statistics);
  const auto spread = [](const std::vector<float>& amax) {
    double sum = 0;
    float largest = 0;
    for (const float a : amax) {
      sum += double{a};
      largest = std::max(largest, a);
    }
    return double{largest} * static_cast<double>(amax.size()) / sum;
  };
  const double before = spread(statistics.find(LinearKind::kQkv, -1)->calibration.amax());
  smooth_layer(layer.weights, statistics, layer.config(), options_for(QuantizeMethod::kSmoothQuant),
               DType::kF32, layer.owned.exec);
  const double after = spread(statistics.find(LinearKind::kQkv, -1)->calibration.amax());
  EXPECT_GT(before, 4);
  EXPECT_LT(after, 0.7 * before);
}

// A stored gain is bf16; the factor in the weights belongs to the rounded gain, so nothing is lost.
TEST(ChannelScaling, FactorsBelongToTheStoredGain) {
  Layer layer(kGemma3Config);
  LayerStatistics statistics;
  const std::vector<float> expected = layer.run(&statistics);
  smooth_layer(layer.weights, statistics, layer.config(), options_for(QuantizeMethod::kSmoothQuant),
               DType::kBF16, layer.owned.exec);
  for (int64_t j = 0; j < layer.config().hidden_size; ++j) {
    const float stored = layer.weights.input_norm.as<float>()[j] - 1.0f;
    EXPECT_EQ(float_from_bf16(bf16_from_float(stored)) + 1.0f,
              layer.weights.input_norm.as<float>()[j]);
  }
  EXPECT_TRUE(all_close(layer.run(nullptr), expected, 1e-4));
}

}  // namespace
}  // namespace lathe
