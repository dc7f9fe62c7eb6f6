// Quantized matrices with random codes and scales that are numbers, for tests of storage: what the
// codes are does not matter there, only that they survive.
#pragma once
#include <cmath>
#include <cstdint>
#include <random>

#include "quant/weight_format.h"
#include "tensor/float16.h"

namespace lathe {

inline QuantizedMatrix random_matrix(const WeightFormat& format, int64_t rows, int64_t cols,
                                     uint32_t seed) {
  std::mt19937 random(seed);
  QuantizedMatrix matrix = make_quantized_matrix(format, rows, cols);
  auto* codes = matrix.codes.as<uint8_t>();
  for (int64_t i = 0; i < matrix.codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(random());
    const bool is_nan = format.element == ElementType::kE4M3 && (codes[i] & 0x7f) == 0x7f;
    if (is_nan) codes[i] = 0;
  }
  for (int64_t i = 0; i < rows * matrix.num_groups(); ++i) {
    const auto positive = static_cast<float>(0.001 + 1e-6 * static_cast<double>(random() % 1000));
    switch (format.scale) {
      case ScaleType::kE8M0:
        matrix.scales.as<uint8_t>()[i] = static_cast<uint8_t>(110 + random() % 20);
        break;
      case ScaleType::kE4M3:
        matrix.scales.as<uint8_t>()[i] = static_cast<uint8_t>(random() % 0x7f);
        break;
      case ScaleType::kBF16:
        matrix.scales.as<uint16_t>()[i] = bf16_from_float(positive);
        break;
      case ScaleType::kF16:
        matrix.scales.as<uint16_t>()[i] = f16_from_float(positive);
        break;
      case ScaleType::kF32:
        matrix.scales.as<float>()[i] = positive;
        break;
      case ScaleType::kLogLinear8:
        matrix.scales.as<uint8_t>()[i] = static_cast<uint8_t>(random());
        break;
    }
  }
  if (format.scale == ScaleType::kE4M3) matrix.global_scale = 2688.0f / 0.7f;
  return matrix;
}

}  // namespace lathe
