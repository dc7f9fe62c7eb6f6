#include "formats/compressed_tensors_layout.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/json.h"
#include "formats/hf_names.h"

namespace lathe {
namespace {

// The version whose layout this is; readers do not compare it.
constexpr const char* kCompressedTensorsVersion = "0.20.0";

bool is_wide(ScaleType scale) {
  return scale == ScaleType::kBF16 || scale == ScaleType::kF16 || scale == ScaleType::kF32;
}

// The name of the layout; nullopt when there is none.
std::optional<std::string> layout_name(const WeightFormat& format, ActivationFormat activations) {
  switch (format.element) {
    case ElementType::kE2M1:
      if (format.scale == ScaleType::kE8M0 && format.group_size == 32) {
        return "mxfp4-pack-quantized";
      }
      if (format.scale == ScaleType::kE4M3 && format.group_size == 16) {
        return "nvfp4-pack-quantized";
      }
      return std::nullopt;
    case ElementType::kInt4:
      if (is_wide(format.scale)) return "pack-quantized";
      return std::nullopt;
    case ElementType::kInt8:
      // Engines take plain int8 only together with int8 activations, and packed int8 only without.
      if (!is_wide(format.scale)) return std::nullopt;
      return activations == ActivationFormat::kInt8 ? "int-quantized" : "pack-quantized";
    case ElementType::kE4M3:
      if (is_wide(format.scale)) return "float-quantized";
      if (format.scale == ScaleType::kE8M0 && format.group_size == 32) return "mxfp8-quantized";
      return std::nullopt;
  }
  return std::nullopt;
}

DType scale_dtype(ScaleType scale) {
  switch (scale) {
    case ScaleType::kE4M3:
      return DType::kF8E4M3;
    case ScaleType::kBF16:
      return DType::kBF16;
    case ScaleType::kF16:
      return DType::kF16;
    case ScaleType::kF32:
      return DType::kF32;
    case ScaleType::kE8M0:
    case ScaleType::kLogLinear8:
      break;
  }
  return DType::kU8;
}

// Layers that engines stack into one matrix: the name without what tells the parts apart, for
// example "model.layers.0.self_attn.qkv". Empty for the others.
std::string stack_of(const std::string& module) {
  const std::size_t dot = module.rfind('.');
  if (dot == std::string::npos) return "";
  const std::string prefix = module.substr(0, dot);
  const std::string last = module.substr(dot + 1);
  if (last == "q_proj" || last == "k_proj" || last == "v_proj") return prefix + ".qkv";
  if (last == "gate_proj" || last == "up_proj" || last == "w1" || last == "w3") {
    return prefix + ".gate_up";
  }
  return "";
}

// q + 2^(bits-1) instead of two's complement, in little-endian 32-bit words with the first column
// lowest: our bytes with each element's sign bit flipped.
Tensor pack_integers(const QuantizedMatrix& matrix) {
  static_assert(std::endian::native == std::endian::little);
  const int64_t bits = element_bits(matrix.format.element);
  const auto flip = static_cast<uint8_t>(bits == 4 ? 0x88 : 0x80);
  Tensor packed(DType::kI32, {matrix.rows, matrix.cols * bits / 32});
  const auto* from = matrix.codes.as<uint8_t>();
  auto* to = packed.as<uint8_t>();
  for (int64_t i = 0; i < packed.num_bytes(); ++i) to[i] = static_cast<uint8_t>(from[i] ^ flip);
  return packed;
}

Tensor one_float(float value) {
  Tensor tensor(DType::kF32, {1});
  tensor.as<float>()[0] = value;
  return tensor;
}

// One transform scheme for each block size, since a layer whose width the wanted block does not
// divide takes a smaller one. Its tensors are called L.NAME_input.weight.
std::string transform_name(int64_t block) { return "v" + std::to_string(block); }

// Entries +-1 in bf16; the reader divides by sqrt(block).
Tensor hadamard_matrix(int64_t block) {
  constexpr uint16_t kPlusOne = 0x3f80;
  constexpr uint16_t kMinusOne = 0xbf80;
  Tensor matrix(DType::kBF16, {block, block});
  auto* entries = matrix.as<uint16_t>();
  for (int64_t i = 0; i < block; ++i) {
    for (int64_t j = 0; j < block; ++j) {
      const bool negative = std::popcount(static_cast<uint64_t>(i & j)) % 2 != 0;
      entries[i * block + j] = negative ? kMinusOne : kPlusOne;
    }
  }
  return matrix;
}

// QuantizationArgs of the library.
Json weight_args(const WeightFormat& format) {
  Json args;
  args["num_bits"] = element_bits(format.element);
  const bool is_int = format.element == ElementType::kInt4 || format.element == ElementType::kInt8;
  args["type"] = is_int ? "int" : "float";
  args["symmetric"] = true;
  args["dynamic"] = false;
  if (format.group_size == 0) {
    args["strategy"] = "channel";
  } else {
    args["strategy"] = format.scale == ScaleType::kE4M3 ? "tensor_group" : "group";
    args["group_size"] = format.group_size;
  }
  if (format.scale == ScaleType::kE4M3) args["scale_dtype"] = "torch.float8_e4m3fn";
  if (format.scale == ScaleType::kE8M0) args["scale_dtype"] = "torch.uint8";
  return args;
}

Json activation_args(const LinearScheme& scheme) {
  const auto args = [](int bits, const char* type, const char* strategy) {
    return Json{{"num_bits", bits}, {"type", type}, {"symmetric", true}, {"strategy", strategy}};
  };
  Json json;
  switch (scheme.activations) {
    case ActivationFormat::kNone:
      return nullptr;
    case ActivationFormat::kInt8:
      // lathe computes finer than this says, per group; the file names what engines have.
      json = args(8, "int", "token");
      json["dynamic"] = true;
      return json;
    case ActivationFormat::kFp8:
      json = args(8, "float", "token");
      json["dynamic"] = true;
      return json;
    case ActivationFormat::kNvfp4:
      json = args(4, "float", "tensor_group");
      json["group_size"] = 16;
      json["scale_dtype"] = "torch.float8_e4m3fn";
      if (scheme.input_global_scale > 0) {  // static global scale, group scales at run time
        json["dynamic"] = "local";
        json["observer"] = "static_minmax";
      } else {
        json["dynamic"] = true;
      }
      return json;
    case ActivationFormat::kMxfp4:
    case ActivationFormat::kMxfp8:
      json = args(scheme.activations == ActivationFormat::kMxfp4 ? 4 : 8, "float", "group");
      json["group_size"] = 32;
      json["scale_dtype"] = "torch.uint8";
      json["dynamic"] = true;
      return json;
  }
  return nullptr;
}

Json transform_group(int64_t block, const Json& targets, const Json& ignore) {
  Json transform = {{"type", "hadamard"},
                    {"head_dim", block},
                    {"randomize", false},
                    {"requires_grad", false},
                    {"precision", "torch.bfloat16"}};
  transform["apply"] = Json::array();
  for (const char* location : {"input", "weight_input"}) {
    transform["apply"].push_back({{"targets", targets},
                                  {"location", location},
                                  {"inverse", std::string(location) == "weight_input"},
                                  {"ignore", ignore}});
  }
  return transform;
}

}  // namespace

void check_expressible(std::span<const QuantizedLinear> linears) {
  std::map<std::string, const QuantizedLinear*> first_of_stack;
  for (const QuantizedLinear& linear : linears) {
    const QuantizedMatrix& matrix = *linear.weight;
    const auto refuse = [&](ErrorCode code, const std::string& why) {
      fail(code, "'", linear.module, "': ", why);
    };
    const bool has_layout = layout_name(matrix.format, linear.scheme.activations).has_value();
    const bool is_nvfp4 = has_layout && matrix.format.scale == ScaleType::kE4M3;
    if (!has_layout || (!is_nvfp4 && matrix.global_scale != 1)) {
      std::string what = weight_format_name(matrix.format);
      if (has_layout) what += str(" with a global scale of ", matrix.global_scale);
      refuse(ErrorCode::kUnsupported,
             what +
                 " cannot be expressed in compressed-tensors; store the decoded weights "
                 "densely, or choose mxfp4 with power-of-two scales, nvfp4, int4, int8, fp8 "
                 "or mxfp8");
    }
    if (is_nvfp4 && !(matrix.global_scale > 0 && std::isfinite(matrix.global_scale))) {
      refuse(ErrorCode::kInvalidArgument,
             str("a global scale of ", matrix.global_scale, " is not a divisor"));
    }
    const int64_t bits = element_bits(matrix.format.element);
    if (matrix.cols * bits % 32 != 0) {
      refuse(ErrorCode::kUnsupported,
             str(matrix.cols, " input features of ", bits, " bits do not fill 32-bit words"));
    }
    if (linear.scheme.hadamard != 0 && matrix.cols % linear.scheme.hadamard != 0) {
      refuse(ErrorCode::kInvalidArgument,
             str("a rotation of ", linear.scheme.hadamard, " does not divide ", matrix.cols));
    }
    const std::string stack = stack_of(linear.module);
    if (stack.empty()) continue;
    const auto [first, is_first] = first_of_stack.emplace(stack, &linear);
    if (is_first) continue;
    const QuantizedLinear& other = *first->second;
    if (is_nvfp4 && (other.weight->global_scale != matrix.global_scale ||
                     other.scheme.input_global_scale != linear.scheme.input_global_scale)) {
      refuse(ErrorCode::kInvalidArgument,
             str("its global scales (weight ", matrix.global_scale, ", input ",
                 linear.scheme.input_global_scale, ") differ from those of '", other.module, "' (",
                 other.weight->global_scale, ", ", other.scheme.input_global_scale,
                 "); engines stack the two and keep one"));
    }
  }
}

LinearTensors linear_tensors(const QuantizedLinear& linear) {
  const QuantizedMatrix& matrix = *linear.weight;
  const std::string layout = layout_name(matrix.format, linear.scheme.activations).value();
  LinearTensors result;
  const auto borrow = [&](const std::string& suffix, DType dtype, Shape shape,
                          const Buffer& buffer) {
    result.tensors.push_back({linear.module + suffix, {dtype, std::move(shape), buffer.data()}});
  };
  const auto own = [&](const std::string& suffix, Tensor tensor) {
    result.owned.push_back(std::move(tensor));
    result.tensors.push_back({linear.module + suffix, result.owned.back().view()});
  };

  const Shape shape = {matrix.rows, matrix.cols};
  if (layout == "mxfp4-pack-quantized" || layout == "nvfp4-pack-quantized") {
    borrow(".weight_packed", DType::kU8, {matrix.rows, matrix.cols / 2}, matrix.codes);
  } else if (layout == "pack-quantized") {
    own(".weight_packed", pack_integers(matrix));
    Tensor original_shape(DType::kI64, {2});
    std::memcpy(original_shape.data(), shape.data(), 2 * sizeof(int64_t));
    own(".weight_shape", std::move(original_shape));
  } else {
    const bool is_int = matrix.format.element == ElementType::kInt8;
    borrow(".weight", is_int ? DType::kI8 : DType::kF8E4M3, shape, matrix.codes);
  }
  borrow(".weight_scale", scale_dtype(matrix.format.scale), {matrix.rows, matrix.num_groups()},
         matrix.scales);
  if (matrix.format.scale == ScaleType::kE4M3) {
    own(".weight_global_scale", one_float(matrix.global_scale));
  }
  if (linear.scheme.activations == ActivationFormat::kNvfp4 &&
      linear.scheme.input_global_scale > 0) {
    own(".input_global_scale", one_float(linear.scheme.input_global_scale));
  }
  if (const int64_t block = linear.scheme.hadamard; block != 0) {
    own("." + transform_name(block) + "_input.weight", hadamard_matrix(block));
  }
  return result;
}

std::string quantization_config(std::span<const ModuleScheme> modules,
                                std::span<const std::string> ignore) {
  struct Group {
    std::string layout;
    Json scheme;   // weights and input_activations
    Json modules;  // names
  };
  std::vector<Group> groups;
  std::map<int64_t, Json> modules_of_block;  // by Hadamard block, 0 included
  for (const ModuleScheme& module : modules) {
    const std::string layout = layout_name(module.format, module.scheme.activations).value();
    const Json scheme = {{"weights", weight_args(module.format)},
                         {"input_activations", activation_args(module.scheme)},
                         {"output_activations", nullptr}};
    Group* group = nullptr;
    for (Group& known : groups) {
      if (known.layout == layout && known.scheme == scheme) group = &known;
    }
    if (group == nullptr) group = &groups.emplace_back(Group{layout, scheme, Json::array()});
    for (const std::string& name : engine_spellings(module.module)) {
      group->modules.push_back(name);
      modules_of_block[module.scheme.hadamard].push_back(name);
    }
  }

  const Json everything = Json::array({"Linear"});
  Json config;
  config["quant_method"] = "compressed-tensors";
  config["version"] = kCompressedTensorsVersion;
  bool one_layout = true;
  for (const Group& group : groups) one_layout = one_layout && group.layout == groups[0].layout;
  config["format"] = groups.empty() ? "dense" : one_layout ? groups[0].layout : "mixed-precision";
  config["quantization_status"] = "compressed";
  config["global_compression_ratio"] = nullptr;
  config["kv_cache_scheme"] = nullptr;
  config["ignore"] = Json::array();
  for (const std::string& module : ignore) {
    for (const std::string& name : engine_spellings(module)) config["ignore"].push_back(name);
  }
  config["sparsity_config"] = Json::object();
  config["config_groups"] = Json::object();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    Json& group = config["config_groups"]["group_" + std::to_string(i)];
    group["targets"] = groups.size() == 1 ? everything : groups[i].modules;
    group["format"] = groups[i].layout;
    group.update(groups[i].scheme);
  }

  Json transforms = Json::object();
  for (const auto& [block, names] : modules_of_block) {
    if (block == 0) continue;
    const bool all = modules_of_block.size() == 1;
    transforms[transform_name(block)] =
        transform_group(block, all ? everything : names, all ? config["ignore"] : Json::array());
  }
  config["transform_config"] = Json::object();
  if (!transforms.empty()) config["transform_config"]["config_groups"] = std::move(transforms);
  return dump_json(config, 2);
}

}  // namespace lathe
