#include "quant/mx_scale.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "quant/fp4_e2m1.h"
#include "quant/fp8.h"

namespace lathe {
namespace {

struct NamedRule {
  std::string_view name;
  MxScaleRule rule;
};
constexpr NamedRule kRules[] = {
    {"ocp_floor", MxScaleRule::kOcpFloor}, {"ct_even", MxScaleRule::kCtEven},
    {"ceil", MxScaleRule::kCeil},          {"absmax_x3", MxScaleRule::kAbsmaxX3},
    {"paper_eq1", MxScaleRule::kPaperEq1}, {"quest", MxScaleRule::kQuest},
    {"mse_pow2", MxScaleRule::kMsePow2},   {"mse_pow2_x3", MxScaleRule::kMsePow2X3},
};

float absmax(std::span<const float> group) {
  float amax = 0;
  for (const float x : group) amax = std::max(amax, std::fabs(x));
  return amax;
}

int quest_exponent(std::span<const float> group) {
  double sum = 0;
  double sum_sq = 0;
  const auto n = static_cast<double>(group.size());
  for (const float x : group) sum += double{x};
  const double mean = sum / n;
  for (const float x : group) sum_sq += (double{x} - mean) * (double{x} - mean);
  const double scale = std::sqrt(sum_sq / n) * 2.92247856 / 6 + 1e-8;
  return std::ilogb(scale);
}

// Exponents floor(log2 a) - 5 .. floor(log2 a): below, more than half of the range of E2M1 would be
// clipped; above, the largest element would be at most 1 (2 on the grid of thirds). The lowest wins
// a tie.
int least_squares_exponent(std::span<const float> group, int amax_exponent, double divisor) {
  int best = amax_exponent;
  double best_error = 0;
  for (int exponent = amax_exponent - 5; exponent <= amax_exponent; ++exponent) {
    const double scale = std::ldexp(1.0, exponent) / divisor;
    double error = 0;
    for (const float x : group) {
      const double decoded = double{e2m1_to_float(e2m1_from_double(double{x} / scale))} * scale;
      error += (double{x} - decoded) * (double{x} - decoded);
    }
    if (exponent == amax_exponent - 5 || error < best_error) {
      best = exponent;
      best_error = error;
    }
  }
  return best;
}

}  // namespace

MxScaleRule mx_scale_rule_from_name(std::string_view name) {
  std::string known;
  for (const NamedRule& entry : kRules) {
    if (entry.name == name) return entry.rule;
    known += (known.empty() ? "" : ", ");
    known += entry.name;
  }
  fail(ErrorCode::kInvalidArgument, "scale rule '", name, "' is not known; take one of ", known);
}

std::string_view mx_scale_rule_name(MxScaleRule rule) {
  for (const NamedRule& entry : kRules) {
    if (entry.rule == rule) return entry.name;
  }
  return "?";
}

float mx_global_scale(MxScaleRule rule) {
  switch (rule) {
    case MxScaleRule::kAbsmaxX3:
    case MxScaleRule::kMsePow2X3:
      return 3.0f;
    case MxScaleRule::kPaperEq1:
      return 0.75f;
    default:
      return 1.0f;
  }
}

uint8_t mx_scale_byte(MxScaleRule rule, std::span<const float> group) {
  if (rule == MxScaleRule::kQuest) return e8m0_from_exponent(quest_exponent(group));
  const float amax = absmax(group);
  if (amax == 0) return 0;
  const int exponent = floor_log2(amax);
  const double significand = std::ldexp(double{amax}, -exponent);  // [1, 2)
  switch (rule) {
    case MxScaleRule::kOcpFloor:
      return e8m0_from_exponent(exponent - 2);
    case MxScaleRule::kCtEven:
      return e8m0_from_exponent(exponent - 2 + (significand >= 1.75));
    case MxScaleRule::kCeil:
      return e8m0_from_exponent(exponent - 2 + (significand > 1.5));
    case MxScaleRule::kAbsmaxX3:
      return e8m0_from_exponent(exponent);
    case MxScaleRule::kPaperEq1:
      return e8m0_from_exponent(static_cast<int>(std::nearbyint(std::log2(double{amax} / 6))));
    case MxScaleRule::kMsePow2:
      return e8m0_from_exponent(least_squares_exponent(group, exponent, 1));
    case MxScaleRule::kMsePow2X3:
      return e8m0_from_exponent(least_squares_exponent(group, exponent, 3));
    case MxScaleRule::kQuest:
      break;
  }
  return 0;
}

}  // namespace lathe
