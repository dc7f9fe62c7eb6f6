// A coded cache and a plain one beside it, fed with the same made-up rows.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "cache/coded_kv_cache.h"
#include "cache/layer_difference_codec.h"
#include "kernels/rope/rope.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {

constexpr int64_t kMaxTokens = 1024;

inline ModelConfig small_config() {
  ModelConfig config;
  config.num_layers = 5;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  return config;
}

// A made-up model: keys before RoPE and values of every layer and position, each layer near the one
// `stride` below it; and the rotation.
class Rows {
 public:
  explicit Rows(const ModelConfig& config, uint64_t seed = 1, int64_t stride = 1)
      : config_(config), half_(config.head_dim / 2) {
    const int64_t size = kMaxTokens * config.kv_size();
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      const bool first = layer < stride;
      k_raw_.push_back(normal_values(size, seed + uint64_t(layer) * 2, first ? 1 : 0.1));
      v_.push_back(normal_values(size, seed + uint64_t(layer) * 2 + 1, first ? 1 : 0.1));
      if (first) continue;
      for (std::size_t i = 0; i < std::size_t(size); ++i) {
        k_raw_.back()[i] += k_raw_[std::size_t(layer - stride)][i];
        v_.back()[i] += v_[std::size_t(layer - stride)][i];
      }
    }
    for (int64_t i = 0; i < kMaxTokens * half_; ++i) {
      const double angle = double(i / half_) * std::pow(100.0, -double(i % half_) / double(half_));
      cos_.push_back(float(std::cos(angle)));
      sin_.push_back(float(std::sin(angle)));
    }
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      k_.push_back(k_raw_[std::size_t(layer)]);
      std::vector<int64_t> positions;
      for (int64_t t = 0; t < kMaxTokens; ++t) positions.push_back(t);
      rope({.x = k_.back().data(),
            .y = k_.back().data(),
            .positions = positions.data(),
            .cos = cos_.data(),
            .sin = sin_.data(),
            .num_positions = kMaxTokens,
            .num_rows = kMaxTokens,
            .num_heads = config.num_kv_heads,
            .head_dim = config.head_dim,
            .rotary_dim = config.head_dim},
           owned_.exec);
    }
  }

  std::vector<KvRope> ropes() const {
    const KvRope rope{cos_.data(), sin_.data(), kMaxTokens, config_.head_dim};
    return std::vector<KvRope>(std::size_t(config_.num_layers), rope);
  }
  const float* k_raw(int64_t layer, int64_t t) const { return at(k_raw_, layer, t); }
  const float* k(int64_t layer, int64_t t) const { return at(k_, layer, t); }
  const float* v(int64_t layer, int64_t t) const { return at(v_, layer, t); }

 private:
  const float* at(const std::vector<std::vector<float>>& rows, int64_t layer, int64_t t) const {
    return rows[std::size_t(layer)].data() + t * config_.kv_size();
  }
  ModelConfig config_;
  int64_t half_;
  std::vector<std::vector<float>> k_raw_, k_, v_;
  std::vector<float> cos_, sin_;
  OwnedExec owned_{1};
};

// One step of one sequence: appends the next num_rows rows at every layer. Returns what attention
// with the query `q` ([num_heads, head_dim], for the last row) gives at each layer.
inline std::vector<float> step(KvCache& cache, KvSequence& sequence, const Rows& rows,
                               const ModelConfig& config, int64_t num_rows,
                               const std::vector<float>& q, Exec& exec) {
  EXPECT_TRUE(cache.reserve(sequence, num_rows));
  const KvRows run{&sequence, 0, num_rows};
  const int64_t begin = sequence.num_tokens;
  cache.begin_step({&run, 1}, exec);
  std::vector<float> outputs;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    cache.append(layer, rows.k_raw(layer, begin), rows.k(layer, begin), rows.v(layer, begin),
                 config.kv_size(), exec);
    std::vector<float> out(q.size());
    const AttentionSegment segment{0, 1, begin + num_rows - 1, cache.views(layer, 0).data()};
    attention({.q = q.data(),
               .out = out.data(),
               .segments = {&segment, 1},
               .element = cache.element(),
               .num_heads = config.num_heads,
               .num_kv_heads = config.num_kv_heads,
               .head_dim = config.head_dim,
               .scale = 0.25f},
              exec);
    outputs.insert(outputs.end(), out.begin(), out.end());
  }
  cache.commit();
  return outputs;
}

// Keys and values of all layers as attention sees them: [layer][position][key, value][kv_size].
inline std::vector<float> content(KvCache& cache, KvSequence& sequence, const ModelConfig& config,
                                  Exec& exec) {
  const KvRows run{&sequence, 0, 0};
  const LiveBlockShape shape{cache.element(), config.num_layers, config.num_kv_heads,
                             config.head_dim};
  const auto kv = std::size_t(config.kv_size());
  const auto num_tokens = std::size_t(sequence.num_tokens);
  std::vector<float> rows(std::size_t(config.num_layers) * num_tokens * 2 * kv);
  cache.begin_step({&run, 1}, exec);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    cache.append(layer, nullptr, nullptr, nullptr, 0, exec);
    const auto views = cache.views(layer, 0);
    for (std::size_t t = 0; t < num_tokens; ++t) {
      const KvBlockView& view = views[t / kBlockSize];
      float* row = rows.data() + (std::size_t(layer) * num_tokens + t) * 2 * kv;
      load_key(shape, static_cast<const std::byte*>(view.keys), int64_t(t) % kBlockSize, row);
      load_value(shape, static_cast<const std::byte*>(view.values), int64_t(t) % kBlockSize,
                 row + kv);
    }
  }
  cache.commit();
  return rows;
}

struct Pair {
  explicit Pair(KvCodecPolicy codec_policy, KvFormat format = KvFormat::kF32, int64_t stride = 1,
                bool encode_while_running = true)
      : rows(config, 1, stride),
        codec(config.num_layers, config.kv_size(), codec_policy, stride),
        coded(config, codec, rows.ropes(),
              {.live_format = format,
               .live_tokens = 2048,
               .coded_tokens = 2048,
               .max_sequence_tokens = kMaxTokens,
               .encode_while_running = encode_while_running}),
        plain(make_kv_cache(config, format, 2048, kMaxTokens)),
        a(coded.new_sequence()),
        b(plain->new_sequence()),
        q(normal_values(config.num_heads * config.head_dim, 99)) {}

  // Both caches take the same rows; returns the largest difference of the attention outputs.
  double advance(int64_t num_rows) {
    const auto x = step(coded, a, rows, config, num_rows, q, owned.exec);
    const auto y = step(*plain, b, rows, config, num_rows, q, owned.exec);
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_TRUE(std::isfinite(x[i]));
      worst = std::max(worst, std::fabs(double{x[i]} - double{y[i]}));
    }
    return worst;
  }

  // Which positions of the coded cache differ from the plain one in some layer, and by how much.
  std::vector<double> differences() {
    const auto x = content(coded, a, config, owned.exec);
    const auto y = content(*plain, b, config, owned.exec);
    const auto num_tokens = std::size_t(a.num_tokens);
    const auto row = std::size_t(2 * config.kv_size());
    std::vector<double> worst(num_tokens);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t t = i / row % num_tokens;
      worst[t] = std::max(worst[t], std::fabs(double{x[i]} - double{y[i]}));
    }
    return worst;
  }

  const ModelConfig config = small_config();
  const Rows rows;
  const LayerDifferenceCodec codec;
  CodedKvCache coded;
  const std::unique_ptr<KvCache> plain;
  KvSequence a, b;
  const std::vector<float> q;
  OwnedExec owned{2};
};

}  // namespace lathe
