#include "compress/coordinate_descent.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "compress/gptq.h"
#include "compress/input_statistics.h"
#include "quant/encode.h"
#include "support/all_close.h"

namespace lathe {
namespace {

class CoordinateDescent : public testing::Test {
 protected:
  ThreadPool threads_{2};
  Workspace workspace_;
  Exec exec_{threads_, workspace_};

  // Hessian of inputs with a few strong directions.
  Buffer correlated_hessian(int64_t k, uint64_t seed) {
    const int64_t tokens = 300;
    auto x = normal_values(tokens * k, seed, 0.5);
    const auto direction = normal_values(k, seed + 1);
    const auto strength = normal_values(tokens, seed + 2);
    for (int64_t i = 0; i < tokens * k; ++i) {
      x[static_cast<std::size_t>(i)] +=
          strength[static_cast<std::size_t>(i / k)] * direction[static_cast<std::size_t>(i % k)];
    }
    InputStatistics statistics(k, true);
    statistics.add(x.data(), tokens, exec_);
    return statistics.take_hessian(exec_);
  }

  double error_of(const QuantizedMatrix& matrix, const std::vector<float>& w, const Buffer& h) {
    std::vector<float> d(w.size());
    dequantize_rows(matrix, 0, matrix.rows, d.data());
    for (std::size_t i = 0; i < d.size(); ++i) d[i] = w[i] - d[i];
    return output_error(d.data(), matrix.rows, h.as<float>(), matrix.cols, exec_);
  }
};

std::vector<uint8_t> codes_of(const QuantizedMatrix& matrix) {
  return {matrix.codes.as<uint8_t>(), matrix.codes.as<uint8_t>() + matrix.codes.size()};
}

// One sweep in double precision, column after column, straight from the definition.
void naive_sweep(QuantizedMatrix& matrix, const std::vector<float>& w, const float* h) {
  const int64_t k = matrix.cols;
  for (int64_t row = 0; row < matrix.rows; ++row) {
    std::vector<float> decoded(static_cast<std::size_t>(k));
    dequantize_rows(matrix, row, row + 1, decoded.data());
    std::vector<double> d(static_cast<std::size_t>(k));
    for (int64_t j = 0; j < k; ++j) {
      d[static_cast<std::size_t>(j)] = double{w[static_cast<std::size_t>(row * k + j)]} -
                                       double{decoded[static_cast<std::size_t>(j)]};
    }
    for (int64_t c = 0; c < k; ++c) {
      double others = 0;
      for (int64_t j = 0; j < k; ++j) {
        if (j != c) others += d[static_cast<std::size_t>(j)] * double{h[j * k + c]};
      }
      const double weight = w[static_cast<std::size_t>(row * k + c)];
      const double target = weight + others / double{h[c * k + c]};
      const double scale = double{effective_scale(matrix, row, c / matrix.format.group_size)};
      const uint8_t code = encode_element(matrix.format, target / scale);
      d[static_cast<std::size_t>(c)] =
          weight - double{element_value(matrix.format.element, code)} * scale;
      uint8_t& byte = matrix.codes.as<uint8_t>()[row * k / 2 + c / 2];
      byte = static_cast<uint8_t>(c % 2 == 0 ? (byte & 0xf0) | code : (byte & 0x0f) | (code << 4));
    }
  }
}

TEST_F(CoordinateDescent, OneSweepIsTheDefinition) {
  const int64_t rows = 70, k = 160;
  const auto w = normal_values(rows * k, 1);
  const Buffer h = correlated_hessian(k, 2);
  QuantizedMatrix matrix = quantize_absmax(weight_format_from_name("mxfp4"), w.data(), rows, k);
  QuantizedMatrix expected = quantize_absmax(weight_format_from_name("mxfp4"), w.data(), rows, k);
  EXPECT_EQ(coordinate_descent(matrix, w.data(), h.as<float>(), 0, 1, exec_), 1);
  naive_sweep(expected, w, h.as<float>());
  // fp32 against double: a near-tie may fall the other way and pull its row along.
  int64_t different_rows = 0;
  for (int64_t row = 0; row < rows; ++row) {
    different_rows +=
        std::memcmp(matrix.codes.data() + row * k / 2, expected.codes.data() + row * k / 2,
                    static_cast<std::size_t>(k / 2)) != 0;
  }
  EXPECT_LE(different_rows, 1);
  EXPECT_NE(codes_of(matrix), codes_of(quantize_absmax(matrix.format, w.data(), rows, k)));
}

TEST_F(CoordinateDescent, NeverRaisesTheErrorAndEndsWhenNothingChanges) {
  const int64_t rows = 40, k = 96;
  for (const char* name : {"mxfp4", "nvfp4", "int4", "int8"}) {
    SCOPED_TRACE(name);
    const auto w = normal_values(rows * k, 3);
    const Buffer h = correlated_hessian(k, 4);
    QuantizedMatrix matrix = quantize_absmax(weight_format_from_name(name), w.data(), rows, k);
    gptq(matrix, w.data(), factor_hessian(h.as<float>(), k, ColumnOrder::kActivation, 0.01, exec_),
         exec_);
    double previous = error_of(matrix, w, h);
    const double before = previous;
    for (int i = 0; i < 5; ++i) {
      coordinate_descent(matrix, w.data(), h.as<float>(), 0, 1, exec_);
      const double error = error_of(matrix, w, h);
      EXPECT_LE(error, previous * (1 + 1e-5));
      previous = error;
    }
    EXPECT_LT(previous, before);
    const int sweeps = coordinate_descent(matrix, w.data(), h.as<float>(), 0, 1000, exec_);
    EXPECT_LT(sweeps, 100);
    EXPECT_EQ(coordinate_descent(matrix, w.data(), h.as<float>(), 0, 0, exec_), 0);
  }
}

TEST_F(CoordinateDescent, WithIsotropicInputsIsRoundToNearest) {
  const int64_t rows = 9, k = 64;
  const auto w = normal_values(rows * k, 5);
  std::vector<float> h(static_cast<std::size_t>(k * k), 0.0f);
  for (int64_t j = 0; j < k; ++j) h[static_cast<std::size_t>(j * k + j)] = 3;
  QuantizedMatrix matrix = quantize_absmax(weight_format_from_name("nvfp4"), w.data(), rows, k);
  const auto rtn = codes_of(matrix);
  coordinate_descent(matrix, w.data(), h.data(), 0.1, 3, exec_);
  EXPECT_EQ(codes_of(matrix), rtn);
}

}  // namespace
}  // namespace lathe
