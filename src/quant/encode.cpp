#include "quant/encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "quant/fp4_e2m1.h"
#include "quant/fp8.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

bool is_symmetric_int4(const WeightFormat& format) {
  return format.scale == ScaleType::kE8M0 || format.scale == ScaleType::kE4M3;
}

template <typename T>
void store_as(std::byte* p, T value) {
  std::memcpy(p, &value, sizeof value);
}

// Spec 1.8: 256 steps in log2 between the smallest and the largest scale of this tensor.
void fit_log_grid(QuantizedMatrix& matrix, const std::vector<float>& amax, double limit) {
  float smallest = std::numeric_limits<float>::infinity();
  float largest = 0;
  for (const float a : amax) {
    if (a == 0) continue;
    smallest = std::min(smallest, a);
    largest = std::max(largest, a);
  }
  if (largest == 0) return;  // alpha = beta = 0: every scale is 1, every code 0
  const double low = std::log2(double{smallest} / limit);
  const double high = std::log2(double{largest} / limit);
  matrix.log_alpha = static_cast<float>((high - low) / 255);
  matrix.log_beta = static_cast<float>(low);
}

}  // namespace

uint8_t encode_element(const WeightFormat& format, double r) {
  switch (format.element) {
    case ElementType::kE2M1:
      return e2m1_from_double(r);
    case ElementType::kE4M3:
      return e4m3_from_double(r);
    case ElementType::kInt4: {
      const double low = is_symmetric_int4(format) ? -7 : -8;
      return static_cast<uint8_t>(static_cast<int>(std::clamp(std::nearbyint(r), low, 7.0)) & 15);
    }
    case ElementType::kInt8:
      return static_cast<uint8_t>(static_cast<int>(std::clamp(std::nearbyint(r), -127.0, 127.0)));
  }
  return 0;
}

double element_limit(const WeightFormat& format) {
  switch (format.element) {
    case ElementType::kE2M1:
      return kE2m1Max;
    case ElementType::kE4M3:
      return kE4m3Max;
    case ElementType::kInt4:
      return is_symmetric_int4(format) ? 7 : 7.5;
    case ElementType::kInt8:
      return 127;
  }
  return 1;
}

void store_scale(QuantizedMatrix& matrix, int64_t row, int64_t group, double value) {
  const int64_t index = row * matrix.num_groups() + group;
  std::byte* p = matrix.scales.data() + index * scale_bytes(matrix.format.scale);
  switch (matrix.format.scale) {
    case ScaleType::kE8M0:
      store_as(p, value > 0 ? e8m0_from_exponent(static_cast<int>(std::nearbyint(std::log2(value))))
                            : uint8_t{0});
      return;
    case ScaleType::kE4M3:
      store_as(p, e4m3_from_double(value));
      return;
    case ScaleType::kBF16:
      store_as(p, bf16_from_float(static_cast<float>(value)));
      return;
    case ScaleType::kF16:
      store_as(p, f16_from_float(static_cast<float>(value)));
      return;
    case ScaleType::kF32:
      store_as(p, static_cast<float>(value));
      return;
    case ScaleType::kLogLinear8: {
      const double alpha = matrix.log_alpha;
      const double steps =
          alpha > 0 && value > 0 ? (std::log2(value) - double{matrix.log_beta}) / alpha : 0;
      store_as(p, static_cast<uint8_t>(std::clamp(std::nearbyint(steps), 0.0, 255.0)));
      return;
    }
  }
}

void encode_row(QuantizedMatrix& matrix, int64_t row, const float* w) {
  const WeightFormat& format = matrix.format;
  const int64_t group_size = format.group_size == 0 ? matrix.cols : format.group_size;
  const double global_scale = matrix.global_scale;
  const bool nibbles = element_bits(format.element) == 4;
  uint8_t* codes = matrix.codes.as<uint8_t>() + row * matrix.code_row_bytes();
  for (int64_t group = 0; group < matrix.num_groups(); ++group) {
    const double scale = stored_scale(matrix, row, group);
    for (int64_t col = group * group_size; col < (group + 1) * group_size; ++col) {
      const uint8_t code =
          scale > 0 ? encode_element(format, double{w[col]} * global_scale / scale) : uint8_t{0};
      if (!nibbles) {
        codes[col] = code;
      } else if (col % 2 == 0) {
        codes[col / 2] = code;
      } else {
        codes[col / 2] = pack_nibbles(codes[col / 2], code);
      }
    }
  }
}

float nvfp4_global_scale(float amax, double limit) {
  if (amax == 0) return 1;
  const double scale = kE4m3Max * limit / double{amax};
  return static_cast<float>(std::min(scale, double{std::numeric_limits<float>::max()}));
}

float max_abs(std::span<const float> values) {
  float amax = 0;
  for (const float x : values) amax = std::max(amax, std::fabs(x));
  return amax;
}

void choose_absmax_scales(QuantizedMatrix& matrix, const float* w, MxScaleRule mx_rule,
                          float global_scale) {
  const WeightFormat& format = matrix.format;
  const int64_t groups = matrix.num_groups();
  const int64_t group_size = format.group_size == 0 ? matrix.cols : format.group_size;
  const double limit = element_limit(format);

  std::vector<float> amax(static_cast<std::size_t>(matrix.rows * groups));
  for (int64_t i = 0; i < matrix.rows * groups; ++i) {
    float largest = 0;
    for (const float x : std::span(w + i * group_size, static_cast<std::size_t>(group_size))) {
      if (!std::isfinite(x)) {
        fail(ErrorCode::kInvalidArgument, "weight [", i / groups, ", ", i % groups * group_size,
             "...] holds ", x, "; the checkpoint is broken");
      }
      largest = std::max(largest, std::fabs(x));
    }
    amax[static_cast<std::size_t>(i)] = largest;
  }

  if (format.scale == ScaleType::kE4M3) {
    matrix.global_scale =
        global_scale > 0 ? global_scale : nvfp4_global_scale(max_abs(amax), limit);
  } else if (format.scale == ScaleType::kE8M0 && format.element == ElementType::kE2M1) {
    matrix.global_scale = mx_global_scale(mx_rule);
  } else if (format.scale == ScaleType::kLogLinear8) {
    fit_log_grid(matrix, amax, limit);
  }

  for (int64_t i = 0; i < matrix.rows * groups; ++i) {
    const double a = amax[static_cast<std::size_t>(i)];
    const int64_t row = i / groups;
    const int64_t group = i % groups;
    if (format.scale == ScaleType::kE4M3) {
      store_scale(matrix, row, group, double{matrix.global_scale} * a / limit);
    } else if (format.scale == ScaleType::kE8M0) {
      if (format.element == ElementType::kE2M1) {
        matrix.scales.as<uint8_t>()[i] =
            mx_scale_byte(mx_rule, {w + i * group_size, static_cast<std::size_t>(group_size)});
      } else if (a > 0) {
        const int exponent = static_cast<int>(std::ilogb(a / limit));
        const bool exact = std::ldexp(1.0, exponent) * limit >= a;
        matrix.scales.as<uint8_t>()[i] = e8m0_from_exponent(exact ? exponent : exponent + 1);
      }
    } else {
      store_scale(matrix, row, group, a / limit);
    }
  }
}

QuantizedMatrix quantize_absmax(const WeightFormat& format, const float* w, int64_t rows,
                                int64_t cols, MxScaleRule mx_rule, float global_scale) {
  QuantizedMatrix matrix = make_quantized_matrix(format, rows, cols);
  choose_absmax_scales(matrix, w, mx_rule, global_scale);
  for (int64_t row = 0; row < rows; ++row) encode_row(matrix, row, w + row * cols);
  return matrix;
}

}  // namespace lathe
