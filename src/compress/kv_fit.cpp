#include "compress/kv_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "compress/kv_fit_measure.h"

namespace lathe {
namespace {

std::size_t index(int64_t i) { return static_cast<std::size_t>(i); }

std::vector<float> to_float(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

// The bias that keeps the means, for weights as they are stored: the rounding of a weight times a
// large mean would be a constant error.
void centre_bias(KvPredictor& predictor, const Moments& moments, int64_t num_inputs,
                 int64_t num_heads) {
  const int64_t d = moments.size - num_inputs;
  std::vector<double> bias(moments.mean.begin() + num_inputs, moments.mean.end());
  const auto subtract = [&](const std::vector<float>& w, const std::vector<double>& x,
                            std::vector<double>& y, double sign) {
    const std::size_t columns = x.size();
    for (std::size_t o = 0; o < y.size(); ++o) {
      for (std::size_t i = 0; i < columns; ++i) y[o] += sign * double{w[o * columns + i]} * x[i];
    }
  };
  const std::vector<double> x(moments.mean.begin(), moments.mean.begin() + num_inputs);
  switch (predictor.weight) {
    case KvPredictor::Weight::kNone:
      break;
    case KvPredictor::Weight::kDense:
      subtract(predictor.w1, x, bias, -1);
      break;
    case KvPredictor::Weight::kLowRank: {
      std::vector<double> hidden(index(predictor.rank), 0.0);
      subtract(predictor.w1, x, hidden, 1);
      subtract(predictor.w2, hidden, bias, -1);
      break;
    }
    case KvPredictor::Weight::kBlockDiagonal: {
      const int64_t e = d / num_heads;
      const int64_t num_sources = num_inputs / d;
      for (int64_t o = 0; o < d; ++o) {
        for (int64_t s = 0; s < num_sources; ++s) {
          for (int64_t j = 0; j < e; ++j) {
            bias[index(o)] -= double{predictor.w1[index((o * num_sources + s) * e + j)]} *
                              x[index(s * d + o / e * e + j)];
          }
        }
      }
      break;
    }
  }
  predictor.bias = to_float(bias);
}

// As rank 0 has it. The inputs are known to all.
void broadcast_predictor(Communicator& ranks, KvPredictor& predictor) {
  broadcast_value(ranks, 0, predictor.weight);
  broadcast_value(ranks, 0, predictor.rank);
  broadcast_vector(ranks, 0, predictor.w1);
  broadcast_vector(ranks, 0, predictor.w2);
  broadcast_vector(ranks, 0, predictor.bias);
}

// Projection, mean and scales of a latent of `num_parts` parts of `width` columns each, from their
// moments.
void solve_latent(KvLatent& latent, Moments& moments, std::size_t num_parts, int64_t width,
                  DType dtype, Exec& exec) {
  // Keys and values of every layer count alike: each part is scaled to a total variance of one for
  // the choice of directions, and the scale goes into the projection.
  std::vector<double> scale(index(moments.size), 1.0);
  for (std::size_t part = 0; part < num_parts; ++part) {
    const int64_t begin = static_cast<int64_t>(part) * width;
    const double variance = moments.variance(begin, begin + width);
    const double factor = latent.with_values && variance > 0 ? 1 / std::sqrt(variance) : 1;
    for (int64_t j = 0; j < width; ++j) scale[index(begin + j)] = factor;
  }
  for (int64_t i = 0; i < moments.size; ++i) {
    for (int64_t j = 0; j < moments.size; ++j) {
      moments.covariance[index(i * moments.size + j)] *= scale[index(i)] * scale[index(j)];
    }
  }
  const PrincipalComponents pca = principal_components(moments, latent.rank, exec);
  latent.projection.resize(pca.basis.size());
  for (std::size_t i = 0; i < pca.basis.size(); ++i) {
    latent.projection[i] = static_cast<float>(pca.basis[i] * scale[i % index(moments.size)]);
  }
  latent.mean = to_float(moments.mean);
  const double smallest = std::max(pca.variance.front() * 1e-12, 1e-30);
  for (const double variance : pca.variance) {
    latent.sigma.push_back(static_cast<float>(std::sqrt(std::max(variance, smallest))));
  }
  round_latent(latent, dtype);
}

}  // namespace

double kv_fit_gap(const KvCodecFile& file) {
  double gap = 0;
  const auto add = [&](const std::vector<KvPlane>& planes,
                       const std::vector<KvFitQuality>& qualities) {
    for (std::size_t i = 0; i < qualities.size(); ++i) {
      if (planes[i].predictor.weight == KvPredictor::Weight::kNone) continue;
      gap = std::max(
          gap, qualities[i].train_explained_variance - qualities[i].heldout_explained_variance);
    }
  };
  add(file.keys, file.key_quality);
  add(file.values, file.value_quality);
  return gap;
}

KvFitter::KvFitter(const ModelConfig& config, const KvFitOptions& options,
                   std::vector<int32_t> train, std::vector<int32_t> held_out, int64_t num_rows,
                   Communicator* ranks)
    : config_(config),
      options_(options),
      train_(std::move(train)),
      held_out_(std::move(held_out)),
      num_rows_(num_rows),
      width_(config.kv_size()),
      ranks_(ranks != nullptr ? *ranks : solo_) {
  check_kv_fit_options(options_, config_);
  double counts[] = {static_cast<double>(train_.size()), static_cast<double>(held_out_.size())};
  all_reduce_sum(ranks_, counts);
  if (counts[0] == 0 || counts[1] == 0) {
    fail(ErrorCode::kInvalidArgument, "no calibration tokens behind the ", options_.num_sinks,
         " sinks to fit and to judge by; give longer or more sequences");
  }
  file_.method = kv_fit_method_name(options_.method);
  const bool aqua = options_.method == KvFitMethod::kAqua;
  file_.variant = aqua ? std::string(kv_fit_variant_name(options_.variant))
                       : std::string(options_.mean ? "mean" : "none");
  file_.bits = options_.bits;
  file_.first_layer_bits = options_.resolved_first_layer_bits();
  file_.num_sinks = options_.num_sinks;
  file_.window = options_.window;
  file_.chunk_tokens = options_.chunk_tokens;
  file_.predictor_dtype = options_.predictor_dtype;
  file_.shape = {config_.num_kv_heads, config_.head_dim};
  group_of_.assign(index(config_.num_layers), -1);
  if (aqua &&
      (options_.variant == KvFitVariant::kStar || options_.variant == KvFitVariant::kLatent)) {
    plan_groups();
  }
}

// Groups of consecutive layers of one kind.
void KvFitter::plan_groups() {
  for (const bool sliding : {false, true}) {
    Group group{.layers = {}, .sliding = sliding};
    const auto close = [&] {
      if (!group.layers.empty()) groups_.push_back(group);
      group.layers.clear();
    };
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      if (config_.layer_is_sliding[index(layer)] != sliding) continue;
      group.layers.push_back(layer);
      if (static_cast<int64_t>(group.layers.size()) == options_.group_layers) close();
    }
    close();
  }
  // In the order of their first layers: the order in which they are fitted.
  std::sort(groups_.begin(), groups_.end(),
            [](const Group& a, const Group& b) { return a.layers.front() < b.layers.front(); });
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    for (const int64_t layer : groups_[g].layers) group_of_[index(layer)] = int64_t(g);
  }
  if (options_.has_latents()) {
    latents_.resize(groups_.size());
    exact_latents_.resize(groups_.size());
  }
}

// The layer whose rows predict this one's; -1: none.
int64_t KvFitter::base_of(int64_t layer) const {
  if (options_.method != KvFitMethod::kAqua || options_.has_latents()) return -1;
  if (options_.variant == KvFitVariant::kStar) {
    const int64_t anchor = groups_[index(group_of_[index(layer)])].layers.front();
    return anchor == layer ? -1 : anchor;
  }
  int64_t base = layer - 1;
  while (base >= 0 &&
         config_.layer_is_sliding[index(base)] != config_.layer_is_sliding[index(layer)]) {
    --base;
  }
  return base;
}

void KvFitter::add_layer(Buffer keys, Buffer values, Exec& exec) {
  LATHE_CHECK(num_added_ < config_.num_layers);
  LATHE_CHECK(keys.size() == num_rows_ * width_ * int64_t{sizeof(float)} &&
              values.size() == keys.size());
  held_.push_back({num_added_, std::move(keys), std::move(values), {}, {}});
  ++num_added_;
  fit_ready_layers(exec);
}

void KvFitter::fit_ready_layers(Exec& exec) {
  while (num_fitted_ < num_added_) {
    const int64_t layer = num_fitted_;
    const int64_t group = group_of_[index(layer)];
    if (!latents_.empty()) {
      if (groups_[index(group)].layers.back() >= num_added_) return;  // wait for the whole group
      if (groups_[index(group)].layers.front() == layer) fit_latent(group, exec);
    }
    with_context(str("layer ", layer), [&] { fit_layer(rows_of(layer), exec); });
    ++num_fitted_;
    if (!latents_.empty() && groups_[index(group)].layers.back() == layer) {
      latents_[index(group)] = Buffer(0);
      exact_latents_[index(group)] = Buffer(0);
    }
    std::erase_if(held_, [&](const LayerRows& rows) {
      return rows.layer < num_fitted_ && !needed_later(rows.layer, num_fitted_);
    });
  }
}

// Whether a layer from `done` on is predicted from `layer`.
bool KvFitter::needed_later(int64_t layer, int64_t done) const {
  for (int64_t later = done; later < config_.num_layers; ++later) {
    if (base_of(later) == layer) return true;
  }
  return false;
}

KvFitter::LayerRows& KvFitter::rows_of(int64_t layer) {
  const auto place = std::find_if(held_.begin(), held_.end(),
                                  [&](const LayerRows& rows) { return rows.layer == layer; });
  LATHE_CHECK(place != held_.end());
  return *place;
}

KvFitter::Source KvFitter::rows_source(int64_t layer, KvPredictorInput::Kind kind) {
  LayerRows& rows = rows_of(layer);
  const bool is_keys = kind == KvPredictorInput::Kind::kKeys;
  const float* coded = (is_keys ? rows.coded_keys : rows.coded_values).as<float>();
  const float* exact = (is_keys ? rows.keys : rows.values).as<float>();
  return {.input = {kind, layer},
          .fitted = {options_.exact_inputs ? exact : coded, width_},
          .coded = coded};
}

void KvFitter::fit_latent(int64_t group, Exec& exec) {
  const Group& members = groups_[index(group)];
  KvLatent latent;
  latent.layers = members.layers;
  latent.with_values = options_.latent_values;
  latent.rank = options_.resolved_rank(file_.shape);
  latent.bits = options_.latent_bits;
  std::vector<RowColumns> tables;
  for (const int64_t layer : members.layers) {
    tables.push_back({rows_of(layer).keys.as<float>(), width_});
  }
  if (latent.with_values) {
    for (const int64_t layer : members.layers) {
      tables.push_back({rows_of(layer).values.as<float>(), width_});
    }
  }
  Moments moments = collect_moments(tables, train_, exec, &ranks_);
  latent.rank = std::min(latent.rank, moments.size);
  if (ranks_.rank() == 0) {
    solve_latent(latent, moments, tables.size(), width_, options_.predictor_dtype, exec);
  }
  broadcast_vector(ranks_, 0, latent.projection);
  broadcast_vector(ranks_, 0, latent.mean);
  broadcast_vector(ranks_, 0, latent.sigma);
  file_.latents.push_back(latent);

  const KvLatentCoder coder(file_, file_.latents.back());
  std::vector<const float*> parts;
  for (const RowColumns& table : tables) parts.push_back(table.data);
  Buffer coded(num_rows_ * latent.rank * int64_t{sizeof(float)});
  encode_rows(coder, parts.data(), coded.as<float>(), num_rows_, exec);
  latents_[index(group)] = std::move(coded);
  if (options_.exact_inputs) {
    exact_latents_[index(group)] = project_rows(latent, parts, num_rows_, width_, exec);
  }
}

void KvFitter::fit_layer(LayerRows& rows, Exec& exec) {
  using Kind = KvPredictorInput::Kind;
  const int64_t layer = rows.layer;
  const int64_t base = base_of(layer);
  std::vector<Source> key_sources, value_sources;
  if (base >= 0) {
    key_sources.push_back(rows_source(base, Kind::kKeys));
    if (options_.keys_from_values) key_sources.push_back(rows_source(base, Kind::kValues));
  }
  const int64_t group = group_of_[index(layer)];
  if (!latents_.empty()) {
    const Buffer& coded = latents_[index(group)];
    const Buffer& fitted = options_.exact_inputs ? exact_latents_[index(group)] : coded;
    key_sources.push_back({.input = {Kind::kLatent, group},
                           .fitted = {fitted.as<float>(), file_.latents[index(group)].rank},
                           .coded = coded.as<float>()});
  }
  const bool has_prediction = !key_sources.empty();
  file_.keys.emplace_back();
  file_.values.emplace_back();
  file_.key_quality.emplace_back();
  file_.value_quality.emplace_back();
  reports_.emplace_back();
  fit_plane(rows, KvSide::kKeys, key_sources, has_prediction && options_.predict_keys, exec);

  if (has_prediction) {
    if (latents_.empty() || options_.values_from_keys) {
      value_sources.push_back(rows_source(layer, Kind::kKeys));
    }
    if (base >= 0) value_sources.push_back(rows_source(base, Kind::kValues));
    if (!latents_.empty()) value_sources.push_back(key_sources.back());
  }
  fit_plane(rows, KvSide::kValues, value_sources, has_prediction && options_.predict_values, exec);
  if (!options_.exact_inputs) {  // the exact rows have done their part
    rows.keys = Buffer(0);
    rows.values = Buffer(0);
  }
}

KvPredictor KvFitter::predictor_of(std::span<const Source> sources, const float* target,
                                   bool predicts, Exec& exec) const {
  KvPredictor predictor;
  if (!predicts && !options_.mean) return predictor;
  std::vector<RowColumns> tables;
  int64_t num_inputs = 0;
  std::vector<KvPredictorInput> inputs;
  if (predicts) {
    for (const Source& source : sources) {
      inputs.push_back(source.input);
      tables.push_back(source.fitted);
      num_inputs += source.fitted.width;
    }
  }
  tables.push_back({target, width_});
  const Moments moments = collect_moments(tables, train_, exec, &ranks_);
  if (ranks_.rank() == 0) predictor = solve(moments, num_inputs, predicts, exec);
  broadcast_predictor(ranks_, predictor);
  predictor.inputs = std::move(inputs);
  return predictor;
}

KvPredictor KvFitter::solve(const Moments& moments, int64_t num_inputs, bool predicts,
                            Exec& exec) const {
  KvPredictor predictor;
  if (predicts) {
    if (options_.variant == KvFitVariant::kBlockDiagonal) {
      const LinearFit fit = fit_block_diagonal(moments, num_inputs, width_, config_.num_kv_heads,
                                               options_.ridge, exec);
      predictor.weight = KvPredictor::Weight::kBlockDiagonal;
      const int64_t e = config_.head_dim;
      for (int64_t o = 0; o < width_; ++o) {
        for (int64_t source = 0; source < num_inputs; source += width_) {
          const double* from = fit.weight.data() + o * num_inputs + source + o / e * e;
          for (int64_t j = 0; j < e; ++j) predictor.w1.push_back(static_cast<float>(from[j]));
        }
      }
    } else {
      const LinearFit fit = fit_ridge(moments, num_inputs, options_.ridge, exec);
      if (options_.variant == KvFitVariant::kLowRank) {
        const LowRankFit low =
            reduce_rank(moments, fit, std::min(options_.resolved_rank(file_.shape), width_), exec);
        predictor.weight = KvPredictor::Weight::kLowRank;
        predictor.rank = low.rank;
        predictor.w1 = to_float(low.down);
        predictor.w2 = to_float(low.up);
      } else {
        predictor.weight = KvPredictor::Weight::kDense;
        predictor.w1 = to_float(fit.weight);
      }
    }
  }
  round_predictor(predictor, options_.predictor_dtype);
  centre_bias(predictor, moments, num_inputs, config_.num_kv_heads);
  round_predictor(predictor, options_.predictor_dtype);
  return predictor;
}

void KvFitter::fit_plane(LayerRows& rows, KvSide side, std::span<const Source> sources,
                         bool predicts, Exec& exec) {
  const bool is_keys = side == KvSide::kKeys;
  const float* exact = (is_keys ? rows.keys : rows.values).as<float>();
  KvPlane& plane = is_keys ? file_.keys.back() : file_.values.back();
  // What stands alone at the beginning of a chain gets the bits of the first layer.
  const bool alone = sources.empty() && (options_.method == KvFitMethod::kAqua || rows.layer == 0);
  plane.format =
      options_.format(alone ? options_.resolved_first_layer_bits() : options_.bits, file_.shape);
  plane.predictor = predictor_of(sources, exact, predicts, exec);
  std::vector<const float*> inputs;
  if (predicts) {
    for (const Source& source : sources) inputs.push_back(source.coded);
  }
  Buffer predicted(num_rows_ * width_ * int64_t{sizeof(float)});
  predict_rows(KvPlaneCoder(file_, plane), inputs.data(), predicted.as<float>(), num_rows_, exec);
  const RowErrors train = row_errors(exact, predicted.as<float>(), width_, train_, &ranks_);
  const RowErrors held_out = row_errors(exact, predicted.as<float>(), width_, held_out_, &ranks_);
  KvFitQuality& quality = is_keys ? file_.key_quality.back() : file_.value_quality.back();
  quality = {.train_relative_mse = train.relative_mse(),
             .heldout_relative_mse = held_out.relative_mse(),
             .train_explained_variance = train.explained_variance(),
             .heldout_explained_variance = held_out.explained_variance()};
  if (!options_.hadamard && options_.method != KvFitMethod::kInt) {
    KvPredictor scales;  // only to round them as they are stored
    scales.bias = residual_sigma(exact, predicted.as<float>(), width_, train_, &ranks_);
    round_predictor(scales, options_.predictor_dtype);
    plane.sigma = std::move(scales.bias);
  }
  Buffer& coded = is_keys ? rows.coded_keys : rows.coded_values;
  coded = std::move(predicted);  // its memory: the coder does not read predicted rows
  encode_rows(KvPlaneCoder(file_, plane), inputs.data(), exact, coded.as<float>(), num_rows_, exec);
  const double error =
      row_errors(exact, coded.as<float>(), width_, held_out_, &ranks_).relative_mse();
  (is_keys ? reports_.back().key_reconstruction : reports_.back().value_reconstruction) = error;
}

KvCodecFile KvFitter::finish() {
  LATHE_CHECK(num_fitted_ == config_.num_layers);
  validate(file_, "the fitted codec");
  return std::move(file_);
}

int64_t KvFitter::memory_bytes(const ModelConfig& config, const KvFitOptions& options,
                               int64_t num_rows) {
  const int64_t plane = num_rows * config.kv_size() * int64_t{sizeof(float)};
  const int64_t kinds =
      std::count(config.layer_is_sliding.begin(), config.layer_is_sliding.end(), true) > 0 ? 2 : 1;
  if (options.has_latents()) {
    // A group's exact rows, those of one layer as coded, the latent.
    return kinds * (2 * options.group_layers * plane + plane) + 3 * plane;
  }
  // Exact and coded rows of this layer, and of the one below for each kind.
  return 4 * plane + kinds * (options.exact_inputs ? 4 : 2) * plane;
}

}  // namespace lathe
