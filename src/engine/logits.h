// Passes over a row of logits: up to some 260,000 entries, so they run in vector registers.
#pragma once
#include <bit>
#include <cstdint>
#include <span>

namespace lathe {

// 2^f = sum of f^k (ln 2)^k / k!, from k = 7 down.
inline constexpr float kExp2Series[8] = {
    1.52527338e-5f, 1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f,
    5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.0f};
inline constexpr float kExpRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer

// exp(x) for x <= 0, from multiplications and additions alone: the same bits on every machine,
// which the C library does not promise (a seed should mean the same text everywhere). With x = (n +
// f) ln 2 and |f| <= 1/2, the rounding of x / ln 2 gives a relative error of |x| 2^-24, the series
// and its evaluation less than 4e-7. Below 2^-126, and for NaN: 0.
inline float exp_nonpositive(float x) {
  const float scaled = x * 1.44269504f;
  const bool in_range = scaled > -126.0f;
  const float clamped = in_range ? scaled : -126.0f;
  const float shifted = clamped + kExpRound;
  const float f = clamped - (shifted - kExpRound);
  float p = kExp2Series[0];
  for (int i = 1; i < 8; ++i) p = p * f + kExp2Series[i];
  const int32_t n = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kExpRound);
  const float power = std::bit_cast<float>((n + 127) << 23);
  return in_range ? p * power : 0.0f;
}

// The largest value, NaN passed over; -infinity when there is none.
float max_value(std::span<const float> values);

// Index of the largest value; the first one on a tie; -1 when empty or when the largest is NaN or
// infinite (a broken forward pass).
int64_t argmax(std::span<const float> values);

// weights[i] = exp((logits[i] - max_logit) * inverse_temperature); max_logit is their largest.
// Returns the sum.
double softmax_weights(std::span<const float> logits, float max_logit, float inverse_temperature,
                       float* weights);

// log(sum(exp(values))).
double log_sum_exp(std::span<const float> values);

}  // namespace lathe
