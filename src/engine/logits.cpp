#include "engine/logits.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace lathe {
namespace {

constexpr std::size_t kLanes = 16;

// The compilers' portable vectors (GCC and Clang): four lanes are one register of every x86-64 and
// ARM64 machine, so no instruction set needs to be asked for.
using Floats = float __attribute__((vector_size(16)));
using Ints = int32_t __attribute__((vector_size(16)));

// exp_nonpositive() of each lane, operation by operation.
Floats exp_nonpositive(Floats x) {
  const Floats scaled = x * 1.44269504f;
  const Ints in_range = scaled > -126.0f;
  const Floats clamped = in_range ? scaled : Floats{} - 126.0f;
  const Floats shifted = clamped + kExpRound;
  const Floats f = clamped - (shifted - kExpRound);
  Floats p = Floats{} + kExp2Series[0];
  for (int i = 1; i < 8; ++i) p = p * f + kExp2Series[i];
  const Ints n = std::bit_cast<Ints>(shifted) - std::bit_cast<int32_t>(kExpRound);
  const Floats power = std::bit_cast<Floats>((n + 127) << 23);
  return in_range ? p * power : Floats{};
}

}  // namespace

float max_value(std::span<const float> values) {
  float best[kLanes];
  std::fill(best, best + kLanes, -std::numeric_limits<float>::infinity());
  const std::size_t vector_end = values.size() / kLanes * kLanes;
  for (std::size_t i = 0; i < vector_end; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      best[j] = values[i + j] > best[j] ? values[i + j] : best[j];
    }
  }
  float result = best[0];
  for (const float value : best) result = value > result ? value : result;
  for (std::size_t i = vector_end; i < values.size(); ++i) {
    result = values[i] > result ? values[i] : result;
  }
  return result;
}

int64_t argmax(std::span<const float> values) {
  const float best = max_value(values);
  if (!std::isfinite(best)) return -1;
  return std::find(values.begin(), values.end(), best) - values.begin();
}

double softmax_weights(std::span<const float> logits, float max_logit, float inverse_temperature,
                       float* weights) {
  constexpr std::size_t kWidth = sizeof(Floats) / sizeof(float);
  double sums[kWidth] = {};
  const std::size_t vector_end = logits.size() / kWidth * kWidth;
  for (std::size_t i = 0; i < vector_end; i += kWidth) {
    Floats x;
    std::memcpy(&x, logits.data() + i, sizeof x);
    const Floats w = exp_nonpositive((x - max_logit) * inverse_temperature);
    std::memcpy(weights + i, &w, sizeof w);
    for (std::size_t j = 0; j < kWidth; ++j) sums[j] += static_cast<double>(w[j]);
  }
  double sum = 0;
  for (const double lane : sums) sum += lane;
  for (std::size_t i = vector_end; i < logits.size(); ++i) {
    weights[i] = lathe::exp_nonpositive((logits[i] - max_logit) * inverse_temperature);
    sum += static_cast<double>(weights[i]);
  }
  return sum;
}

double log_sum_exp(std::span<const float> values) {
  const float best = max_value(values);
  constexpr std::size_t kPiece = 1024;
  float weights[kPiece];
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); i += kPiece) {
    sum += softmax_weights(values.subspan(i, std::min(kPiece, values.size() - i)), best, 1.0f,
                           weights);
  }
  return static_cast<double>(best) + std::log(sum);
}

}  // namespace lathe
