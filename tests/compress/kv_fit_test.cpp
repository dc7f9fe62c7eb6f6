#include "compress/kv_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "cache/predictive_codec.h"
#include "compress/kv_fit_measure.h"
#include "compress/kv_fit_model.h"
#include "compress/random_model.h"
#include "eval/perplexity.h"

namespace lathe {
namespace {

constexpr int64_t kRows = 1200;  // every fourth is held out
constexpr int64_t kLayers = 6;

ModelConfig small_config() {
  ModelConfig config;
  config.num_layers = kLayers;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.layer_is_sliding.assign(kLayers, false);
  return config;
}

// Rows as a transformer has them: a mean, what a layer shares with the one below, noise; values are
// linear in keys to a part.
struct MadeUpLayers {
  explicit MadeUpLayers(double noise, uint64_t seed = 1) {
    const int64_t d = 32;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const uint64_t s = seed + 100 * uint64_t(layer);
      std::vector<float> k = normal_values(kRows * d, s, layer == 0 ? 1 : noise);
      std::vector<float> v = normal_values(kRows * d, s + 1, layer == 0 ? 1 : noise);
      const auto mean = normal_values(d, s + 2, 2);
      const auto a = normal_values(d * d, s + 3, 1 / std::sqrt(double(d)));
      const auto b = normal_values(d * d, s + 4, 1 / std::sqrt(double(d)));
      for (int64_t t = 0; t < kRows; ++t) {
        for (int64_t j = 0; j < d; ++j) {
          double key = double{k[at(t, j)]} + double{mean[std::size_t(j)]};
          double value = double{v[at(t, j)]};
          for (int64_t i = 0; i < d && layer > 0; ++i) {
            key += double{a[std::size_t(j * d + i)]} * double{keys.back()[at(t, i)]};
            value += double{b[std::size_t(j * d + i)]} * double{values.back()[at(t, i)]};
          }
          k[at(t, j)] = float(key);
          v[at(t, j)] = float(value);
        }
      }
      keys.push_back(std::move(k));
      values.push_back(std::move(v));
    }
  }
  static std::size_t at(int64_t t, int64_t j) { return std::size_t(t * 32 + j); }
  std::vector<std::vector<float>> keys, values;
};

Buffer buffer_of(const std::vector<float>& values) {
  Buffer buffer(int64_t(values.size() * sizeof(float)));
  std::copy(values.begin(), values.end(), buffer.as<float>());
  return buffer;
}

class KvFit : public testing::Test {
 protected:
  struct Fitted {
    KvCodecFile file;
    std::vector<KvLayerReport> reports;
    double key_error() const {
      double sum = 0;
      for (const auto& report : reports) sum += report.key_reconstruction;
      return sum / double(reports.size());
    }
    double value_error() const {
      double sum = 0;
      for (const auto& report : reports) sum += report.value_reconstruction;
      return sum / double(reports.size());
    }
  };
  Fitted fit(const MadeUpLayers& layers, const KvFitOptions& options,
             const ModelConfig& config = small_config()) {
    std::vector<int32_t> train, held_out;
    for (int32_t t = 0; t < kRows; ++t) (t % 4 == 3 ? held_out : train).push_back(t);
    KvFitter fitter(config, options, train, held_out, kRows);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      fitter.add_layer(buffer_of(layers.keys[std::size_t(layer)]),
                       buffer_of(layers.values[std::size_t(layer)]), exec_);
    }
    Fitted fitted{fitter.finish(), fitter.reports()};
    fitted.file.model_fingerprint = std::string(64, 'a');
    return fitted;
  }

  TemporaryDirectory directory_;
  OwnedExec owned_{2};
  Exec& exec_ = owned_.exec;
};

// What the fit reports is what the cache does: the finished codec, run over the rows by themselves.
TEST_F(KvFit, ReportsTheErrorsThatTheFinishedCodecMakes) {
  const MadeUpLayers layers(0.3);
  const auto variants = {KvFitVariant::kDense, KvFitVariant::kLowRank, KvFitVariant::kBlockDiagonal,
                         KvFitVariant::kStar, KvFitVariant::kLatent};
  for (const KvFitVariant variant : variants) {
    SCOPED_TRACE(kv_fit_variant_name(variant));
    KvFitOptions options;
    options.variant = variant;
    options.group_layers = 3;
    options.rank = 16;
    const Fitted fitted = fit(layers, options);
    const std::string path = directory_ / ("codec_" + std::to_string(int(variant)));
    write_kv_codec(fitted.file, path);
    const KvLayerCoder coder(read_kv_codec(path));
    const KvCodecFile& file = fitted.file;
    std::vector<std::vector<float>> latents;
    for (std::size_t g = 0; g < coder.latents().size(); ++g) {
      const KvLatentCoder& latent = coder.latents()[g];
      std::vector<const float*> parts;
      for (const int64_t layer : latent.layers()) {
        parts.push_back(layers.keys[std::size_t(layer)].data());
      }
      latents.emplace_back(std::size_t(kRows * latent.rank()));
      encode_rows(latent, parts.data(), latents.back().data(), kRows, exec_);
    }
    std::vector<int32_t> held_out;
    for (int32_t t = 3; t < kRows; t += 4) held_out.push_back(t);
    std::vector<std::vector<float>> keys(kLayers), values(kLayers);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const auto l = std::size_t(layer);
      for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
        const bool is_keys = side == KvSide::kKeys;
        std::vector<const float*> inputs;
        for (const KvPredictorInput& input :
             (is_keys ? file.keys[l] : file.values[l]).predictor.inputs) {
          const auto& from = input.kind == KvPredictorInput::Kind::kKeys     ? keys
                             : input.kind == KvPredictorInput::Kind::kValues ? values
                                                                             : latents;
          inputs.push_back(from[std::size_t(input.index)].data());
        }
        const auto& exact = (is_keys ? layers.keys : layers.values)[l];
        auto& rows = (is_keys ? keys : values)[l];
        rows.resize(exact.size());
        encode_rows(coder.plane(layer, side), inputs.data(), exact.data(), rows.data(), kRows,
                    exec_);
        const double error = row_errors(exact.data(), rows.data(), 32, held_out).relative_mse();
        EXPECT_EQ(error, is_keys ? fitted.reports[l].key_reconstruction
                                 : fitted.reports[l].value_reconstruction)
            << layer;
      }
    }
  }
}

TEST_F(KvFit, PredictionBeatsTheMeanAndTheMeanBeatsNothing) {
  const MadeUpLayers layers(0.3);
  const Fitted aqua = fit(layers, {});
  const Fitted mean = fit(layers, {.method = KvFitMethod::kHiggs});
  const Fitted plain = fit(layers, {.method = KvFitMethod::kHiggs, .mean = false});
  const Fitted block = fit(layers, {.variant = KvFitVariant::kBlockDiagonal});
  const Fitted low = fit(layers, {.variant = KvFitVariant::kLowRank, .rank = 16});
  const Fitted full = fit(layers, {.variant = KvFitVariant::kLowRank, .rank = 32});
  EXPECT_LT(aqua.key_error(), 0.5 * mean.key_error());
  EXPECT_LT(aqua.value_error(), 0.5 * mean.value_error());
  EXPECT_LT(mean.key_error(), 0.8 * plain.key_error());
  EXPECT_LT(aqua.key_error(), block.key_error());
  EXPECT_LT(aqua.key_error(), low.key_error());
  // Another rounding of the same map: bf16 weights, 2^-9 each.
  EXPECT_NEAR(full.key_error(), aqua.key_error(), 0.02 * aqua.key_error());
  EXPECT_LT(kv_fit_gap(aqua.file), 0.1);  // 900 tokens for 65 numbers an output
  EXPECT_TRUE(plain.file.keys[1].predictor.bias.empty());
  EXPECT_EQ(mean.file.variant, "mean");
}

// What nothing predicts needs no more text, whatever its rows explain of themselves.
TEST(KvFitGap, IsOfPlanesWithAPredictor) {
  KvCodecFile file;
  file.keys.resize(2);
  file.values.resize(2);
  file.key_quality = {{1, 1, 0.9, 0.1}, {1, 1, 0.5, 0.4}};
  file.value_quality = {{1, 1, 0.9, 0.2}, {1, 1, 0.7, 0.65}};
  EXPECT_EQ(kv_fit_gap(file), 0);
  file.keys[1].predictor.weight = KvPredictor::Weight::kDense;
  EXPECT_NEAR(kv_fit_gap(file), 0.1, 1e-12);
}

// Layers that depend exactly on the one below: nothing is left but what the quantizer did below.
TEST_F(KvFit, AnExactDependenceLeavesTheErrorOfTheLayerBelow) {
  const MadeUpLayers layers(0);
  const Fitted fitted = fit(layers, {.ridge = 1e-6});
  for (std::size_t l = 1; l < std::size_t(kLayers); ++l) {
    // Centred: the mean is in the energy and not in the error. The fit averages over the errors
    // below; they pass through a random map that keeps lengths, so the ratio is about one.
    const double below = l == 1 ? 0.02 : 0.003;
    EXPECT_LT(1 - fitted.file.key_quality[l].heldout_explained_variance, below) << l;
  }
}

TEST_F(KvFit, FormatsFollowTheVariant) {
  const MadeUpLayers layers(0.3);
  const auto bits = [](const Fitted& fitted) {
    std::vector<int> result;
    for (const KvPlane& plane : fitted.file.keys) result.push_back(plane.format.bits);
    return result;
  };
  EXPECT_EQ(bits(fit(layers, {})), (std::vector<int>{4, 2, 2, 2, 2, 2}));
  EXPECT_EQ(bits(fit(layers, {.bits = 3, .first_layer_bits = 2})),
            (std::vector<int>{2, 3, 3, 3, 3, 3}));
  EXPECT_EQ(bits(fit(layers, {.variant = KvFitVariant::kStar, .group_layers = 3})),
            (std::vector<int>{4, 2, 2, 4, 2, 2}));
  EXPECT_EQ(bits(fit(layers, {.variant = KvFitVariant::kLatent, .rank = 8})),
            (std::vector<int>{2, 2, 2, 2, 2, 2}));
  EXPECT_EQ(bits(fit(layers, {.method = KvFitMethod::kHiggs, .bits = 3})),
            (std::vector<int>{3, 3, 3, 3, 3, 3}));
  const Fitted integers = fit(layers, {.method = KvFitMethod::kInt, .bits = 4});
  EXPECT_EQ(integers.file.keys[2].format.method, RowMethod::kUniform);
}

TEST_F(KvFit, InputsFollowTheOptions) {
  using Kind = KvPredictorInput::Kind;
  const MadeUpLayers layers(0.3);
  const Fitted paper = fit(layers, {.keys_from_values = false});
  EXPECT_EQ(paper.file.keys[2].predictor.inputs, (std::vector<KvPredictorInput>{{Kind::kKeys, 1}}));
  EXPECT_EQ(paper.file.values[2].predictor.inputs,
            (std::vector<KvPredictorInput>{{Kind::kKeys, 2}, {Kind::kValues, 1}}));
  const Fitted both = fit(layers, {});
  EXPECT_EQ(both.file.keys[2].predictor.inputs,
            (std::vector<KvPredictorInput>{{Kind::kKeys, 1}, {Kind::kValues, 1}}));
  const Fitted no_keys = fit(layers, {.predict_keys = false});
  EXPECT_TRUE(no_keys.file.keys[2].predictor.inputs.empty());
  EXPECT_EQ(no_keys.file.keys[2].format.bits, 2);
  EXPECT_FALSE(no_keys.file.values[2].predictor.inputs.empty());
  const Fitted no_values = fit(layers, {.predict_values = false});
  EXPECT_TRUE(no_values.file.values[2].predictor.inputs.empty());

  // Sliding layers 0 1 3 4 and full ones 2 5: each kind from itself.
  ModelConfig config = small_config();
  config.layer_is_sliding = {true, true, false, true, true, false};
  const Fitted mixed = fit(layers, {}, config);
  const std::vector<int64_t> base = {-1, 0, -1, 1, 3, 2};
  for (std::size_t l = 0; l < base.size(); ++l) {
    const auto& inputs = mixed.file.keys[l].predictor.inputs;
    EXPECT_EQ(inputs.empty() ? -1 : inputs[0].index, base[l]) << l;
    EXPECT_EQ(mixed.file.keys[l].format.bits, base[l] < 0 ? 4 : 2);
  }
  const Fitted grouped =
      fit(layers, {.variant = KvFitVariant::kLatent, .rank = 8, .group_layers = 2}, config);
  ASSERT_EQ(grouped.file.latents.size(), 3u);
  EXPECT_EQ(grouped.file.latents[0].layers, (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(grouped.file.latents[1].layers, (std::vector<int64_t>{2, 5}));
  EXPECT_EQ(grouped.file.latents[2].layers, (std::vector<int64_t>{3, 4}));

  using Kind = KvPredictorInput::Kind;
  for (const bool values_from_keys : {true, false}) {
    const Fitted latent = fit(layers, {.variant = KvFitVariant::kLatent,
                                       .group_layers = 2,
                                       .values_from_keys = values_from_keys});
    std::vector<KvPredictorInput> inputs = {{Kind::kKeys, 3}, {Kind::kLatent, 1}};
    if (!values_from_keys) inputs.erase(inputs.begin());
    EXPECT_EQ(latent.file.values[3].predictor.inputs, inputs);
    EXPECT_EQ(latent.file.keys[3].predictor.inputs,
              (std::vector<KvPredictorInput>{{Kind::kLatent, 1}}));
  }
  const RowShape wide{8, 128};
  EXPECT_EQ(KvFitOptions{}.resolved_rank(wide), 512);
  EXPECT_EQ(KvFitOptions{.values_from_keys = false}.resolved_rank(wide), 256);
}

TEST_F(KvFit, EveryOptionGivesACodecThatCanBeRead) {
  const MadeUpLayers layers(0.3);
  const KvFitOptions all[] = {
      {.exact_inputs = true},
      {.hadamard = false},
      {.grid_dim = 1},
      {.grid_dim = 4},
      {.scale = RowScale::kF16},
      {.mean = false},
      {.variant = KvFitVariant::kLatent, .rank = 8, .latent_bits = 8, .latent_values = true},
      {.variant = KvFitVariant::kLatent, .rank = 8, .exact_inputs = true},
      {.variant = KvFitVariant::kLatent, .rank = 8, .values_from_keys = false},
      {.variant = KvFitVariant::kStar, .exact_inputs = true},
      {.num_sinks = 0, .window = 0},
      {.predictor_dtype = DType::kF32},
  };
  for (const KvFitOptions& options : all) {
    SCOPED_TRACE(&options - all);
    const Fitted fitted = fit(layers, options);
    const std::string path = directory_ / "option";
    write_kv_codec(fitted.file, path);
    const KvCodecFile read = read_kv_codec(path);
    EXPECT_EQ(kv_codec_fingerprint(read), kv_codec_fingerprint(fitted.file));
    EXPECT_LT(fitted.key_error(), 0.12);
    EXPECT_LT(fitted.value_error(), 0.12);
  }
}

TEST_F(KvFit, RefusesWhatCannotBe) {
  const ModelConfig config = small_config();
  const KvFitOptions bad[] = {
      {.bits = 1},
      {.bits = 5},
      {.first_layer_bits = 7},
      {.grid_dim = 3},
      {.bits = 3, .grid_dim = 4},
      {.rank = -1},
      {.group_layers = 1},
      {.latent_bits = 3},
      {.ridge = 0},
      {.num_sinks = -1},
      {.window = -5},
      {.variant = KvFitVariant::kLatent, .rank = 7},
  };
  for (const KvFitOptions& options : bad) {
    try {
      check_kv_fit_options(options, config);
      ADD_FAILURE() << &options - bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
  }
  EXPECT_THROW(KvFitter(config, {}, {}, {1}, 4), Error);
  EXPECT_THROW(KvFitter(config, {}, {1}, {}, 4), Error);
  EXPECT_THROW(kv_fit_variant_from_name("crystal"), Error);
  EXPECT_THROW(kv_fit_method_from_name(""), Error);
  KvFitter fitter(config, {}, {0, 1, 2}, {3}, 4);
  std::vector<float> rows(4 * 32, 1.0f);
  rows[5] = NAN;
  EXPECT_THROW(fitter.add_layer(buffer_of(rows), buffer_of(rows), exec_), Error);
}

// A job on a whole (random) model, without options and sequences.
struct RandomModelJob {
  RandomModelJob() {
    write_random_model(temporary.path(), kQwen2Config, 7);
    checkpoint = Checkpoint::open(temporary.path());
    job.source = checkpoint.get();
    job.working_directory = temporary.path() + "/working";
  }
  TemporaryDirectory temporary;
  std::unique_ptr<Checkpoint> checkpoint;
  KvFitJob job;
};

// A whole (random) model: the stream captures what the cache would get, and what the codec shows
// to queries does not depend on how many of them are computed at once.
TEST_F(KvFit, AModelsCodecWorksInItsCache) {
  RandomModelJob model_job;
  KvFitJob& job = model_job.job;
  job.sequences = random_sequences(9, 100, 101, 3);
  job.options.resize(1);
  job.options[0].window = 32;
  job.options[0].chunk_tokens = 32;
  std::vector<double> fractions;
  const KvFitResult result =
      fit_kv_codecs(
          job, {.on_progress = [&](int64_t, double fraction) { fractions.push_back(fraction); }},
          exec_)
          .front();
  EXPECT_FALSE(std::filesystem::exists(job.working_directory));
  EXPECT_TRUE(std::is_sorted(fractions.begin(), fractions.end()));
  EXPECT_EQ(result.train_tokens, 8 * 96);  // without four sinks each
  EXPECT_EQ(result.held_out_tokens, 96);
  EXPECT_NO_THROW(check_kv_codec(result.file, model_job.checkpoint->config(),
                                 kv_model_fingerprint(*model_job.checkpoint), "fitted"));

  const auto model = Model::load(*model_job.checkpoint,
                                 {.dense_dtype = DType::kF32, .compute = ComputeType::kF32}, exec_);
  const auto codec = make_kv_codec(result.file, model_job.checkpoint->config());
  const auto windows = random_sequences(2, 120, 101, 4);
  const auto measure = [&](int64_t chunk) {
    MeasuredModel measured{.model = model.get(),
                           .make_cache =
                               [&](int64_t tokens) {
                                 return model->make_coded_cache(*codec,
                                                                {.live_format = KvFormat::kF32,
                                                                 .live_tokens = tokens + kBlockSize,
                                                                 .coded_tokens = tokens,
                                                                 .max_sequence_tokens = tokens});
                               },
                           .chunk_rows = chunk};
    return measure_perplexity(measured, windows, exec_).window_nll;
  };
  const auto one = measure(1);
  EXPECT_EQ(measure(32), one);  // divides window and chunk: as in decoding, bit for bit
  EXPECT_EQ(measure(8), one);
  EXPECT_NE(measure(120), one);  // a prefill in one step sees itself exactly
  // ... and gives what a plain cache gives.
  EXPECT_EQ(measure(120), measure_perplexity(*model, KvFormat::kF32, windows, exec_).window_nll);
  EXPECT_NE(one, measure_perplexity(*model, KvFormat::kF32, windows, exec_).window_nll);
}

// Codecs fitted in one pass are those that are fitted alone, also where their sinks differ.
TEST_F(KvFit, SeveralCodecsInOnePassAreThoseOfOnePassEach) {
  RandomModelJob model_job;
  KvFitJob& job = model_job.job;
  job.sequences = random_sequences(8, 60, 101, 3);
  job.options.resize(3);
  job.options[1].variant = KvFitVariant::kLatent;
  job.options[1].bits = 3;
  job.options[2].method = KvFitMethod::kHiggs;
  job.options[2].num_sinks = 0;
  const std::vector<KvFitResult> together = fit_kv_codecs(job, {}, exec_);
  ASSERT_EQ(together.size(), 3u);
  EXPECT_EQ(together[0].train_tokens, 7 * 56);
  EXPECT_EQ(together[2].train_tokens, 7 * 60);
  const std::vector<KvFitOptions> all = job.options;
  for (std::size_t c = 0; c < all.size(); ++c) {
    SCOPED_TRACE(c);
    job.options = {all[c]};
    const KvFitResult alone = std::move(fit_kv_codecs(job, {}, exec_).front());
    EXPECT_EQ(kv_codec_fingerprint(together[c].file), kv_codec_fingerprint(alone.file));
    EXPECT_EQ(together[c].layers.back().value_reconstruction,
              alone.layers.back().value_reconstruction);
    EXPECT_EQ(together[c].held_out_tokens, alone.held_out_tokens);
  }
}

TEST_F(KvFit, AJobIsCheckedAndCanBeStopped) {
  RandomModelJob model_job;
  KvFitJob& job = model_job.job;
  job.options.resize(1);
  const auto code = [&](const KvFitCallbacks& callbacks) {
    try {
      fit_kv_codecs(job, callbacks, exec_);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code({}), ErrorCode::kInvalidArgument);  // no sequences
  job.sequences = random_sequences(8, 20, 101, 3);
  job.sequences[2][4] = 101;
  EXPECT_EQ(code({}), ErrorCode::kInvalidArgument);  // not a token
  job.sequences[2][4] = 100;
  job.options[0].num_sinks = 20;
  EXPECT_EQ(code({}), ErrorCode::kInvalidArgument);  // nothing behind the sinks
  job.options[0].num_sinks = 4;
  job.options.emplace_back().bits = 5;
  EXPECT_EQ(code({}), ErrorCode::kInvalidArgument);  // one of two cannot be
  job.options.clear();
  EXPECT_EQ(code({}), ErrorCode::kInvalidArgument);  // no codec
  job.options.resize(1);
  int asked = 0;
  EXPECT_EQ(code({.canceled = [&] { return ++asked > 3; }}), ErrorCode::kCanceled);
  EXPECT_FALSE(std::filesystem::exists(job.working_directory));
}

}  // namespace
}  // namespace lathe
