#include "compress/channel_scaling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "base/check.h"
#include "base/error.h"
#include "compress/gptq.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr float kSmallest = 1e-5f;
constexpr int64_t kAwqRows = 256;  // rows of a weight that judge a candidate

std::vector<LayerLinear*> linears_of(LayerWeights& weights, LinearKind kind, int64_t expert) {
  std::vector<LayerLinear*> out;
  for (LayerLinear& linear : weights.linears) {
    if (linear.slot.kind == kind && linear.slot.expert == expert) out.push_back(&linear);
  }
  return out;
}

// The largest |w| of each input channel over the linears that share it.
std::vector<float> weight_amax(const std::vector<LayerLinear*>& linears) {
  const int64_t k = linears[0]->slot.k;
  std::vector<float> amax(static_cast<std::size_t>(k));
  for (const LayerLinear* linear : linears) {
    const float* w = linear->weights.dense.as<float>();
    for (int64_t i = 0; i < linear->slot.n; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        auto& a = amax[static_cast<std::size_t>(j)];
        a = std::max(a, std::fabs(w[i * k + j]));
      }
    }
  }
  return amax;
}

// Channels of o's input that come from one row of v share their factor: all heads of a group.
class SharedChannels {
 public:
  SharedChannels(const ModelConfig& config, LinearKind kind, int64_t k)
      : config_(config), shared_(kind == LinearKind::kO), k_(k) {}
  int64_t num_free() const { return shared_ ? config_.kv_size() : k_; }
  int64_t free_channel(int64_t j) const {
    if (!shared_) return j;
    const int64_t head = j / config_.head_dim;
    return head / (config_.num_heads / config_.num_kv_heads) * config_.head_dim +
           j % config_.head_dim;
  }
  // The largest value of the channels that share a factor.
  std::vector<float> reduce_max(const std::vector<float>& values) const {
    std::vector<float> out(static_cast<std::size_t>(num_free()), 0.0f);
    for (int64_t j = 0; j < k_; ++j) {
      auto& o = out[static_cast<std::size_t>(free_channel(j))];
      o = std::max(o, values[static_cast<std::size_t>(j)]);
    }
    return out;
  }
  std::vector<float> expand(const std::vector<float>& values) const {
    std::vector<float> out(static_cast<std::size_t>(k_));
    for (int64_t j = 0; j < k_; ++j) {
      out[static_cast<std::size_t>(j)] = values[static_cast<std::size_t>(free_channel(j))];
    }
    return out;
  }

 private:
  const ModelConfig& config_;
  bool shared_;
  int64_t k_;
};

// Rows [first, first + t.size()) of a linear and its bias, divided by t.
void divide_rows(LayerLinear& linear, const std::vector<float>& t) {
  const int64_t k = linear.slot.k;
  LATHE_CHECK(linear.slot.n == static_cast<int64_t>(t.size()));
  float* w = linear.weights.dense.as<float>();
  for (int64_t i = 0; i < linear.slot.n; ++i) {
    const float inverse = 1.0f / t[static_cast<std::size_t>(i)];
    for (int64_t j = 0; j < k; ++j) w[i * k + j] *= inverse;
    if (!linear.weights.bias.empty()) linear.weights.bias.as<float>()[i] *= inverse;
  }
}

float rounded_to(DType dtype, float value) {
  if (dtype == DType::kBF16) return float_from_bf16(bf16_from_float(value));
  if (dtype == DType::kF16) return float_from_f16(f16_from_float(value));
  return value;
}

// gain / t as it will be stored; t is changed to what that division really was.
void divide_gain(Tensor& gain, std::vector<float>& t, bool plus_one, DType store_dtype) {
  float* g = gain.as<float>();
  for (std::size_t j = 0; j < t.size(); ++j) {
    const float offset = plus_one ? 1.0f : 0.0f;
    const float stored = rounded_to(store_dtype, g[j] / t[j] - offset) + offset;
    // A gain of 0 has no channel to scale.
    t[j] = stored != 0 && g[j] != 0 ? g[j] / stored : 1.0f;
    if (g[j] != 0) g[j] = stored != 0 ? stored : g[j];
  }
}

void multiply_columns(LayerLinear& linear, const std::vector<float>& t) {
  float* w = linear.weights.dense.as<float>();
  const int64_t k = linear.slot.k;
  for (int64_t i = 0; i < linear.slot.n; ++i) {
    for (int64_t j = 0; j < k; ++j) w[i * k + j] *= t[static_cast<std::size_t>(j)];
  }
}

std::vector<float> smooth_factors(const std::vector<LayerLinear*>& linears,
                                  const InputStatistics& statistics, const SharedChannels& shared,
                                  double alpha) {
  const std::vector<float> x = shared.reduce_max(statistics.amax());
  const std::vector<float> w = shared.reduce_max(weight_amax(linears));
  std::vector<float> t(x.size());
  for (std::size_t j = 0; j < t.size(); ++j) {
    const double numerator = std::pow(double{std::max(x[j], kSmallest)}, alpha);
    const double denominator = std::pow(double{std::max(w[j], kSmallest)}, 1 - alpha);
    t[j] = static_cast<float>(std::clamp(numerator / denominator, 1e-4, 1e4));
    if (x[j] == 0) t[j] = 1;
  }
  return t;
}

// Every so many-th row, kAwqRows at most.
Tensor sampled_rows(const LayerLinear& linear) {
  const int64_t k = linear.slot.k;
  const int64_t n = std::min(linear.slot.n, kAwqRows);
  Tensor rows(DType::kF32, {n, k});
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(rows.as<float>() + i * k,
                linear.weights.dense.as<float>() + i * linear.slot.n / n * k,
                static_cast<std::size_t>(k) * sizeof(float));
  }
  return rows;
}

std::vector<float> awq_factors(const std::vector<LayerLinear*>& linears,
                               const InputStatistics& statistics, const float* h,
                               const SharedChannels& shared, const QuantizeOptions& options,
                               Exec& exec) {
  const int64_t k = linears[0]->slot.k;
  const std::vector<float> magnitude = shared.reduce_max(statistics.mean_abs());
  std::vector<Tensor> samples;
  for (const LayerLinear* linear : linears) samples.push_back(sampled_rows(*linear));

  std::vector<float> best(magnitude.size(), 1.0f);
  double best_error = std::numeric_limits<double>::infinity();
  for (int step = 0; step < options.awq_grid; ++step) {
    const double beta = static_cast<double>(step) / options.awq_grid;
    std::vector<float> t(magnitude.size());
    float low = std::numeric_limits<float>::infinity();
    float high = 0;
    for (std::size_t j = 0; j < t.size(); ++j) {
      t[j] = std::max(static_cast<float>(std::pow(double{magnitude[j]}, beta)), 1e-4f);
      low = std::min(low, t[j]);
      high = std::max(high, t[j]);
    }
    const float norm = std::sqrt(low * high);
    for (float& v : t) v /= norm;
    const std::vector<float> columns = shared.expand(t);
    double error = 0;
    for (const Tensor& sample : samples) {
      const int64_t n = sample.dim(0);
      Tensor scaled = sample.clone();
      float* w = scaled.as<float>();
      for (int64_t i = 0; i < n * k; ++i) w[i] *= columns[static_cast<std::size_t>(i % k)];
      QuantizedMatrix matrix = make_quantized_matrix(options.format, n, k);
      const ScaleProblem problem{&matrix, w, nullptr};
      choose_scales({&problem, 1}, options.scales, exec);
      round_to_nearest(matrix, w, exec);
      dequantize_rows(matrix, 0, n, w);
      const float* original = sample.as<float>();
      for (int64_t i = 0; i < n * k; ++i) {
        w[i] = original[i] - w[i] / columns[static_cast<std::size_t>(i % k)];
      }
      error += output_error(w, n, h, k, exec);
    }
    if (error < best_error) {
      best_error = error;
      best = t;
    }
  }
  return best;
}

}  // namespace

void smooth_layer(LayerWeights& weights, LayerStatistics& statistics, const ModelConfig& config,
                  const QuantizeOptions& options, DType store_dtype, Exec& exec) {
  for (auto& [key, input] : statistics.inputs) {
    const auto [kind, expert] = key;
    if (kind == LinearKind::kGateUp && expert >= 0) continue;
    const std::vector<LayerLinear*> linears = linears_of(weights, kind, expert);
    const int64_t k = linears[0]->slot.k;
    const SharedChannels shared(config, kind, k);
    std::vector<float> t;
    if (options.method == QuantizeMethod::kSmoothQuant) {
      t = smooth_factors(linears, input.calibration, shared, options.smooth_alpha);
    } else {
      Buffer h = input.calibration.copy_hessian(exec);
      t = awq_factors(linears, input.calibration, h.as<float>(), shared, options, exec);
    }
    switch (kind) {
      case LinearKind::kQkv:
        divide_gain(weights.input_norm, t, config.norm_plus_one, store_dtype);
        break;
      case LinearKind::kGateUp:
        divide_gain(weights.mlp_norm, t, config.norm_plus_one, store_dtype);
        break;
      case LinearKind::kO:
        divide_rows(*linears_of(weights, LinearKind::kQkv, -1).back(), t);
        break;
      case LinearKind::kDown:
        divide_rows(*linears_of(weights, LinearKind::kGateUp, expert).back(), t);
        break;
    }
    const std::vector<float> columns = shared.expand(t);
    for (LayerLinear* linear : linears) multiply_columns(*linear, columns);
    input.calibration.divide_channels(columns);
    if (input.held_out) input.held_out->divide_channels(columns);
  }
}

}  // namespace lathe
