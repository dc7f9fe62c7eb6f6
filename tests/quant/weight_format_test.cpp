#include "quant/weight_format.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

TEST(WeightFormat, NamesRoundTripAndCountBits) {
  const std::pair<const char*, double> expected[] = {
      {"mxfp4", 4.25}, {"mxfp4-fitted", 4.25}, {"nvfp4", 4.5}, {"int4", 4.5},
      {"nvint4", 4.5}, {"mxint4", 4.25},       {"int8", 8},    {"fp8", 8},
      {"mxfp8", 8.25}};
  for (const auto& [name, bits] : expected) {
    EXPECT_EQ(weight_format_name(weight_format_from_name(name)), name);
    EXPECT_EQ(bits_per_weight(weight_format_from_name(name)), bits) << name;
  }
  try {
    weight_format_from_name("fp5");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("nvfp4"), std::string::npos);
  }
  for (const char* name : {"none", "int8", "mxfp4", "nvfp4", "fp8", "mxfp8"}) {
    EXPECT_EQ(activation_format_name(activation_format_from_name(name)), name);
  }
  EXPECT_THROW(activation_format_from_name("int2"), Error);
}

TEST(WeightFormat, RefusesShapesThatDoNotFit) {
  EXPECT_THROW(make_quantized_matrix(weight_format_from_name("mxfp4"), 4, 48), Error);
  EXPECT_THROW(make_quantized_matrix(weight_format_from_name("nvfp4"), 4, 24), Error);
  EXPECT_THROW(make_quantized_matrix({ElementType::kE2M1, ScaleType::kF32, 0}, 4, 33), Error);
  EXPECT_THROW(make_quantized_matrix(weight_format_from_name("mxfp4"), 0, 32), Error);
  EXPECT_THROW(
      make_quantized_matrix(weight_format_from_name("mxfp4"), int64_t{1} << 50, int64_t{1} << 20),
      Error);
}

TEST(WeightFormat, IntegerElementsAreTwosComplement) {
  EXPECT_EQ(element_value(ElementType::kInt4, 7), 7.0f);
  EXPECT_EQ(element_value(ElementType::kInt4, 8), -8.0f);
  EXPECT_EQ(element_value(ElementType::kInt4, 15), -1.0f);
  EXPECT_EQ(element_value(ElementType::kInt8, 0x80), -128.0f);
  EXPECT_EQ(element_value(ElementType::kInt8, 0x7f), 127.0f);
}

// w = element * scale / global_scale with each kind of scale, a number worked out by hand.
TEST(WeightFormat, DecodesEveryKindOfScale) {
  const auto decode_first = [](QuantizedMatrix& matrix) {
    std::vector<float> out(static_cast<std::size_t>(matrix.cols));
    dequantize_rows(matrix, 0, 1, out.data());
    return out[0];
  };
  {
    QuantizedMatrix m = make_quantized_matrix({ElementType::kE2M1, ScaleType::kE8M0, 32}, 1, 32);
    m.codes.as<uint8_t>()[0] = 0x0d;  // -3
    m.scales.as<uint8_t>()[0] = 128;  // 2
    m.global_scale = 3;
    EXPECT_EQ(decode_first(m), -2.0f);
    EXPECT_EQ(effective_scale(m, 0, 0), 2.0f / 3.0f);
    m.scales.as<uint8_t>()[0] = 255;
    EXPECT_TRUE(std::isnan(decode_first(m)));
  }
  {
    QuantizedMatrix m = make_quantized_matrix({ElementType::kE2M1, ScaleType::kE4M3, 16}, 1, 16);
    m.codes.as<uint8_t>()[0] = 7;      // 6
    m.scales.as<uint8_t>()[0] = 0x7e;  // 448
    m.global_scale = 2688;
    EXPECT_EQ(decode_first(m), 1.0f);
  }
  {
    QuantizedMatrix m = make_quantized_matrix({ElementType::kInt4, ScaleType::kBF16, 32}, 1, 32);
    m.codes.as<uint8_t>()[0] = 8;  // -8
    m.scales.as<uint16_t>()[0] = bf16_from_float(0.375f);
    EXPECT_EQ(decode_first(m), -3.0f);
  }
  {
    QuantizedMatrix m = make_quantized_matrix({ElementType::kInt8, ScaleType::kF16, 0}, 1, 8);
    m.codes.as<uint8_t>()[0] = 0xff;  // -1
    m.scales.as<uint16_t>()[0] = f16_from_float(0.5f);
    EXPECT_EQ(decode_first(m), -0.5f);
  }
  {
    QuantizedMatrix m = make_quantized_matrix({ElementType::kE4M3, ScaleType::kF32, 0}, 1, 8);
    m.codes.as<uint8_t>()[0] = 0x38;  // 1
    m.scales.as<float>()[0] = 0.1f;
    EXPECT_EQ(decode_first(m), 0.1f);
  }
  {
    QuantizedMatrix m =
        make_quantized_matrix({ElementType::kE2M1, ScaleType::kLogLinear8, 32}, 1, 32);
    m.codes.as<uint8_t>()[0] = 2;  // 1
    m.scales.as<uint8_t>()[0] = 6;
    m.log_alpha = 0.5f;
    m.log_beta = -1;
    EXPECT_EQ(decode_first(m), 4.0f);  // 2^(0.5 * 6 - 1)
  }
}

}  // namespace
}  // namespace lathe
