// Checkpoints written by the compressed-tensors package (golden/formats/make_compressed_tensors.py)
// read by lathe, and what must be refused.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/checkpoint.h"
#include "formats/compressed_tensors_config.h"
#include "formats/compressed_tensors_reader.h"
#include "formats/expect_error.h"
#include "formats/safetensors.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

std::string directory_of(const std::string& name) {
  return golden_path("formats/compressed/" + name);
}

struct Golden {
  const char* name;
  WeightFormat format;
  ActivationFormat activations;
  double rel;  // the package decodes in bf16: half a unit there, and one where it rounds twice
  int64_t hadamard = 0;
};

TEST(CompressedTensors, DecodesWhatTheLibraryWrote) {
  using E = ElementType;
  using S = ScaleType;
  using A = ActivationFormat;
  const Golden cases[] = {
      {"nvfp4", {E::kE2M1, S::kE4M3, 16}, A::kNvfp4, 0x1p-7},
      {"nvfp4-weights-only", {E::kE2M1, S::kE4M3, 16}, A::kNone, 0x1p-7},
      {"nvfp4-hadamard", {E::kE2M1, S::kE4M3, 16}, A::kNvfp4, 0x1p-7, 16},
      {"mxfp4", {E::kE2M1, S::kE8M0, 32}, A::kMxfp4, 0},
      {"mxfp4-weights-only", {E::kE2M1, S::kE8M0, 32}, A::kNone, 0},
      {"mxfp8", {E::kE4M3, S::kE8M0, 32}, A::kMxfp8, 0},
      {"int4", {E::kInt4, S::kBF16, 32}, A::kNone, 0x1p-8},
      {"int8-packed", {E::kInt8, S::kF32, 0}, A::kNone, 0x1p-8},
      {"int8", {E::kInt8, S::kF32, 0}, A::kInt8, 0x1p-8},
      {"fp8-channel", {E::kE4M3, S::kF32, 0}, A::kFp8, 0x1p-8},
      {"fp8-tensor", {E::kE4M3, S::kF32, 0}, A::kFp8, 0x1p-8},
  };
  for (const Golden& golden : cases) {
    SCOPED_TRACE(golden.name);
    const auto checkpoint = Checkpoint::open(directory_of(golden.name));
    const SafetensorsFile expected(directory_of(golden.name) + "/expected.safetensors");
    ASSERT_EQ(expected.tensors().size(), 2u);
    for (const SafetensorsTensor& tensor : expected.tensors()) {
      SCOPED_TRACE(tensor.name);
      const LinearWeights weights = checkpoint->load_linear(tensor.name, DType::kF32);
      ASSERT_TRUE(weights.quantized.has_value());
      EXPECT_TRUE(weights.dense.empty());
      const QuantizedMatrix& matrix = *weights.quantized;
      EXPECT_TRUE(matrix.format == golden.format) << weight_format_name(matrix.format);
      EXPECT_EQ(weights.scheme.activations, golden.activations);
      EXPECT_EQ(weights.scheme.hadamard, golden.hadamard);
      EXPECT_FLOAT_EQ(weights.scheme.input_global_scale,
                      golden.activations == A::kNvfp4 ? 2688 / 3.25f : 0);
      ASSERT_EQ((Shape{matrix.rows, matrix.cols}), tensor.view.shape);
      std::vector<float> decoded(static_cast<std::size_t>(matrix.rows * matrix.cols));
      dequantize_rows(matrix, 0, matrix.rows, decoded.data());
      for (std::size_t i = 0; i < decoded.size(); ++i) {
        const double reference = tensor.view.as<float>()[i];
        ASSERT_LE(std::fabs(decoded[i] - reference), golden.rel * std::fabs(reference)) << i;
      }
    }
    const LinearWeights head = checkpoint->load_linear("lm_head", DType::kF32);
    EXPECT_FALSE(head.quantized.has_value());
    EXPECT_EQ(head.scheme.hadamard, 0);
    EXPECT_EQ(head.scheme.activations, ActivationFormat::kNone);
  }
}

TEST(CompressedTensors, TakesAFusedProjectionApart) {
  const auto checkpoint = Checkpoint::open(directory_of("nvfp4-phi3"));
  const SafetensorsFile expected(directory_of("nvfp4-phi3") + "/expected.safetensors");
  const float* reference = expected.at("model.layers.0.self_attn.qkv_proj").as<float>();
  for (const char* part : {"q", "k", "v"}) {
    const LinearWeights weights = checkpoint->load_linear(
        "model.layers.0.self_attn." + std::string(part) + "_proj", DType::kF32);
    const QuantizedMatrix& matrix = weights.quantized.value();
    EXPECT_EQ(matrix.rows, *part == 'q' ? 32 : 16);
    std::vector<float> decoded(static_cast<std::size_t>(matrix.rows * matrix.cols));
    dequantize_rows(matrix, 0, matrix.rows, decoded.data());
    for (const float value : decoded) {
      ASSERT_LE(std::fabs(value - *reference), 0x1p-7 * std::fabs(*reference));
      ++reference;
    }
  }
}

CompressedTensorsConfig parse(const Json& json) {
  return CompressedTensorsConfig::parse(dump_json(json), "config.json").value();
}

TEST(CompressedTensorsConfig, TargetsAndIgnores) {
  Json json = read_json_file(directory_of("nvfp4-hadamard") + "/config.json");
  Json& quantization = json["quantization_config"];
  quantization["ignore"] = {"lm_head", "re:.*down_proj"};
  quantization["transform_config"]["config_groups"]["v"]["apply"][0]["ignore"] = "lm_head";
  quantization["transform_config"]["config_groups"]["v"]["apply"][1]["ignore"] = "lm_head";
  const CompressedTensorsConfig config = parse(json);
  EXPECT_EQ(config.scheme({"lm_head"}), nullptr);
  EXPECT_EQ(config.scheme({"model.layers.0.mlp.down_proj"}), nullptr);
  EXPECT_NE(config.scheme({"model.layers.0.mlp.up_proj"}), nullptr);
  // Rotations have targets of their own.
  EXPECT_EQ(config.hadamard({"model.layers.0.mlp.down_proj"}), 16);
  EXPECT_EQ(config.hadamard({"lm_head"}), 0);
  EXPECT_FALSE(CompressedTensorsConfig::parse("{}", "config.json").has_value());
}

TEST(CompressedTensorsConfig, RefusesWhatLatheDoesNotRun) {
  const Json base = read_json_file(directory_of("nvfp4-hadamard") + "/config.json");
  const struct {
    const char* pointer;  // into quantization_config
    Json value;
    ErrorCode code;
    const char* message;
  } cases[] = {
      {"/quant_method", "gptq", ErrorCode::kUnsupported, "quant_method = \"gptq\""},
      {"/quantization_status", "frozen", ErrorCode::kUnsupported, "quantization_status"},
      {"/sparsity_config/format", "sparse-bitmask", ErrorCode::kUnsupported, "sparse-bitmask"},
      {"/config_groups", nullptr, ErrorCode::kCorruptData, "config_groups is missing"},
      {"/config_groups", 5, ErrorCode::kCorruptData, "config_groups = 5"},
      {"/config_groups/group_0", 5, ErrorCode::kCorruptData, "group_0: is not a JSON object"},
      {"/config_groups/group_0/targets", 5, ErrorCode::kCorruptData, "targets = 5"},
      {"/config_groups/group_0/targets", {"re:["}, ErrorCode::kCorruptData, "module pattern"},
      {"/config_groups/group_0/format", "marlin-24", ErrorCode::kUnsupported, "marlin-24"},
      {"/config_groups/group_0/weights/num_bits", 0, ErrorCode::kCorruptData, "num_bits = 0"},
      {"/config_groups/group_0/weights/num_bits", 6, ErrorCode::kUnsupported, "needs 4-bit"},
      {"/config_groups/group_0/weights/symmetric", false, ErrorCode::kUnsupported, "symmetric"},
      {"/config_groups/group_0/weights/group_size", 32, ErrorCode::kUnsupported, "groups of 16"},
      {"/config_groups/group_0/weights/group_size", -2, ErrorCode::kCorruptData, "group_size"},
      {"/config_groups/group_0/weights/group_size", nullptr, ErrorCode::kCorruptData,
       "needs a positive group_size"},
      {"/config_groups/group_0/weights/strategy", "block", ErrorCode::kUnsupported, "'block'"},
      {"/config_groups/group_0/weights/type", "complex", ErrorCode::kCorruptData, "int or float"},
      {"/config_groups/group_0/input_activations/num_bits", 6, ErrorCode::kUnsupported,
       "6-bit float activations"},
      {"/config_groups/group_0/output_activations", Json{{"num_bits", 8}}, ErrorCode::kUnsupported,
       "output_activations"},
      {"/transform_config/config_groups/v/type", "random-hadamard", ErrorCode::kUnsupported,
       "random-hadamard"},
      {"/transform_config/config_groups/v/head_dim", 24, ErrorCode::kUnsupported, "head_dim = 24"},
      {"/transform_config/config_groups/v/head_dim", nullptr, ErrorCode::kCorruptData,
       "head_dim is missing"},
      {"/transform_config/config_groups/v/apply/0/location", "output", ErrorCode::kUnsupported,
       "location = \"output\""},
      {"/transform_config/config_groups/v/apply/0/location", "weight_input",
       ErrorCode::kUnsupported, "one input with one weight_input"},
      {"/transform_config/config_groups/v/apply/0/targets",
       {"lm_head"},
       ErrorCode::kUnsupported,
       "must have the same"},
      {"/transform_config/config_groups/v/apply", Json::array(), ErrorCode::kUnsupported,
       "needs input and weight_input"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.pointer);
    Json json = base;
    json["quantization_config"][Json::json_pointer(c.pointer)] = c.value;
    expect_error(c.code, c.message, [&] { parse(json); });
  }
}

// One module in memory; tests spoil one tensor.
class OneModule : public testing::Test {
 protected:
  OneModule() : codes(DType::kU8, {4, 16}), scales(DType::kF8E4M3, {4, 2}) {
    std::memset(codes.data(), 0x21, 64);
    std::memset(scales.data(), 0x38, 8);
    scheme.element = ElementType::kE2M1;
    scheme.group_size = 16;
    scheme.has_global_scale = scheme.has_input_global_scale = true;
    scheme.activations = ActivationFormat::kNvfp4;
  }
  LinearWeights read() {
    return read_compressed_linear(scheme, "L", 4, 32, [&](const std::string& name) {
      const auto found = tensors.find(name);
      return found == tensors.end() ? nullptr : &found->second;
    });
  }
  void expect(ErrorCode code, const char* message) {
    SCOPED_TRACE(message);
    expect_error(code, message, [&] { read(); });
  }
  Tensor codes, scales;
  float global = 100, input_global = 50;
  CompressedScheme scheme;
  std::map<std::string, TensorView> tensors = {
      {"L.weight_packed", {DType::kU8, {4, 16}, codes.data()}},
      {"L.weight_scale", {DType::kF8E4M3, {4, 2}, scales.data()}},
      {"L.weight_global_scale", {DType::kF32, {1}, reinterpret_cast<const std::byte*>(&global)}},
      {"L.input_global_scale",
       {DType::kF32, {1}, reinterpret_cast<const std::byte*>(&input_global)}},
  };
};

TEST_F(OneModule, RefusesTensorsThatDoNotFit) {
  const LinearWeights good = read();
  EXPECT_EQ(good.quantized->global_scale, 100);
  EXPECT_EQ(good.scheme.input_global_scale, 50);

  const auto base = tensors;
  const auto spoil = [&](const char* name, const std::function<void(TensorView&)>& change,
                         const char* message) {
    change(tensors.at(name));
    expect(ErrorCode::kCorruptData, message);
    tensors = base;
  };
  spoil(
      "L.weight_packed",
      [](TensorView& t) {
        t.shape = {4, 15};
      },
      "has shape [4, 15]");
  spoil(
      "L.weight_packed", [](TensorView& t) { t.dtype = DType::kI8; }, "is I8, expected U8");
  spoil(
      "L.weight_scale",
      [](TensorView& t) {
        t.shape = {2, 4};
      },
      "expected [4, 2]");
  spoil(
      "L.weight_scale", [](TensorView& t) { t.dtype = DType::kU8; }, "no scale of this format");
  spoil(
      "L.weight_global_scale", [](TensorView& t) { t.shape = {2}; }, "expected one F32 number");
  spoil(
      "L.weight_global_scale", [](TensorView& t) { t.dtype = DType::kBF16; }, "BF16");
  for (const char* name : {"L.weight_packed", "L.weight_scale", "L.weight_global_scale"}) {
    tensors.erase(name);
    expect(ErrorCode::kNotFound, name);
    tensors = base;
  }
  tensors["L.weight_zero_point"] = tensors.at("L.weight_scale");
  expect(ErrorCode::kUnsupported, "symmetric weights");
}

TEST_F(OneModule, RefusesNumbersThatAreNone) {
  const float bad[] = {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                       std::numeric_limits<float>::quiet_NaN()};
  for (const float value : bad) {
    global = value;
    expect(ErrorCode::kCorruptData, "L.weight_global_scale' = ");
    global = 100;
    input_global = value;
    expect(ErrorCode::kCorruptData, "L.input_global_scale' = ");
    input_global = 50;
  }
  for (const uint8_t nan : {uint8_t{0x7f}, uint8_t{0xff}}) {
    scales.as<uint8_t>()[7] = nan;
    expect(ErrorCode::kCorruptData, "weight_scale' has values that are not numbers");
  }
  scales.as<uint8_t>()[7] = 0x38;
  EXPECT_NO_THROW(read());

  scheme.has_global_scale = false;
  scheme.group_size = 32;
  tensors.at("L.weight_scale") = {DType::kU8, {4, 1}, scales.data()};
  EXPECT_NO_THROW(read());
  scales.as<uint8_t>()[3] = 255;
  expect(ErrorCode::kCorruptData, "not numbers");
}

TEST(CompressedTensors, KnowsAHadamardMatrix) {
  std::vector<float> matrix(16 * 16);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      matrix[static_cast<std::size_t>(16 * i + j)] =
          __builtin_popcount(static_cast<unsigned>(i & j)) % 2 == 0 ? 1.0f : -1.0f;
    }
  }
  const TensorView view{DType::kF32, {16, 16}, reinterpret_cast<const std::byte*>(matrix.data())};
  EXPECT_NO_THROW(check_stored_hadamard(view, 16, "v"));
  matrix[18] = -matrix[18];
  expect_error(ErrorCode::kUnsupported, "is not the Hadamard matrix",
               [&] { check_stored_hadamard(view, 16, "v"); });
  expect_error(ErrorCode::kCorruptData, "has shape [16, 16]",
               [&] { check_stored_hadamard(view, 32, "v"); });
}

}  // namespace
}  // namespace lathe
