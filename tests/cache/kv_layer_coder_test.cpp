#include "cache/kv_layer_coder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "formats/kv_codec_examples.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

constexpr RowShape kShape{2, 16};
constexpr int64_t kWidth = 32;

using Rows = std::vector<float>;  // [num_rows, kWidth]

// Exact rows of every layer: each near the one below.
struct Sample {
  Sample(int64_t num_layers, int64_t num_rows) : rows(num_rows) {
    for (int64_t l = 0; l < num_layers; ++l) {
      keys.push_back(normal_values(num_rows * kWidth, uint64_t(2 * l + 100)));
      values.push_back(normal_values(num_rows * kWidth, uint64_t(2 * l + 101)));
      for (std::size_t i = 0; l > 0 && i < keys[0].size(); ++i) {
        keys.back()[i] = keys[std::size_t(l) - 1][i] + 0.3f * keys.back()[i];
        values.back()[i] = values[std::size_t(l) - 1][i] + 0.3f * values.back()[i];
      }
    }
  }
  int64_t rows;
  std::vector<Rows> keys, values;
};

struct Coded {
  std::vector<Rows> keys, values, latents;    // reconstructed
  std::vector<std::vector<std::byte>> codes;  // [keys, values of each layer], then latents
};

std::vector<const float*> inputs_of(const KvPlaneCoder& plane, const Coded& coded) {
  std::vector<const float*> inputs;
  for (const KvPredictorInput& input : plane.inputs()) {
    const auto i = std::size_t(input.index);
    inputs.push_back((input.kind == KvPredictorInput::Kind::kKeys     ? coded.keys[i]
                      : input.kind == KvPredictorInput::Kind::kValues ? coded.values[i]
                                                                      : coded.latents[i])
                         .data());
  }
  return inputs;
}

// Encodes rows [begin, end) of the sample, all layers.
Coded encode(const KvCodecFile& file, const Sample& sample, int64_t begin, int64_t end) {
  OwnedExec owned(1);
  const KvLayerCoder coder(file);
  const int64_t n = end - begin;
  Coded out;
  std::vector<float> scratch(std::size_t(n * 64 + 1));
  std::vector<std::vector<std::byte>> latent_codes;
  for (const KvLatentCoder& latent : coder.latents()) {
    std::vector<const float*> parts;
    for (const int64_t l : latent.layers())
      parts.push_back(&sample.keys[std::size_t(l)][std::size_t(begin * kWidth)]);
    if (latent.with_values()) {
      for (const int64_t l : latent.layers())
        parts.push_back(&sample.values[std::size_t(l)][std::size_t(begin * kWidth)]);
    }
    out.latents.emplace_back(std::size_t(n * latent.rank()));
    latent_codes.emplace_back(std::size_t(n * latent.code_bytes()));
    latent.encode(parts.data(), out.latents.back().data(), n, latent_codes.back().data(),
                  latent.code_bytes(), scratch.data(), owned.exec);
  }
  for (int64_t l = 0; l < file.num_layers(); ++l) {
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      const KvPlaneCoder& plane = coder.plane(l, side);
      const Rows& exact = (side == KvSide::kKeys ? sample.keys : sample.values)[std::size_t(l)];
      const auto inputs = inputs_of(plane, out);
      Rows rows(std::size_t(n * kWidth));
      std::vector<std::byte> codes(std::size_t(n * plane.code_bytes()));
      plane.encode(inputs.data(), exact.data() + begin * kWidth, rows.data(), n, codes.data(),
                   plane.code_bytes(), scratch.data(), owned.exec);
      (side == KvSide::kKeys ? out.keys : out.values).push_back(std::move(rows));
      out.codes.push_back(std::move(codes));
    }
  }
  for (auto& codes : latent_codes) out.codes.push_back(std::move(codes));
  return out;
}

// The other way, from the codes alone.
Coded decode(const KvCodecFile& file, const Coded& from, int64_t n) {
  OwnedExec owned(1);
  const KvLayerCoder coder(file);
  Coded out;
  std::vector<float> scratch(std::size_t(n * 64 + 1));
  const auto planes = std::size_t(2 * file.num_layers());
  for (std::size_t g = 0; g < coder.latents().size(); ++g) {
    const KvLatentCoder& latent = coder.latents()[g];
    out.latents.emplace_back(std::size_t(n * latent.rank()));
    latent.decode(from.codes[planes + g].data(), latent.code_bytes(), out.latents.back().data(), n);
  }
  for (int64_t l = 0; l < file.num_layers(); ++l) {
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      const KvPlaneCoder& plane = coder.plane(l, side);
      const auto inputs = inputs_of(plane, out);
      Rows rows(std::size_t(n * kWidth));
      plane.decode(inputs.data(), from.codes[std::size_t(2 * l) + (side == KvSide::kValues)].data(),
                   plane.code_bytes(), rows.data(), n, scratch.data(), owned.exec);
      (side == KvSide::kKeys ? out.keys : out.values).push_back(std::move(rows));
    }
  }
  return out;
}

bool same(const Coded& a, const Coded& b) {
  for (std::size_t l = 0; l < a.keys.size(); ++l) {
    if (!same_bits(a.keys[l], b.keys[l]) || !same_bits(a.values[l], b.values[l])) return false;
  }
  return true;
}

TEST(KvLayerCoder, DecodingGivesWhatEncodingLeft) {
  const Sample sample(5, 9);
  for (const char* variant : kCodecVariants) {
    SCOPED_TRACE(variant);
    const KvCodecFile file = random_codec(variant, 5, kShape);
    validate(file, "codec");
    const Coded coded = encode(file, sample, 0, 9);
    EXPECT_TRUE(same(decode(file, coded, 9), coded));
  }
}

TEST(KvLayerCoder, ZeroPredictorsAreHiggsBitForBit) {
  const Sample sample(4, 7);
  KvCodecFile aqua = random_codec("dense", 4, kShape);
  for (auto* planes : {&aqua.keys, &aqua.values}) {
    for (KvPlane& plane : *planes) {
      for (float& w : plane.predictor.w1) w = 0;
      for (float& b : plane.predictor.bias) b = 0;
    }
  }
  const KvCodecFile higgs = random_codec("none", 4, kShape);
  const Coded a = encode(aqua, sample, 0, 7);
  const Coded b = encode(higgs, sample, 0, 7);
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_TRUE(same(a, b));
}

TEST(KvLayerCoder, RowsDoNotDependOnTheirBatch) {
  const Sample sample(4, 33);
  for (const char* variant : kCodecVariants) {
    SCOPED_TRACE(variant);
    const KvCodecFile file = random_codec(variant, 4, kShape);
    const Coded whole = encode(file, sample, 0, 33);
    for (const auto& [begin, end] : {std::pair{0, 1}, {5, 6}, {1, 8}, {20, 33}}) {
      const Coded part = encode(file, sample, begin, end);
      for (std::size_t i = 0; i < whole.codes.size(); ++i) {
        const auto bytes = int64_t(whole.codes[i].size()) / 33;
        EXPECT_TRUE(std::equal(part.codes[i].begin(), part.codes[i].end(),
                               whole.codes[i].begin() + begin * bytes));
      }
      for (std::size_t l = 0; l < 4; ++l) {
        const auto from = std::size_t(begin * kWidth);
        EXPECT_TRUE(same_bits(part.values[l],
                              std::span(whole.values[l]).subspan(from, part.values[l].size())));
      }
    }
  }
}

// The closed loop (spec 1.2): what a layer's reconstruction misses is what its own quantizer misses
// of its own residual; nothing of the layers below. Up to rounding: exact - p and p + decoded round
// once each, to 2^-24 of numbers below 8.
TEST(KvLayerCoder, TheErrorOfALayerIsThatOfItsQuantizer) {
  const Sample sample(6, 5);
  const KvCodecFile file = random_codec("dense", 6, kShape);
  const Coded coded = encode(file, sample, 0, 5);
  const KvLayerCoder coder(file);
  OwnedExec owned(1);
  for (int64_t l = 1; l < 6; ++l) {
    const KvPlaneCoder& plane = coder.plane(l, KvSide::kKeys);
    Rows p(std::size_t(5 * kWidth));
    plane.predict(inputs_of(plane, coded).data(), p.data(), 5, nullptr, owned.exec);
    for (int64_t t = 0; t < 5; ++t) {
      Rows residual(kWidth), quantized(kWidth);
      for (std::size_t j = 0; j < kWidth; ++j) {
        residual[j] = sample.keys[std::size_t(l)][std::size_t(t * kWidth) + j] -
                      p[std::size_t(t * kWidth) + j];
      }
      std::vector<std::byte> code(std::size_t(plane.code_bytes()));
      encode_row(file.keys[std::size_t(l)].format, kShape, nullptr, residual.data(), code.data());
      decode_row(file.keys[std::size_t(l)].format, kShape, nullptr, code.data(), quantized.data());
      for (std::size_t j = 0; j < kWidth; ++j) {
        const std::size_t i = std::size_t(t * kWidth) + j;
        EXPECT_NEAR(coded.keys[std::size_t(l)][i] - sample.keys[std::size_t(l)][i],
                    quantized[j] - residual[j], 4 * 8 * 0x1p-24);
      }
    }
  }
}

// Layers that follow from the reconstructed one below without rest leave nothing to store, and come
// back exactly: the residual is zero, a zero row decodes to zero.
TEST(KvLayerCoder, ExactLinearDependenceLeavesNothing) {
  const KvCodecFile file = random_codec("dense", 4, kShape);
  const KvLayerCoder coder(file);
  OwnedExec owned(1);
  Sample sample(4, 6);
  for (std::size_t l = 1; l < 4; ++l) {
    const Coded below = encode(file, sample, 0, 6);
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      const KvPlaneCoder& plane = coder.plane(int64_t(l), side);
      Coded now = encode(file, sample, 0, 6);
      Rows& exact = (side == KvSide::kKeys ? sample.keys : sample.values)[l];
      plane.predict(inputs_of(plane, now).data(), exact.data(), 6, nullptr, owned.exec);
    }
    const Coded coded = encode(file, sample, 0, 6);
    EXPECT_EQ(coded.keys[l], sample.keys[l]);
    EXPECT_EQ(coded.values[l], sample.values[l]);
    EXPECT_NE(coded.keys[l], below.keys[l]);
  }
}

// A dense weight of full rank written as two factors (identity first) predicts the same.
TEST(KvLayerCoder, FullRankIsDense) {
  KvCodecFile dense = random_codec("dense", 3, kShape);
  KvCodecFile low = dense;
  for (auto* planes : {&low.keys, &low.values}) {
    for (KvPlane& plane : *planes) {
      KvPredictor& p = plane.predictor;
      if (p.inputs.size() != 1) continue;
      p.weight = KvPredictor::Weight::kLowRank;
      p.rank = kWidth;
      p.w2 = p.w1;
      p.w1.assign(std::size_t(kWidth * kWidth), 0);
      for (std::size_t j = 0; j < kWidth; ++j) p.w1[j * kWidth + j] = 1;
    }
  }
  const Sample sample(3, 5);
  EXPECT_TRUE(same(encode(dense, sample, 0, 5), encode(low, sample, 0, 5)));
}

TEST(KvLayerCoder, BlockDiagonalIsDenseWithZeros) {
  const KvCodecFile block = random_codec("block-diagonal", 3, kShape);
  KvCodecFile dense = block;
  const int64_t e = kShape.head_dim;
  for (auto* planes : {&dense.keys, &dense.values}) {
    for (KvPlane& plane : *planes) {
      KvPredictor& p = plane.predictor;
      if (p.inputs.empty()) continue;
      const auto n = int64_t(p.inputs.size());
      std::vector<float> full(std::size_t(kWidth * kWidth * n), 0.0f);
      for (int64_t j = 0; j < kWidth; ++j) {
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t k = 0; k < e; ++k) {
            full[std::size_t(j * kWidth * n + i * kWidth + j / e * e + k)] =
                p.w1[std::size_t((j * n + i) * e + k)];
          }
        }
      }
      p.weight = KvPredictor::Weight::kDense;
      p.w1 = full;
    }
  }
  const Sample sample(3, 5);
  // Sums with zeros between them: the same order, so the same bits.
  EXPECT_TRUE(same(encode(dense, sample, 0, 5), encode(block, sample, 0, 5)));
}

TEST(KvLayerCoder, ManyRowsOnManyThreadsAreTheSame) {
  const Sample sample(2, 300);
  for (const char* variant : {"dense", "low-rank", "latent-values"}) {
    const KvCodecFile file = random_codec(variant, 2, kShape);
    const KvLayerCoder coder(file);
    const Coded coded = encode(file, sample, 0, 300);
    for (const int num_threads : {1, 3}) {
      OwnedExec owned(num_threads);
      const KvPlaneCoder& plane = coder.plane(1, KvSide::kValues);
      Rows rows(std::size_t(300 * kWidth));
      encode_rows(plane, inputs_of(plane, coded).data(), sample.values[1].data(), rows.data(), 300,
                  owned.exec);
      EXPECT_TRUE(same_bits(rows, coded.values[1])) << variant;
      if (coder.latents().empty()) continue;
      const float* parts[] = {sample.keys[0].data(), sample.keys[1].data(), sample.values[0].data(),
                              sample.values[1].data()};
      std::vector<float> z(coded.latents[0].size());
      encode_rows(coder.latents()[0], parts, z.data(), 300, owned.exec);
      EXPECT_TRUE(same_bits(z, coded.latents[0]));
    }
  }
}

}  // namespace
}  // namespace lathe
