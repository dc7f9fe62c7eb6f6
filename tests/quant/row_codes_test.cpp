#include "quant/row_codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "support/all_close.h"

namespace lathe {
namespace {

std::vector<std::byte> encoded(const RowFormat& format, const RowShape& shape,
                               const std::vector<float>& x, const float* inverse_sigma = nullptr) {
  std::vector<std::byte> code(std::size_t(row_bytes(format, shape)) + 1, std::byte{0xa5});
  encode_row(format, shape, inverse_sigma, x.data(), code.data());
  EXPECT_EQ(code.back(), std::byte{0xa5}) << "written behind the row";
  code.pop_back();
  return code;
}

std::vector<float> decoded(const RowFormat& format, const RowShape& shape,
                           const std::vector<std::byte>& code, const float* sigma = nullptr) {
  std::vector<float> x(std::size_t(shape.width()));
  decode_row(format, shape, sigma, code.data(), x.data());
  return x;
}

double relative_mse(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, energy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
    energy += double{x[i]} * x[i];
  }
  return error / energy;
}

std::vector<uint8_t> codes_of(const RowFormat& format, const RowShape& shape,
                              const std::vector<std::byte>& code) {
  const HiggsGrid& grid = higgs_grid(format.bits, format.grid_dim);
  std::vector<uint8_t> codes(std::size_t(shape.width() / grid.dim));
  unpack_codes(code.data() + row_scale_bytes(format, shape), int64_t(codes.size()), grid.code_bits,
               codes.data());
  return codes;
}

// spec/aqua-kv.md 3.2, computed independently: its numbers have 6 digits.
TEST(RowCodes, GoldenVector) {
  std::vector<float> x;
  uint64_t state = 1;
  for (int i = 0; i < 64; ++i) {
    state = (1103515245 * state + 12345) % (uint64_t{1} << 31);
    x.push_back(float(double(state) / 0x1p31 - 0.5));
  }
  EXPECT_NEAR(std::sqrt(sum_of_squares(x.data(), 64)), 2.293043906, 2.3 * 8 * 0x1p-24);
  std::vector<float> y = x;
  hadamard_butterflies(y.data(), 64);
  const double wanted_y[] = {.830459, .855366, .411149, -1.670914};
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(y[i] / 2.293043906, wanted_y[i], 2e-6);

  const RowShape shape{1, 64};
  RowFormat format{.bits = 2, .scale = RowScale::kF32};
  auto code = encoded(format, shape, x);
  const std::vector<uint8_t> wanted = {5, 13, 0,  2, 12, 12, 11, 4, 6, 15, 6, 3, 4, 5, 9, 4,
                                       3, 7,  13, 3, 6,  2,  13, 6, 8, 2,  1, 3, 5, 4, 6, 1};
  EXPECT_EQ(codes_of(format, shape, code), wanted);
  auto back = decoded(format, shape, code);
  EXPECT_NEAR(relative_mse(x, back), 0.131706, 1e-6);
  const double wanted_x[] = {-.129764, -.095001, -.220813, .021883};
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(back[i], wanted_x[i], 1e-6);

  const auto first_codes = [&](int bits) {
    format.bits = bits;
    code = encoded(format, shape, x);
    auto codes = codes_of(format, shape, code);
    codes.resize(8);
    return codes;
  };
  EXPECT_EQ(first_codes(3), (std::vector<uint8_t>{22, 36, 4, 7, 20, 52, 47, 12}));
  EXPECT_NEAR(relative_mse(x, decoded(format, shape, code)), 0.025619, 1e-6);
  EXPECT_EQ(first_codes(4), (std::vector<uint8_t>{70, 124, 19, 51, 82, 212, 190, 66}));
  EXPECT_NEAR(relative_mse(x, decoded(format, shape, code)), 0.0066148, 1e-7);
  format = {.bits = 2, .grid_dim = 1, .scale = RowScale::kF32};
  EXPECT_NEAR(relative_mse(x, decoded(format, shape, encoded(format, shape, x))), 0.138060, 1e-6);
}

TEST(RowCodes, HadamardIsItsOwnInverse) {
  for (int64_t n = 1; n <= 512; n *= 2) {
    const auto x = normal_values(n, uint64_t(n));
    auto y = x;
    hadamard_butterflies(y.data(), n);
    hadamard_butterflies(y.data(), n);
    for (float& v : y) v /= float(n);
    // 2 log2(n) rounded additions, each of values below sqrt(n) * 6; divided by n at the end.
    EXPECT_TRUE(all_close(y, x, 2 * std::log2(double(n)) * 6 * 0x1p-24)) << n;
  }
}

// Every format of a row that the cache may use.
std::vector<RowFormat> formats() {
  std::vector<RowFormat> all;
  for (const HiggsGrid* grid : higgs_grids()) {
    for (const RowScale scale : {RowScale::kLog8, RowScale::kF16, RowScale::kF32}) {
      for (const bool hadamard : {true, false}) {
        all.push_back(
            {.bits = grid->bits(), .grid_dim = grid->dim, .scale = scale, .hadamard = hadamard});
      }
    }
  }
  for (const int bits : {2, 3, 4, 8}) {
    all.push_back({.method = RowMethod::kUniform, .bits = bits, .group = 16});
  }
  return all;
}

// Normal rows lose what the grid loses. The scale is the row's own norm, so the error relative to
// the row's energy is that of the grid but for chance: with n numbers, 2 / sqrt(n) at one standard
// deviation (see higgs_test). One-byte scales add (2^(1/16) - 1)^2 / 3 of the energy at the most.
TEST(RowCodes, NormalRowsLoseWhatTheGridLoses) {
  for (const RowShape shape :
       {RowShape{3, 64}, RowShape{2, 128}, RowShape{2, 80}, RowShape{1, 112}, RowShape{1, 256}}) {
    for (const RowFormat& format : formats()) {
      if (format.method != RowMethod::kHiggs) continue;
      const HiggsGrid& grid = higgs_grid(format.bits, format.grid_dim);
      double error = 0;
      constexpr int kRows = 40;
      for (int row = 0; row < kRows; ++row) {
        const auto x = normal_values(shape.width(), uint64_t(row), 0.37);
        error += relative_mse(x, decoded(format, shape, encoded(format, shape, x))) / kRows;
      }
      const double rounding = format.scale == RowScale::kLog8 ? 0.0007 : 0;
      const double chance = 6 * 2 / std::sqrt(double(kRows * shape.width()));
      EXPECT_NEAR(error, grid.mse, grid.mse * chance + rounding)
          << grid.name << " " << shape.num_heads << "x" << shape.head_dim;
    }
  }
}

// What a loud channel does: with the Hadamard transform the error goes with the row's energy,
// without it the other channels drown.
TEST(RowCodes, HadamardSpreadsOutliers) {
  auto x = normal_values(64, 5);
  x[17] = 30;
  const RowShape shape{1, 64};
  RowFormat format{.scale = RowScale::kF16};
  const double with = relative_mse(x, decoded(format, shape, encoded(format, shape, x)));
  format.hadamard = false;
  const double without = relative_mse(x, decoded(format, shape, encoded(format, shape, x)));
  EXPECT_LT(with, 0.2);
  EXPECT_GT(without, 0.4);
}

TEST(RowCodes, StaticScalesMakeUnequalChannelsEqual) {
  const RowShape shape{2, 64};
  std::vector<float> sigma, inverse;
  for (int64_t j = 0; j < shape.width(); ++j) {
    sigma.push_back(std::exp2(float(j % 7) - 3));
    inverse.push_back(1 / sigma.back());
  }
  const RowFormat format{.scale = RowScale::kF16, .hadamard = false};
  double scaled = 0;
  constexpr int kRows = 64;
  for (int row = 0; row < kRows; ++row) {
    auto x = normal_values(shape.width(), uint64_t(row));
    for (std::size_t j = 0; j < x.size(); ++j) x[j] *= sigma[j];
    auto y = decoded(format, shape, encoded(format, shape, x, inverse.data()), sigma.data());
    for (std::size_t j = 0; j < x.size(); ++j) {
      scaled += std::pow(double{x[j] - y[j]} * inverse[j], 2) / double(kRows * shape.width());
    }
  }
  EXPECT_NEAR(scaled, 0.1076, 0.1076 * 12 / std::sqrt(double(kRows * shape.width())));
}

// Encoding a reconstructed row under the scale that it has chooses the same codes: the grid's
// points are their own nearest. (Under a new scale it need not be so: the norm of the reconstructed
// row is smaller. docs/plans/aqua-kv.md)
TEST(RowCodes, QuantizingTwiceIsQuantizingOnce) {
  for (const int64_t head_dim : {64, 80, 128}) {
    for (const HiggsGrid* grid : higgs_grids()) {
      const RowShape shape{1, head_dim};
      const RowFormat format{.bits = grid->bits(), .grid_dim = grid->dim};
      const auto code = encoded(format, shape, normal_values(head_dim, 11));
      const float scale = row_scale_value(format.scale, std::to_integer<uint32_t>(code[0]));
      auto x = decoded(format, shape, code);
      for (int64_t begin = 0; begin < head_dim;) {
        const int64_t piece = hadamard_piece(head_dim - begin);
        hadamard_butterflies(x.data() + begin, piece);
        for (int64_t j = 0; j < piece; ++j) {
          x[std::size_t(begin + j)] *= encode_factor(head_dim, piece, scale);
        }
        begin += piece;
      }
      const auto codes = codes_of(format, shape, code);
      for (std::size_t i = 0; i < codes.size(); ++i) {
        EXPECT_EQ(nearest_point(*grid, x.data() + i * std::size_t(grid->dim)), codes[i]);
      }
    }
  }
  for (const int bits : {2, 3, 4, 8}) {  // uniform rows keep their scale, so here it is literal
    const RowShape shape{2, 64};
    const RowFormat format{.method = RowMethod::kUniform, .bits = bits};
    auto x = normal_values(shape.width(), 12);
    const auto once = decoded(format, shape, encoded(format, shape, x));
    const auto twice = decoded(format, shape, encoded(format, shape, once));
    // Low and step are fp16 numbers; (high - low) / levels and low + levels * step are rounded to
    // fp32 once each, which fp16 rounding swallows.
    EXPECT_EQ(once, twice) << bits;
  }
}

TEST(RowCodes, UniformErrorIsHalfAStep) {
  const RowShape shape{2, 64};
  for (const int bits : {2, 3, 4, 8}) {
    const RowFormat format{.method = RowMethod::kUniform, .bits = bits};
    const auto x = normal_values(shape.width(), 3);
    const auto y = decoded(format, shape, encoded(format, shape, x));
    for (std::size_t g = 0; g < 2; ++g) {
      const auto [low, high] =
          std::minmax_element(x.begin() + int64_t(g) * 64, x.begin() + int64_t(g + 1) * 64);
      const double step = double{*high - *low} / ((1 << bits) - 1);
      for (std::size_t j = g * 64; j < (g + 1) * 64; ++j) {
        // fp16's low and step are off by 2^-11 relative: at the far end by 2^-11 (|low| + range).
        const double off = 0x1p-11 * (std::fabs(*low) + double{*high - *low});
        EXPECT_LE(std::fabs(double{x[j] - y[j]}), step / 2 + 2 * off);
      }
    }
  }
}

TEST(RowCodes, ZeroRowsStayZeroAndNanStaysVisible) {
  const RowShape shape{2, 64};
  for (const RowFormat& format : formats()) {
    std::vector<float> x(std::size_t(shape.width()), 0.0f);
    for (const float y : decoded(format, shape, encoded(format, shape, x))) EXPECT_EQ(y, 0);
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      x[5] = bad;
      const auto y = decoded(format, shape, encoded(format, shape, x));
      EXPECT_FALSE(std::isfinite(y[5]));
      EXPECT_EQ(y[64], 0) << "the other head's";
    }
  }
}

TEST(RowCodes, OneByteScaleIsTheNearestStep) {
  for (float norm = 3e-5f; norm < 5e4f; norm *= 1.0037f) {
    const float value = row_scale_value(RowScale::kLog8, round_row_scale(RowScale::kLog8, norm));
    EXPECT_LE(std::fabs(std::log2(value / norm)), 1.0 / 16 + 1e-6) << norm;
  }
  EXPECT_EQ(round_row_scale(RowScale::kLog8, 0), 0u);
  EXPECT_EQ(round_row_scale(RowScale::kLog8, 1e-9f), 0u);
  EXPECT_EQ(round_row_scale(RowScale::kLog8, 1e9f), 254u);
  EXPECT_EQ(round_row_scale(RowScale::kLog8, INFINITY), 255u);
  for (uint32_t code = 0; code < 255; ++code) {
    EXPECT_EQ(round_row_scale(RowScale::kLog8, row_scale_value(RowScale::kLog8, code)), code);
  }
  EXPECT_EQ(row_scale_value(RowScale::kF16, round_row_scale(RowScale::kF16, 1e6f)), 65504);
}

TEST(RowCodes, AnyBytesDecode) {
  for (const RowShape shape : {RowShape{2, 64}, RowShape{1, 80}}) {
    for (const RowFormat& format : formats()) {
      std::vector<std::byte> code(std::size_t(row_bytes(format, shape)));
      for (int seed = 0; seed < 20; ++seed) {
        for (std::size_t i = 0; i < code.size(); ++i) {
          code[i] = std::byte(uint8_t((uint64_t(seed) * 977 + i * 2654435761u) >> 7));
        }
        decoded(format, shape, code);
      }
    }
  }
}

TEST(RowCodes, PackedCodesComeBack) {
  for (const int width : {2, 3, 4, 6, 8}) {
    std::vector<uint8_t> codes;
    for (int i = 0; i < 64; ++i) codes.push_back(uint8_t((i * 37 + 11) & ((1 << width) - 1)));
    std::vector<std::byte> packed(std::size_t(width) * 8);
    pack_codes(codes.data(), 64, width, packed.data());
    std::vector<uint8_t> back(64);
    unpack_codes(packed.data(), 64, width, back.data());
    EXPECT_EQ(back, codes) << width;
  }
}

TEST(RowCodes, BytesOfARow) {
  EXPECT_EQ(row_bytes({.bits = 2}, {8, 128}), 8 + 256);                               // 2.0625 bits
  EXPECT_EQ(row_bytes({.bits = 3, .scale = RowScale::kF16}, {3, 64}), 6 + 72);        // 3.25
  EXPECT_EQ(row_bytes({.method = RowMethod::kUniform, .bits = 2}, {2, 64}), 8 + 32);  // 2.5
}

TEST(RowCodes, BadFormatsAreRefused) {
  const auto code = [](const RowFormat& format, const RowShape& shape) {
    try {
      check_row_format(format, shape);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code({.bits = 5}, {2, 64}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.grid_dim = 3}, {2, 64}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({}, {2, 60}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({}, {0, 64}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({}, {1, 1024}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({}, {int64_t{1} << 60, 64}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.method = RowMethod::kUniform, .bits = 5}, {2, 64}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.method = RowMethod::kUniform, .group = 48}, {2, 64}),
            ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace lathe
