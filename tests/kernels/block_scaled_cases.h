// Matrices for the tests of the block-scaled FP4 kernel, and what their product is.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "quant/scale_swizzle.h"
#include "quant/weight_format.h"

namespace lathe {

// Random codes under random scales, so that no two groups of a row can be mistaken for each other.
// The scales are all of E4M3's, 2^-9 .. 448, and 2^-7 .. 2^7 of E8M0's: with up to 512 columns,
// sums of products are multiples of 2^-20 below 2^32, exact in double in any order.
inline QuantizedMatrix random_fp4(const std::string& format, int64_t rows, int64_t cols,
                                  uint64_t seed) {
  QuantizedMatrix matrix = make_quantized_matrix(weight_format_from_name(format), rows, cols);
  Rng rng(seed);
  for (int64_t i = 0; i < matrix.codes.size(); ++i) {
    matrix.codes.as<uint8_t>()[i] = static_cast<uint8_t>(rng.below(256));
  }
  for (int64_t i = 0; i < matrix.scales.size(); ++i) {
    matrix.scales.as<uint8_t>()[i] =
        static_cast<uint8_t>(format == "mxfp4" ? 120 + rng.below(15) : rng.below(127));
  }
  return matrix;
}

inline std::vector<uint8_t> swizzled_scales(const QuantizedMatrix& matrix) {
  const std::span<const uint8_t> scales(matrix.scales.as<uint8_t>(),
                                        static_cast<std::size_t>(matrix.scales.size()));
  return swizzle_scales(scales, matrix.rows, matrix.num_groups());
}

// [rows, cols]
inline std::vector<float> dequantized(const QuantizedMatrix& matrix) {
  std::vector<float> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
  dequantize_rows(matrix, 0, matrix.rows, values.data());
  return values;
}

// x w^T [x.rows, w.rows]
inline std::vector<double> product(const QuantizedMatrix& w, const QuantizedMatrix& x) {
  const int64_t m = x.rows, n = w.rows, k = w.cols;
  const std::vector<float> x_values = dequantized(x), w_values = dequantized(w);
  std::vector<double> y(static_cast<std::size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t c = 0; c < k; ++c) {
        y[i * n + j] += double{x_values[i * k + c]} * w_values[j * k + c];
      }
    }
  }
  return y;
}

}  // namespace lathe
