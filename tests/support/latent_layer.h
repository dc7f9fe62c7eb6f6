// One layer of a latent codec and the codes of some tokens, all made up.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/attention/latent_attention.h"
#include "quant/higgs.h"
#include "support/all_close.h"
#include "tensor/float16.h"

namespace lathe {

struct LatentLayer {
  RowShape shape{2, 64};
  int64_t num_heads = 4;
  RowFormat key_format, value_format;
  bool with_sigma = false;
  int64_t rank = 24, rotary_dim = 64, num_tokens = 100;
  int latent_bits = 4;
  bool values_from_keys = true;

  std::vector<float> sigma, step, key_weight, key_bias, value_key_weight, value_latent_weight,
      value_bias, cos, sin, q;
  std::vector<std::byte> latent_codes, key_codes, value_codes;

  // Fills what is above in; weights as bf16 has them.
  void make(uint64_t seed = 1) {
    const int64_t d = shape.width();
    const auto rounded = [](std::vector<float> x) {
      for (float& v : x) v = float_from_bf16(bf16_from_float(v));
      return x;
    };
    const auto spread = [](int64_t k) { return 1 / std::sqrt(static_cast<double>(k)); };
    sigma.clear();
    for (int64_t j = 0; j < d && with_sigma; ++j) {
      sigma.push_back(0.5f + 0.01f * static_cast<float>(j % 40));
    }
    key_format.hadamard = value_format.hadamard = !with_sigma;
    // Powers of two: z is exact in bf16 with 8 bits.
    step.assign(static_cast<std::size_t>(rank), latent_bits == 8 ? 0x1p-6f : 0.5f);
    key_weight = rounded(normal_values(d * rank, seed + 1, spread(rank)));
    value_latent_weight = rounded(normal_values(d * rank, seed + 2, spread(rank)));
    value_key_weight = rounded(normal_values(d * d, seed + 3, 0.5 * spread(d)));
    key_bias = rounded(normal_values(d, seed + 4));
    value_bias = rounded(normal_values(d, seed + 5));
    q = rounded(normal_values(num_heads * shape.head_dim, seed + 6));
    cos.clear(), sin.clear();
    for (int64_t i = 0; i < num_tokens * rotary_dim / 2; ++i) {
      const auto position = static_cast<double>(i / (rotary_dim / 2));
      const auto pair = static_cast<double>(i % (rotary_dim / 2));
      cos.push_back(static_cast<float>(std::cos(position / (1 + pair))));
      sin.push_back(static_cast<float>(std::sin(position / (1 + pair))));
    }
    latent_codes.resize(static_cast<std::size_t>(num_tokens * rank * latent_bits / 8));
    const auto numbers = normal_values(static_cast<int64_t>(latent_codes.size()), seed + 7, 40);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      latent_codes[i] = static_cast<std::byte>(static_cast<int>(std::nearbyint(numbers[i])) & 255);
    }
    std::vector<float> inverse_sigma;
    for (const float s : sigma) inverse_sigma.push_back(1 / s);
    for (const bool is_value : {false, true}) {
      const RowFormat& format = is_value ? value_format : key_format;
      auto& codes = is_value ? value_codes : key_codes;
      const int64_t size = row_bytes(format, shape);
      codes.resize(static_cast<std::size_t>(num_tokens * size));
      const auto rows = normal_values(num_tokens * d, seed + (is_value ? 9 : 8), 0.5);
      for (int64_t t = 0; t < num_tokens; ++t) {
        encode_row(format, shape, with_sigma ? inverse_sigma.data() : nullptr, rows.data() + t * d,
                   codes.data() + t * size);
      }
    }
  }

  LatentAttentionArgs args(int64_t first_token, float* out, float* log_sum) const {
    return {.shape = shape,
            .num_heads = num_heads,
            .key_format = key_format,
            .value_format = value_format,
            .key_sigma = with_sigma ? sigma.data() : nullptr,
            .value_sigma = with_sigma ? sigma.data() : nullptr,
            .rank = rank,
            .latent_bits = latent_bits,
            .latent_step = step.data(),
            .key_weight = key_weight.data(),
            .key_bias = key_bias.data(),
            .value_key_weight = values_from_keys ? value_key_weight.data() : nullptr,
            .value_latent_weight = value_latent_weight.data(),
            .value_bias = value_bias.data(),
            .latent_codes = latent_codes.data(),
            .key_codes = key_codes.data(),
            .value_codes = value_codes.data(),
            .first_token = first_token,
            .num_tokens = num_tokens,
            .cos = cos.data(),
            .sin = sin.data(),
            .rotary_dim = rotary_dim,
            .q = q.data(),
            .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim)),
            .out = out,
            .log_sum = log_sum};
  }
};

}  // namespace lathe
