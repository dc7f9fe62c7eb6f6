// A part of a quantized matrix dequantizes to that part of the dequantized whole, bit for bit.
#include "quant/weight_slice.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "base/error.h"

namespace lathe {
namespace {

constexpr int64_t kRows = 6;
constexpr int64_t kCols = 128;

// Codes and scales that are all different, so that a part from the wrong place shows.
QuantizedMatrix random_matrix(const WeightFormat& format) {
  QuantizedMatrix matrix = make_quantized_matrix(format, kRows, kCols);
  std::mt19937 random(7);
  for (int64_t i = 0; i < matrix.codes.size(); ++i) {
    // 0x7f and 0xff are NaN in E4M3.
    matrix.codes.as<uint8_t>()[i] = static_cast<uint8_t>(random() & 0xbf);
  }
  const int64_t num_scales = kRows * matrix.num_groups();
  for (int64_t i = 0; i < num_scales; ++i) {
    switch (format.scale) {
      case ScaleType::kE8M0:
      case ScaleType::kE4M3:
      case ScaleType::kLogLinear8:
        matrix.scales.as<uint8_t>()[i] = static_cast<uint8_t>(64 + i % 60);
        break;
      case ScaleType::kBF16:
      case ScaleType::kF16:
        matrix.scales.as<uint16_t>()[i] = static_cast<uint16_t>(0x3000 + i);
        break;
      case ScaleType::kF32:
        matrix.scales.as<float>()[i] = 1.0f + 0.125f * static_cast<float>(i);
        break;
    }
  }
  matrix.global_scale = 3;
  matrix.log_alpha = 0.125f;
  matrix.log_beta = -9;
  return matrix;
}

std::vector<float> dequantized(const QuantizedMatrix& matrix) {
  std::vector<float> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
  dequantize_rows(matrix, 0, matrix.rows, values.data());
  return values;
}

std::vector<float> part_of(const std::vector<float>& whole, int64_t row_begin, int64_t row_end,
                           int64_t col_begin, int64_t col_end) {
  std::vector<float> part;
  for (int64_t row = row_begin; row < row_end; ++row) {
    part.insert(part.end(), whole.begin() + row * kCols + col_begin,
                whole.begin() + row * kCols + col_end);
  }
  return part;
}

TEST(WeightSlice, PartsOfEveryFormatAreThoseOfTheDequantizedWhole) {
  for (const char* name :
       {"mxfp4", "mxfp4-fitted", "nvfp4", "int4", "int8", "fp8", "mxfp8", "nvint4", "mxint4"}) {
    SCOPED_TRACE(name);
    const QuantizedMatrix matrix = random_matrix(weight_format_from_name(name));
    const std::vector<float> whole = dequantized(matrix);
    const QuantizedMatrix rows = slice_rows(matrix, 2, 5);
    EXPECT_EQ(dequantized(rows), part_of(whole, 2, 5, 0, kCols));
    EXPECT_EQ(rows.codes.size() + rows.scales.size(),
              (matrix.codes.size() + matrix.scales.size()) / 2);
    for (const auto& [begin, end] : {std::pair{0, 32}, {32, 96}, {96, 128}, {0, 128}}) {
      SCOPED_TRACE(begin);
      const QuantizedMatrix columns = slice_columns(matrix, begin, end);
      EXPECT_EQ(columns.cols, end - begin);
      EXPECT_EQ(dequantized(columns), part_of(whole, 0, kRows, begin, end));
    }
  }
}

TEST(WeightSlice, WhatWouldBeCutIsRefused) {
  const auto code_of = [](auto&& slice) {
    try {
      slice();
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  const QuantizedMatrix mxfp4 = random_matrix(weight_format_from_name("mxfp4"));
  const QuantizedMatrix int8 = random_matrix(weight_format_from_name("int8"));
  WeightFormat by_row = weight_format_from_name("int4");
  by_row.group_size = 0;
  const QuantizedMatrix int4 = random_matrix(by_row);
  struct Case {
    const char* what;
    const QuantizedMatrix& matrix;
    int64_t begin, end;
  };
  for (const Case& c : {Case{"begins in a group", mxfp4, 16, 64},
                        {"a group's size, from two", mxfp4, 16, 48},
                        {"whole bytes, from their middles", int4, 1, 65},
                        {"ends in a group", mxfp4, 0, 48},
                        {"begins in a byte", int4, 1, 64},
                        {"ends in a byte", int4, 0, 63},
                        {"nothing", int8, 5, 5},
                        {"backwards", int8, 6, 5},
                        {"before the first", int8, -1, 5},
                        {"behind the last", int8, 0, 129}}) {
    SCOPED_TRACE(c.what);
    EXPECT_EQ(code_of([&] { slice_columns(c.matrix, c.begin, c.end); }),
              ErrorCode::kInvalidArgument);
  }
  EXPECT_EQ(code_of([&] { slice_rows(mxfp4, 0, kRows + 1); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { slice_rows(mxfp4, 3, 3); }), ErrorCode::kInvalidArgument);
  // Where a row has one scale, any columns are whole.
  EXPECT_EQ(dequantized(slice_columns(int8, 5, 8)), part_of(dequantized(int8), 0, kRows, 5, 8));
}

}  // namespace
}  // namespace lathe
