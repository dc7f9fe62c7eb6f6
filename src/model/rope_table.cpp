#include "model/rope_table.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace lathe {
namespace {

using Scaling = RopeConfig::Scaling;
constexpr double kPi = 3.14159265358979323846;

int64_t original_length(const RopeConfig& config, int64_t max_position_embeddings) {
  return config.original_max_position_embeddings > 0 ? config.original_max_position_embeddings
                                                     : max_position_embeddings;
}

// theta^(2j / rotary_dim): the wavelength of pair j over 2 pi.
double period(double theta, int64_t j, int64_t rotary_dim) {
  return std::pow(theta, static_cast<double>(2 * j) / static_cast<double>(rotary_dim));
}

double llama3(const RopeConfig& config, double original, double frequency) {
  const double wavelength = 2 * kPi / frequency;
  if (wavelength < original / config.high_freq_factor) return frequency;
  if (wavelength > original / config.low_freq_factor) return frequency / config.factor;
  const double smooth = (original / wavelength - config.low_freq_factor) /
                        (config.high_freq_factor - config.low_freq_factor);
  return (1 - smooth) * frequency / config.factor + smooth * frequency;
}

// Peng et al., "YaRN" (2023), section 3.2: pairs that turn more than beta_fast times within the
// original length keep their frequency, those that turn less than beta_slow times are
// interpolated, and between the two pair indices the mixture is linear.
std::vector<double> yarn(const RopeConfig& config, int64_t rotary_dim, double original) {
  const double dim = static_cast<double>(rotary_dim);
  const auto pair_with_turns = [&](double turns) {
    return dim * std::log(original / (turns * 2 * kPi)) / (2 * std::log(config.theta));
  };
  const double low = std::max(std::floor(pair_with_turns(config.beta_fast)), 0.0);
  double high = std::min(std::ceil(pair_with_turns(config.beta_slow)), dim - 1);
  if (low == high) high += 0.001;  // as published: keeps the ramp finite
  std::vector<double> frequencies;
  for (int64_t j = 0; j < rotary_dim / 2; ++j) {
    const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
    const double frequency = 1 / period(config.theta, j, rotary_dim);
    frequencies.push_back(frequency / config.factor * ramp + frequency * (1 - ramp));
  }
  return frequencies;
}

double attention_factor(const RopeConfig& config, double original, double maximum) {
  if (config.scaling != Scaling::kYarn && config.scaling != Scaling::kLongRope) return 1;
  if (config.attention_factor > 0) return config.attention_factor;
  if (config.scaling == Scaling::kYarn) {
    return config.factor > 1 ? 0.1 * std::log(config.factor) + 1 : 1;
  }
  const double factor = config.factor > 1 ? config.factor : maximum / original;
  return factor > 1 ? std::sqrt(1 + std::log(factor) / std::log(original)) : 1;
}

void check(const RopeConfig& config, int64_t rotary_dim, int64_t max_position_embeddings) {
  const bool needs_length = config.scaling != Scaling::kNone && config.scaling != Scaling::kLinear;
  if (rotary_dim < 2 || rotary_dim % 2 != 0 || !(config.theta > 1) || !(config.factor > 0) ||
      (needs_length && original_length(config, max_position_embeddings) < 2)) {
    fail(ErrorCode::kInvalidArgument, "rope: rotary_dim ", rotary_dim, ", theta ", config.theta,
         ", factor ", config.factor, ", trained for ",
         original_length(config, max_position_embeddings), " positions");
  }
  if (config.scaling == Scaling::kDynamic && rotary_dim < 4) {
    fail(ErrorCode::kInvalidArgument, "rope: dynamic scaling needs rotary_dim 4 or more, not ",
         rotary_dim);
  }
  if (config.scaling == Scaling::kLlama3 && !(config.high_freq_factor > config.low_freq_factor)) {
    fail(ErrorCode::kInvalidArgument, "rope: high_freq_factor ", config.high_freq_factor,
         " is not above low_freq_factor ", config.low_freq_factor);
  }
  if (config.scaling == Scaling::kLongRope) {
    const auto num_pairs = static_cast<std::size_t>(rotary_dim / 2);
    if (config.short_factor.size() != num_pairs || config.long_factor.size() != num_pairs) {
      fail(ErrorCode::kInvalidArgument, "rope: longrope has ", config.short_factor.size(),
           " short and ", config.long_factor.size(), " long factors for ", num_pairs, " pairs");
    }
  }
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeConfig& config, int64_t rotary_dim,
                                 int64_t max_position_embeddings, int64_t sequence_length) {
  check(config, rotary_dim, max_position_embeddings);
  const double original = static_cast<double>(original_length(config, max_position_embeddings));
  const double dim = static_cast<double>(rotary_dim);
  double theta = config.theta;
  if (config.scaling == Scaling::kDynamic) {
    const double length = std::max(static_cast<double>(sequence_length), original);
    theta *= std::pow(config.factor * length / original - (config.factor - 1), dim / (dim - 2));
  }
  const auto& long_or_short =
      static_cast<double>(sequence_length) > original ? config.long_factor : config.short_factor;

  std::vector<double> frequencies;
  if (config.scaling == Scaling::kYarn) {
    frequencies = yarn(config, rotary_dim, original);
  } else {
    for (int64_t j = 0; j < rotary_dim / 2; ++j) {
      double frequency = 1 / period(theta, j, rotary_dim);
      if (config.scaling == Scaling::kLinear) frequency /= config.factor;
      if (config.scaling == Scaling::kLlama3) frequency = llama3(config, original, frequency);
      if (config.scaling == Scaling::kLongRope) {
        frequency /= long_or_short[static_cast<std::size_t>(j)];
      }
      frequencies.push_back(frequency);
    }
  }
  RopeFrequencies result;
  for (const double frequency : frequencies) {
    result.inverse.push_back(static_cast<float>(frequency));
  }
  result.attention_factor =
      attention_factor(config, original, static_cast<double>(max_position_embeddings));
  return result;
}

RopeTable::RopeTable(const RopeConfig& config, int64_t rotary_dim, int64_t max_position_embeddings,
                     int64_t num_positions)
    : original_length_(original_length(config, max_position_embeddings)),
      num_positions_(num_positions) {
  first_ = make_table(rope_frequencies(config, rotary_dim, max_position_embeddings,
                                       std::min(original_length_, num_positions)),
                      num_positions);
  const bool by_length =
      config.scaling == Scaling::kLongRope || config.scaling == Scaling::kDynamic;
  if (by_length && num_positions > original_length_) {
    beyond_ =
        make_table(rope_frequencies(config, rotary_dim, max_position_embeddings, num_positions),
                   num_positions);
  }
}

RopeTable::Table RopeTable::make_table(const RopeFrequencies& frequencies, int64_t num_positions) {
  Table table;
  const std::size_t size = frequencies.inverse.size() * static_cast<std::size_t>(num_positions);
  table.cos.reserve(size);
  table.sin.reserve(size);
  for (int64_t position = 0; position < num_positions; ++position) {
    for (const float inverse : frequencies.inverse) {
      // The angle is rounded to fp32, since it was when the models were trained (position *
      // inv_freq in transformers): at position 30,000 that is 1e-3 radians in the first pair.
      const float angle = static_cast<float>(position) * inverse;
      table.cos.push_back(
          static_cast<float>(std::cos(double{angle}) * frequencies.attention_factor));
      table.sin.push_back(
          static_cast<float>(std::sin(double{angle}) * frequencies.attention_factor));
    }
  }
  return table;
}

RopeTable::View RopeTable::view(int64_t sequence_length) const {
  const Table& table =
      sequence_length > original_length_ && !beyond_.cos.empty() ? beyond_ : first_;
  return {table.cos.data(), table.sin.data(), num_positions_};
}

}  // namespace lathe
