#include "formats/compressed_tensors_layout.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "base/json.h"
#include "formats/expect_error.h"
#include "formats/random_matrix.h"
#include "support/all_close.h"

namespace lathe {
namespace {

constexpr int64_t kRows = 6;
constexpr int64_t kCols = 64;

// The tensor L.SUFFIX, which must be there.
TensorView find(const LinearTensors& stored, const std::string& suffix) {
  for (const NamedTensor& tensor : stored.tensors) {
    if (tensor.name == "L" + suffix) return tensor.view;
  }
  ADD_FAILURE() << "no tensor L" << suffix;
  return {};
}

double decode_scale(const TensorView& scales, int64_t idx) {
  switch (scales.dtype) {
    case DType::kU8:
      return std::ldexp(1.0, scales.as<uint8_t>()[idx] - 127);
    case DType::kF8E4M3: {
      const int bits = scales.as<uint8_t>()[idx];
      const int exponent = bits >> 3;
      const int mantissa = bits & 7;
      return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    }
    case DType::kBF16:
      return float_from_bf16(scales.as<uint16_t>()[idx]);
    case DType::kF16:
      return float_from_f16(scales.as<uint16_t>()[idx]);
    default:
      return scales.as<float>()[idx];
  }
}

double decode_fp4(int code) {
  const double magnitude[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return (code & 8) != 0 ? -magnitude[code & 7] : magnitude[code & 7];
}

double decode_fp8(int code) {
  const int exponent = (code >> 3) & 15;
  const double magnitude =
      exponent == 0 ? std::ldexp(code & 7, -9) : std::ldexp(8 + (code & 7), exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// Decodes as the library documents it, from the stored tensors alone.
std::vector<float> decode(const LinearTensors& stored, const std::string& layout,
                          int64_t num_groups, int bits) {
  const TensorView scales = find(stored, ".weight_scale");
  EXPECT_EQ(scales.shape, (Shape{kRows, num_groups}));
  std::vector<float> decoded;
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t col = 0; col < kCols; ++col) {
      double element = 0;
      if (layout == "mxfp4-pack-quantized" || layout == "nvfp4-pack-quantized") {
        const TensorView packed = find(stored, ".weight_packed");
        const int byte = packed.as<uint8_t>()[(row * kCols + col) / 2];
        element = decode_fp4(col % 2 == 0 ? byte & 15 : byte >> 4);
      } else if (layout == "pack-quantized") {
        const TensorView packed = find(stored, ".weight_packed");
        const int64_t per_word = 32 / bits;
        const uint32_t word = packed.as<uint32_t>()[row * (kCols / per_word) + col / per_word];
        const auto code = (word >> (bits * (col % per_word))) & ((1u << bits) - 1);
        element = static_cast<double>(code) - (1 << (bits - 1));
      } else {
        const TensorView weight = find(stored, ".weight");
        element = weight.dtype == DType::kI8 ? weight.as<int8_t>()[row * kCols + col]
                                             : decode_fp8(weight.as<uint8_t>()[row * kCols + col]);
      }
      double value = element * decode_scale(scales, row * num_groups + col * num_groups / kCols);
      if (layout == "nvfp4-pack-quantized") {
        value /= find(stored, ".weight_global_scale").as<float>()[0];
      }
      decoded.push_back(static_cast<float>(value));
    }
  }
  return decoded;
}

struct Case {
  const char* format;
  ActivationFormat activations;
  const char* layout;
  int bits;
};
constexpr Case kCases[] = {
    {"mxfp4", ActivationFormat::kNone, "mxfp4-pack-quantized", 4},
    {"mxfp4", ActivationFormat::kMxfp4, "mxfp4-pack-quantized", 4},
    {"nvfp4", ActivationFormat::kNvfp4, "nvfp4-pack-quantized", 4},
    {"int4", ActivationFormat::kNone, "pack-quantized", 4},
    {"int4", ActivationFormat::kInt8, "pack-quantized", 4},
    {"int8", ActivationFormat::kNone, "pack-quantized", 8},
    {"int8", ActivationFormat::kInt8, "int-quantized", 8},
    {"fp8", ActivationFormat::kFp8, "float-quantized", 8},
    {"mxfp8", ActivationFormat::kMxfp8, "mxfp8-quantized", 8},
};

TEST(CompressedTensorsLayout, EveryFormatDecodesToTheSameNumbers) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(std::string(c.format) + " " + std::string(activation_format_name(c.activations)));
    const QuantizedMatrix matrix =
        random_matrix(weight_format_from_name(c.format), kRows, kCols, 5);
    const QuantizedLinear linear{"L", &matrix, {c.activations, 0, 0}};
    check_expressible({&linear, 1});
    const LinearTensors stored = linear_tensors(linear);
    std::vector<float> expected(kRows * kCols);
    dequantize_rows(matrix, 0, kRows, expected.data());
    // Both evaluate in double and round once.
    EXPECT_EQ(decode(stored, c.layout, matrix.num_groups(), c.bits), expected);

    const ModuleScheme scheme{"L", matrix.format, linear.scheme};
    const Json config = parse_json(quantization_config({&scheme, 1}, {}), "config");
    EXPECT_EQ(config.at("format"), c.layout);
    const Json& group = config.at("config_groups").at("group_0");
    EXPECT_EQ(group.at("format"), c.layout);
    EXPECT_EQ(group.at("targets"), Json::array({"Linear"}));
    EXPECT_EQ(group.at("weights").at("num_bits"), c.bits);
    EXPECT_EQ(group.at("input_activations").is_null(), c.activations == ActivationFormat::kNone);
  }
}

TEST(CompressedTensorsLayout, PackedIntegersSayTheirShape) {
  const QuantizedMatrix matrix = random_matrix(weight_format_from_name("int4"), kRows, kCols, 5);
  const LinearTensors stored = linear_tensors({"L", &matrix, {}});
  const TensorView shape = find(stored, ".weight_shape");
  ASSERT_EQ(shape.shape, Shape{2});
  EXPECT_EQ(shape.as<int64_t>()[0], kRows);
  EXPECT_EQ(shape.as<int64_t>()[1], kCols);
  EXPECT_EQ(find(stored, ".weight_packed").shape, (Shape{kRows, kCols / 8}));
}

TEST(CompressedTensorsLayout, InputGlobalScaleIsStoredWhenCalibrated) {
  const QuantizedMatrix matrix = random_matrix(weight_format_from_name("nvfp4"), kRows, kCols, 5);
  for (const float input_global_scale : {0.0f, 123.5f}) {
    const LinearScheme scheme{ActivationFormat::kNvfp4, input_global_scale, 0};
    const LinearTensors stored = linear_tensors({"L", &matrix, scheme});
    const ModuleScheme module{"L", matrix.format, scheme};
    const Json config = parse_json(quantization_config({&module, 1}, {}), "config");
    const Json& dynamic =
        config.at("config_groups").at("group_0").at("input_activations").at("dynamic");
    if (input_global_scale > 0) {
      EXPECT_EQ(find(stored, ".input_global_scale").as<float>()[0], 123.5f);
      EXPECT_EQ(dynamic, "local");
    } else {
      EXPECT_EQ(stored.tensors.size(), 3u);
      EXPECT_EQ(dynamic, true);
    }
  }
}

TEST(CompressedTensorsLayout, TheRotationIsStoredUnnormalised) {
  const QuantizedMatrix matrix = random_matrix(weight_format_from_name("mxfp4"), kRows, kCols, 5);
  const LinearScheme scheme{ActivationFormat::kNone, 0, 32};
  const LinearTensors stored = linear_tensors({"L", &matrix, scheme});
  const TensorView rotation = find(stored, ".v32_input.weight");
  ASSERT_EQ(rotation.shape, (Shape{32, 32}));
  ASSERT_EQ(rotation.dtype, DType::kBF16);
  // H H^T = 32 I for a matrix of +-1, and the first row of Sylvester's is all ones.
  for (int64_t i = 0; i < 32; ++i) {
    EXPECT_EQ(float_from_bf16(rotation.as<uint16_t>()[i]), 1.0f);
    for (int64_t j = 0; j < 32; ++j) {
      float product = 0;
      for (int64_t k = 0; k < 32; ++k) {
        product += float_from_bf16(rotation.as<uint16_t>()[i * 32 + k]) *
                   float_from_bf16(rotation.as<uint16_t>()[j * 32 + k]);
      }
      EXPECT_EQ(product, i == j ? 32.0f : 0.0f);
    }
  }
  const ModuleScheme module{"L", matrix.format, scheme};
  const std::vector<std::string> ignore = {"lm_head"};
  const Json config = parse_json(quantization_config({&module, 1}, ignore), "config");
  const Json& transform = config.at("transform_config").at("config_groups").at("v32");
  EXPECT_EQ(transform.at("type"), "hadamard");
  EXPECT_EQ(transform.at("head_dim"), 32);
  ASSERT_EQ(transform.at("apply").size(), 2u);
  EXPECT_EQ(transform.at("apply").at(0).at("location"), "input");
  EXPECT_EQ(transform.at("apply").at(1).at("location"), "weight_input");
  EXPECT_EQ(transform.at("apply").at(0).at("ignore"), Json::array({"lm_head"}));
}

TEST(CompressedTensorsLayout, SeveralKindsNameTheirModules) {
  const WeightFormat mxfp4 = weight_format_from_name("mxfp4");
  const WeightFormat fp8 = weight_format_from_name("fp8");
  const ModuleScheme modules[] = {
      {"a", mxfp4, {ActivationFormat::kNone, 0, 32}},
      {"b", fp8, {ActivationFormat::kFp8, 0, 0}},
      {"c", mxfp4, {ActivationFormat::kNone, 0, 128}},
  };
  const Json config = parse_json(quantization_config(modules, {}), "config");
  EXPECT_EQ(config.at("format"), "mixed-precision");
  const Json& groups = config.at("config_groups");
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups.at("group_0").at("targets"), Json::array({"a", "c"}));
  EXPECT_EQ(groups.at("group_0").at("format"), "mxfp4-pack-quantized");
  EXPECT_EQ(groups.at("group_1").at("targets"), Json::array({"b"}));
  EXPECT_EQ(groups.at("group_1").at("format"), "float-quantized");
  const Json& transforms = config.at("transform_config").at("config_groups");
  ASSERT_EQ(transforms.size(), 2u);
  EXPECT_EQ(transforms.at("v32").at("apply").at(0).at("targets"), Json::array({"a"}));
  EXPECT_EQ(transforms.at("v128").at("apply").at(1).at("targets"), Json::array({"c"}));
}

TEST(CompressedTensorsLayout, RefusesWhatOthersWouldReadDifferently) {
  const auto check = [](const QuantizedMatrix& matrix, const LinearScheme& scheme) {
    const QuantizedLinear linear{"L", &matrix, scheme};
    check_expressible({&linear, 1});
  };
  for (const char* name : {"mxfp4-fitted", "nvint4", "mxint4"}) {
    const QuantizedMatrix matrix = random_matrix(weight_format_from_name(name), kRows, kCols, 5);
    expect_error(ErrorCode::kUnsupported, "store the decoded weights", [&] { check(matrix, {}); });
  }
  QuantizedMatrix mxfp4 = random_matrix(weight_format_from_name("mxfp4"), kRows, kCols, 5);
  mxfp4.global_scale = 3;
  expect_error(ErrorCode::kUnsupported, "global scale of 3", [&] { check(mxfp4, {}); });
  QuantizedMatrix nvfp4 = random_matrix(weight_format_from_name("nvfp4"), kRows, kCols, 5);
  for (const float bad : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    nvfp4.global_scale = bad;
    expect_error(ErrorCode::kInvalidArgument, "not a divisor", [&] { check(nvfp4, {}); });
  }
  const QuantizedMatrix narrow = random_matrix(weight_format_from_name("int8"), kRows, 6, 5);
  expect_error(ErrorCode::kUnsupported, "32-bit words", [&] { check(narrow, {}); });
  const QuantizedMatrix rotated = random_matrix(weight_format_from_name("int8"), kRows, 48, 5);
  expect_error(ErrorCode::kInvalidArgument, "does not divide", [&] {
    check(rotated, {ActivationFormat::kNone, 0, 32});
  });
}

TEST(CompressedTensorsLayout, StackedLayersMustShareTheirGlobalScale) {
  const WeightFormat format = weight_format_from_name("nvfp4");
  const QuantizedMatrix a = random_matrix(format, kRows, kCols, 5);
  QuantizedMatrix b = random_matrix(format, kRows, kCols, 6);
  const auto check = [&](const std::string& first, const std::string& second, float input = 0) {
    const QuantizedLinear linears[] = {{first, &a, {ActivationFormat::kNvfp4, 0, 0}},
                                       {second, &b, {ActivationFormat::kNvfp4, input, 0}}};
    check_expressible(linears);
  };
  check("m.0.q_proj", "m.0.v_proj");
  expect_error(ErrorCode::kInvalidArgument, "'m.0.q_proj'",
               [&] { check("m.0.q_proj", "m.0.v_proj", 7); });
  b.global_scale *= 2;
  check("m.0.q_proj", "m.0.o_proj");  // not stacked
  check("m.0.q_proj", "m.1.v_proj");  // another layer
  expect_error(ErrorCode::kInvalidArgument, "'m.0.q_proj'",
               [&] { check("m.0.q_proj", "m.0.v_proj"); });
  expect_error(ErrorCode::kInvalidArgument, "'e.3.w1'", [&] { check("e.3.w1", "e.3.w3"); });
}

}  // namespace
}  // namespace lathe
