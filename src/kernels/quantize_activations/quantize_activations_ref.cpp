#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/quantize_activations/quantize_activations_kernels.h"
#include "quant/fp4_e2m1.h"
#include "quant/fp8.h"
#include "quant/hadamard.h"

namespace lathe {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The largest magnitude, or NaN when a value is NaN or infinite.
float max_magnitude(const float* x, int64_t count) {
  float amax = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return kNan;
    amax = std::max(amax, std::fabs(x[i]));
  }
  return amax;
}

void rotate(std::vector<float>& row, int64_t block) {
  if (block == 0) return;
  std::vector<double> rotated(static_cast<std::size_t>(block));
  for (std::size_t begin = 0; begin < row.size(); begin += rotated.size()) {
    for (int64_t j = 0; j < block; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < block; ++i) {
        const bool negative = std::popcount(static_cast<uint64_t>(i & j)) % 2 != 0;
        const double value = row[begin + static_cast<std::size_t>(i)];
        sum += negative ? -value : value;
      }
      rotated[static_cast<std::size_t>(j)] = sum / std::sqrt(static_cast<double>(block));
    }
    for (std::size_t j = 0; j < rotated.size(); ++j) {
      row[begin + j] = static_cast<float>(rotated[j]);
    }
  }
}

// The power-of-two exponent by the rule "floor(log2 a) - emax, one more when the significand of a
// rounds up to 2 in `mantissa_bits` bits", and its float.
float mx_scale(float amax, int mantissa_bits, int emax) {
  const uint32_t half_step = 1u << (22 - mantissa_bits);
  const auto exponent =
      static_cast<int>((std::bit_cast<uint32_t>(amax) + half_step) >> 23) - 127 - emax;
  return e8m0_to_float(e8m0_from_exponent(exponent));
}

struct Group {
  float scale;
  float inverse;  // int8: what x is multiplied by
};

Group choose_scale(ActivationFormat format, float amax, float global_scale) {
  switch (format) {
    case ActivationFormat::kInt8:
      if (amax < 0x1p-100f) return {0, 0};
      return {amax / 127, 127 / amax};
    case ActivationFormat::kMxfp4:
      return {mx_scale(amax, 1, 2), 0};
    case ActivationFormat::kNvfp4: {
      const float block = e4m3_to_float(e4m3_from_double(global_scale * (amax / 6)));
      return {block / global_scale, 0};
    }
    case ActivationFormat::kFp8:
      return {amax / 448, 0};
    case ActivationFormat::kMxfp8:
      return {mx_scale(amax, 3, 8), 0};
    case ActivationFormat::kNone:
      break;
  }
  return {1, 0};
}

int integer_code(ActivationFormat format, float x, const Group& group) {
  if (format == ActivationFormat::kInt8) return static_cast<int>(std::nearbyint(x * group.inverse));
  if (!(group.scale > 0)) return 0;
  return static_cast<int>(2 * e2m1_to_float(e2m1_from_double(x / group.scale)));
}

}  // namespace

void quantize_activations_ref(const QuantizeActivationsArgs& a, Exec&) {
  std::vector<float> row(static_cast<std::size_t>(a.k));
  const int64_t own_group = activation_group(a.format, a.group);
  const int64_t span = own_group == 0 ? a.k : own_group;
  const bool is_fp8 = a.format == ActivationFormat::kFp8 || a.format == ActivationFormat::kMxfp8;
  for (int64_t t = 0; t < a.m; ++t) {
    row.assign(a.x + t * a.k, a.x + (t + 1) * a.k);
    rotate(row, a.hadamard);
    float global_scale = a.global_scale;
    if (a.format == ActivationFormat::kNvfp4 && global_scale == 0) {
      const float amax = max_magnitude(row.data(), a.k);
      global_scale = amax < 0x1p-100f ? 1.0f : 2688 / amax;
    }
    for (int64_t begin = 0; begin < a.k; begin += span) {
      float* x = row.data() + begin;
      const float amax = a.format == ActivationFormat::kNone ? 0 : max_magnitude(x, span);
      const bool finite = !std::isnan(amax) && !std::isnan(global_scale);
      Group group = choose_scale(a.format, finite ? amax : 0, finite ? global_scale : 1);
      if (a.values != nullptr) {
        for (int64_t j = 0; j < span; ++j) {
          float value = x[j];
          if (!finite) {
            value = kNan;
          } else if (is_fp8) {
            value = group.scale > 0
                        ? e4m3_to_float(e4m3_from_double(x[j] / group.scale)) * group.scale
                        : 0.0f;
          } else if (a.format == ActivationFormat::kInt8) {
            value = static_cast<float>(integer_code(a.format, x[j], group)) * group.scale;
          } else if (a.format != ActivationFormat::kNone) {
            value = static_cast<float>(integer_code(a.format, x[j], group)) * (group.scale * 0.5f);
          }
          a.values[t * a.k + begin + j] = value;
        }
        continue;
      }
      // Codes of E2M1 are twice the value, so the scale is halved.
      float scale = a.format == ActivationFormat::kInt8 ? group.scale : group.scale * 0.5f;
      if (!finite) scale = kNan;
      for (int64_t part = 0; part < span; part += a.group) {
        const int64_t idx =
            blocked_index(t, (begin + part) / a.group, a.k / a.group, a.m, a.block_rows);
        a.scales[idx] = scale;
        int pair_sums[2] = {0, 0};
        for (int64_t j = 0; j < a.group; ++j) {
          const int code = finite ? integer_code(a.format, x[part + j], group) : 0;
          pair_sums[j % 4 / 2] += code;
          a.codes[idx * a.group + j] = static_cast<int8_t>(code);
        }
        const uint32_t low = static_cast<uint16_t>(-kCodeOffset * pair_sums[0]);
        const uint32_t high = static_cast<uint16_t>(-kCodeOffset * pair_sums[1]);
        a.corrections[idx] = static_cast<int32_t>(high << 16 | low);
      }
    }
  }
}

}  // namespace lathe
