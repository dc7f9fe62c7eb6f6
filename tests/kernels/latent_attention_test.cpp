#include "kernels/attention/latent_attention.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/latent_layer.h"

namespace lathe {
namespace {

std::size_t at(int64_t i) { return static_cast<std::size_t>(i); }

// Keys and values rebuilt as the codec has it, [num_tokens, d] each, in double.
struct Rebuilt {
  std::vector<double> keys, values;
};
Rebuilt rebuild(const LatentLayer& layer) {
  const int64_t d = layer.shape.width(), rank = layer.rank;
  Rebuilt rebuilt;
  const float* sigma = layer.with_sigma ? layer.sigma.data() : nullptr;
  for (int64_t t = 0; t < layer.num_tokens; ++t) {
    std::vector<uint8_t> codes(at(rank));
    unpack_codes(layer.latent_codes.data() + t * rank * layer.latent_bits / 8, rank,
                 layer.latent_bits, codes.data());
    std::vector<float> z, r(at(d)), s(at(d));
    for (int64_t j = 0; j < rank; ++j) {
      z.push_back(layer.step[at(j)] * (layer.latent_bits == 4
                                           ? higgs_grid(4, 1).points[codes[at(j)]]
                                           : static_cast<float>(int8_t(codes[at(j)]))));
    }
    decode_row(layer.key_format, layer.shape, sigma,
               layer.key_codes.data() + t * row_bytes(layer.key_format, layer.shape), r.data());
    decode_row(layer.value_format, layer.shape, sigma,
               layer.value_codes.data() + t * row_bytes(layer.value_format, layer.shape), s.data());
    const std::size_t begin = rebuilt.keys.size();
    for (int64_t i = 0; i < d; ++i) {
      double key = double{layer.key_bias[at(i)]} + double{r[at(i)]};
      for (int64_t j = 0; j < rank; ++j) {
        key += double{layer.key_weight[at(i * rank + j)]} * double{z[at(j)]};
      }
      rebuilt.keys.push_back(key);
    }
    for (int64_t i = 0; i < d; ++i) {
      double value = double{layer.value_bias[at(i)]} + double{s[at(i)]};
      for (int64_t j = 0; j < rank; ++j) {
        value += double{layer.value_latent_weight[at(i * rank + j)]} * double{z[at(j)]};
      }
      for (int64_t j = 0; j < d && layer.values_from_keys; ++j) {
        value += double{layer.value_key_weight[at(i * d + j)]} * rebuilt.keys[begin + at(j)];
      }
      rebuilt.values.push_back(value);
    }
  }
  return rebuilt;
}

// Absorbing the values' predictor changes nothing: attention over rebuilt rows, which is the
// definition, gives the same.
TEST(LatentAttention, IsAttentionOverRebuiltRows) {
  for (const int latent_bits : {4, 8}) {
    for (const bool values_from_keys : {true, false}) {
      for (const bool with_sigma : {false, true}) {
        for (const int64_t head_dim : {64, 24}) {
          LatentLayer layer;
          layer.shape = {2, head_dim};
          layer.latent_bits = latent_bits;
          layer.values_from_keys = values_from_keys;
          layer.with_sigma = with_sigma;
          layer.value_format.bits = 3;
          layer.rotary_dim = head_dim == 64 ? 64 : 16;
          layer.make();
          const int64_t e = head_dim, d = layer.shape.width(), half = layer.rotary_dim / 2;
          const Rebuilt rebuilt = rebuild(layer);
          std::vector<float> out(at(layer.num_heads * e)), log_sum(at(layer.num_heads));
          const int64_t first = 5;
          latent_attention_ref(layer.args(first, out.data(), log_sum.data()));
          for (int64_t head = 0; head < layer.num_heads; ++head) {
            const int64_t column = head / 2 * e;
            double total = 0;
            std::vector<double> sum(at(e));
            for (int64_t t = first; t < layer.num_tokens; ++t) {
              const double* key = rebuilt.keys.data() + t * d + column;
              double score = 0;
              for (int64_t j = 0; j < e; ++j) {
                double turned = key[j];
                if (j < half) {
                  turned = key[j] * double{layer.cos[at(t * half + j)]} -
                           key[j + half] * double{layer.sin[at(t * half + j)]};
                } else if (j < 2 * half) {
                  turned = key[j] * double{layer.cos[at(t * half + j - half)]} +
                           key[j - half] * double{layer.sin[at(t * half + j - half)]};
                }
                score += double{layer.q[at(head * e + j)]} * turned;
              }
              const double weight = std::exp(score * double{1 / std::sqrt(static_cast<float>(e))});
              total += weight;
              for (int64_t j = 0; j < e; ++j) {
                sum[at(j)] += weight * rebuilt.values[at(t * d + column + j)];
              }
            }
            EXPECT_NEAR(log_sum[at(head)], std::log(total), 1e-6 * std::fabs(std::log(total)));
            for (int64_t j = 0; j < e; ++j) {
              // Doubles, rounded to float once: numbers of a size of some units.
              EXPECT_NEAR(out[at(head * e + j)], sum[at(j)] / total, 4 * 0x1p-23)
                  << head << " " << j;
            }
          }
        }
      }
    }
  }
}

// What a GPU multiplies sums of latents by: B (U z + u) + C z + b of any z.
TEST(LatentAttention, AbsorbedWeights) {
  for (const bool values_from_keys : {true, false}) {
    LatentLayer layer;
    layer.values_from_keys = values_from_keys;
    layer.make();
    const int64_t d = layer.shape.width(), rank = layer.rank;
    std::vector<float> weight(at(d * rank)), bias(at(d));
    absorb_latent_values(layer.args(0, nullptr, nullptr), weight.data(), bias.data());
    const std::vector<float> z = normal_values(rank, 33);
    std::vector<double> key;
    for (int64_t i = 0; i < d; ++i) {
      key.push_back(layer.key_bias[at(i)]);
      for (int64_t j = 0; j < rank; ++j) {
        key.back() += double{layer.key_weight[at(i * rank + j)]} * double{z[at(j)]};
      }
    }
    for (int64_t i = 0; i < d; ++i) {
      double wanted = layer.value_bias[at(i)], got = bias[at(i)], size = std::fabs(got);
      for (int64_t j = 0; j < rank; ++j) {
        const double product = double{weight[at(i * rank + j)]} * double{z[at(j)]};
        wanted += double{layer.value_latent_weight[at(i * rank + j)]} * double{z[at(j)]};
        got += product, size += std::fabs(product);
      }
      for (int64_t j = 0; j < d && values_from_keys; ++j) {
        wanted += double{layer.value_key_weight[at(i * d + j)]} * key[at(j)];
      }
      EXPECT_NEAR(got, wanted, size * 0x1p-24 + 1e-12) << i;  // each weight rounded once
    }
  }
}

TEST(LatentAttention, RefusesWhatCannotBe) {
  LatentLayer layer;
  layer.make();
  std::vector<float> out(4 * 64), log_sum(4);
  const auto code = [&](auto&& edit) {
    LatentAttentionArgs args = layer.args(0, out.data(), log_sum.data());
    edit(args);
    try {
      latent_attention_ref(args);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  using Args = LatentAttentionArgs;
  EXPECT_EQ(code([](Args& a) { a.num_heads = 3; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a) { a.first_token = a.num_tokens; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a) { a.latent_bits = 3; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a) { a.rotary_dim = 66; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a) { a.key_format.method = RowMethod::kUniform; }),
            ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace lathe
