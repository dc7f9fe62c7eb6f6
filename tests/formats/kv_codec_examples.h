// Random codecs of every variant, for tests.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "formats/kv_codec_file.h"
#include "support/all_close.h"

namespace lathe {

inline std::vector<float> codec_numbers(int64_t count, uint64_t seed, double stddev) {
  auto numbers = normal_values(count, seed, stddev);
  KvPredictor rounded;
  rounded.w1 = std::move(numbers);
  round_predictor(rounded, DType::kBF16);
  return rounded.w1;
}

inline KvPredictor random_predictor(const KvCodecFile& file, KvPredictor::Weight weight,
                                    std::vector<KvPredictorInput> inputs, uint64_t seed) {
  KvPredictor p;
  p.weight = weight;
  p.inputs = std::move(inputs);
  const int64_t d = file.shape.width();
  const int64_t in = kv_input_width(file, p);
  const double spread = 0.5 / std::sqrt(double(in + 1));
  if (weight == KvPredictor::Weight::kDense) p.w1 = codec_numbers(d * in, seed, spread);
  if (weight == KvPredictor::Weight::kBlockDiagonal) {
    p.w1 = codec_numbers(d * int64_t(p.inputs.size()) * file.shape.head_dim, seed, spread);
  }
  if (weight == KvPredictor::Weight::kLowRank) {
    p.rank = 5;
    p.w1 = codec_numbers(p.rank * in, seed, spread);
    p.w2 = codec_numbers(d * p.rank, seed + 1, 0.5);
  }
  p.bias = codec_numbers(d, seed + 2, 0.3);
  return p;
}

// variant: dense, low-rank, block-diagonal, star, latent, latent-values, latent-alone (values too:
// what attention on a GPU reads as it lies), mean, none, int, sigma.
inline KvCodecFile random_codec(const std::string& variant, int64_t num_layers, RowShape shape,
                                int bits = 2, uint64_t seed = 1) {
  using Kind = KvPredictorInput::Kind;
  using Weight = KvPredictor::Weight;
  KvCodecFile file;
  file.method = variant == "int" ? "int" : variant == "none" ? "higgs" : "aqua";
  file.variant = variant;
  file.bits = bits;
  file.model_fingerprint = std::string(64, 'a');
  file.shape = shape;
  const bool latent = variant.substr(0, 6) == "latent", alone = variant == "latent-alone";
  for (int64_t first = 0; latent && first < num_layers; first += 2) {
    KvLatent z;
    for (int64_t l = first; l < std::min(first + 2, num_layers); ++l) z.layers.push_back(l);
    z.with_values = variant == "latent-values";
    z.rank = alone ? 32 : 6;
    z.bits = first == 0 || alone ? 4 : 8;
    const int64_t in = int64_t(z.layers.size()) * shape.width() * (z.with_values ? 2 : 1);
    z.projection =
        codec_numbers(z.rank * in, seed + 500 + uint64_t(first), 1 / std::sqrt(double(in)));
    z.mean = codec_numbers(in, seed + 600, 0.1);
    z.sigma = std::vector<float>(std::size_t(z.rank), 0.75f);
    file.latents.push_back(z);
  }
  for (int64_t l = 0; l < num_layers; ++l) {
    KvPlane key, value;
    key.format = {.bits = l == 0 && !alone ? 4 : bits};
    if (variant == "int") key.format = {.method = RowMethod::kUniform, .bits = bits, .group = 8};
    value.format = key.format;
    const uint64_t s = seed + 10 * uint64_t(l);
    const auto predictor = [&](Weight weight, std::vector<KvPredictorInput> inputs, uint64_t n) {
      return random_predictor(file, weight, std::move(inputs), s + n);
    };
    const Weight weight = variant == "low-rank"         ? Weight::kLowRank
                          : variant == "block-diagonal" ? Weight::kBlockDiagonal
                                                        : Weight::kDense;
    const int64_t base = variant == "star" ? 0 : l - 1;
    if (variant == "mean" || variant == "sigma") {
      key.predictor = predictor(Weight::kNone, {}, 0);
      value.predictor = predictor(Weight::kNone, {}, 3);
    } else if (latent) {
      key.predictor = predictor(Weight::kDense, {{Kind::kLatent, l / 2}}, 0);
      std::vector<KvPredictorInput> inputs = {{Kind::kKeys, l}, {Kind::kLatent, l / 2}};
      if (alone) inputs.erase(inputs.begin());
      value.predictor = predictor(Weight::kDense, inputs, 3);
    } else if (variant != "none" && variant != "int" && l > 0) {
      key.predictor = predictor(weight, {{Kind::kKeys, base}}, 0);
      value.predictor = predictor(weight, {{Kind::kKeys, l}, {Kind::kValues, base}}, 3);
    }
    if (variant == "sigma") {
      key.format.hadamard = value.format.hadamard = false;
      key.sigma = value.sigma = std::vector<float>(std::size_t(shape.width()), 0.5f);
    }
    file.keys.push_back(std::move(key));
    file.values.push_back(std::move(value));
  }
  return file;
}

inline const char* const kCodecVariants[] = {"dense",  "low-rank",      "block-diagonal", "star",
                                             "latent", "latent-values", "latent-alone",   "mean",
                                             "none",   "int",           "sigma"};

}  // namespace lathe
