#include "formats/compressed_tensors_config.h"

#include <bit>

#include "base/error.h"
#include "base/json.h"
#include "formats/json_fields.h"

namespace lathe {
namespace {

constexpr int64_t kMaxGroupSize = int64_t{1} << 20;

ModulePatterns parse_patterns(const JsonFields& fields, const std::string& key) {
  ModulePatterns patterns;
  if (!fields.has(key)) return patterns;
  const Json* value = fields.find(key);
  if (value->is_string()) {  // a single name may stand for a list of one
    patterns.add(fields.text(key), fields.what() + ": " + key);
    return patterns;
  }
  for (const std::string& pattern : fields.texts(key)) {
    patterns.add(pattern, fields.what() + ": " + key);
  }
  return patterns;
}

// The arguments of one quantization, with the library's defaults (QuantizationArgs).
struct Args {
  int64_t num_bits = 8;
  bool is_float = false;
  std::string strategy;
  int64_t group_size = 0;
};

Args parse_args(const JsonFields& fields) {
  Args args;
  args.num_bits = fields.integer_or("num_bits", 8, 1, 32);
  const std::string type = fields.text_or("type", "int");
  if (type != "int" && type != "float") fields.refuse("type", "must be int or float");
  args.is_float = type == "float";
  args.group_size = fields.integer_or("group_size", 0, -1, kMaxGroupSize);
  if (fields.has("strategy")) {
    args.strategy = fields.text("strategy");
  } else {
    args.strategy = args.group_size > 0 ? "group" : args.group_size == -1 ? "channel" : "tensor";
  }
  const bool grouped = args.strategy == "group" || args.strategy == "tensor_group";
  if (grouped && args.group_size < 1) {
    fields.refuse("strategy", "needs a positive group_size");
  }
  if (!fields.boolean_or("symmetric", true)) {
    fields.unsupported("symmetric", "lathe reads symmetric quantization (no zero points)");
  }
  return args;
}

// Both are resolved at run time by lathe: per token or per group, where a file may ask for a static
// scale of the whole tensor, which is coarser.
void parse_activations(const JsonFields& fields, CompressedScheme& scheme) {
  const Args args = parse_args(fields);
  const bool grouped = args.strategy == "group" || args.strategy == "tensor_group";
  if (args.is_float && args.num_bits == 4 && args.strategy == "tensor_group" &&
      args.group_size == 16) {
    scheme.activations = ActivationFormat::kNvfp4;
    scheme.has_input_global_scale = true;
  } else if (args.is_float && args.num_bits == 4 && grouped && args.group_size == 32) {
    scheme.activations = ActivationFormat::kMxfp4;
  } else if (args.is_float && args.num_bits == 8 && grouped && args.group_size == 32) {
    scheme.activations = ActivationFormat::kMxfp8;
  } else if (args.is_float && args.num_bits == 8 && !grouped) {
    scheme.activations = ActivationFormat::kFp8;
  } else if (!args.is_float && args.num_bits == 8) {
    scheme.activations = ActivationFormat::kInt8;
  } else {
    fail(ErrorCode::kUnsupported, fields.what(), ": ", args.num_bits, "-bit ",
         args.is_float ? "float" : "int", " activations by ", args.strategy,
         " are not something lathe runs");
  }
}

CompressedScheme parse_scheme(const JsonFields& group, const JsonFields& weights,
                              const std::string& format) {
  const auto unsupported = [&](const std::string& reason) {
    fail(ErrorCode::kUnsupported, weights.what(), ": ", reason);
  };
  const Args args = parse_args(weights);
  CompressedScheme scheme;
  if (args.strategy == "tensor") {
    scheme.scale_shape = ScaleShape::kTensor;
  } else if (args.strategy == "channel") {
    scheme.scale_shape = ScaleShape::kChannel;
  } else if (args.strategy == "group" || args.strategy == "tensor_group") {
    scheme.scale_shape = ScaleShape::kGroup;
    scheme.group_size = args.group_size;
  } else {
    unsupported("scales by '" + args.strategy + "' (lathe reads tensor, channel, group)");
  }
  if (format == "nvfp4-pack-quantized" || format == "mxfp4-pack-quantized") {
    scheme.has_global_scale = format == "nvfp4-pack-quantized";
    const int64_t group_size = scheme.has_global_scale ? 16 : 32;
    if (!args.is_float || args.num_bits != 4 || args.group_size != group_size) {
      unsupported(str(format, " needs 4-bit floats in groups of ", group_size));
    }
    scheme.layout = PackedLayout::kFp4;
    scheme.element = ElementType::kE2M1;
  } else if (format == "pack-quantized") {
    if (args.is_float || (args.num_bits != 4 && args.num_bits != 8)) {
      unsupported(str(format, " with ", args.num_bits, "-bit weights (lathe reads int4, int8)"));
    }
    scheme.layout = PackedLayout::kInt32;
    scheme.element = args.num_bits == 4 ? ElementType::kInt4 : ElementType::kInt8;
  } else if (format == "int-quantized" || format == "float-quantized" ||
             format == "naive-quantized" || format == "mxfp8-quantized") {
    if (args.num_bits != 8) unsupported(str(format, " with ", args.num_bits, "-bit weights"));
    scheme.layout = PackedLayout::kPlain;
    scheme.element = args.is_float ? ElementType::kE4M3 : ElementType::kInt8;
  } else {
    unsupported("format '" + format +
                "' (lathe reads nvfp4-pack-quantized, mxfp4-pack-quantized, pack-quantized, "
                "int-quantized, float-quantized, mxfp8-quantized)");
  }
  if (const auto activations = group.object("input_activations")) {
    parse_activations(*activations, scheme);
  }
  if (group.has("output_activations")) {
    group.unsupported("output_activations", "lathe quantizes inputs only");
  }
  return scheme;
}

}  // namespace

std::optional<CompressedTensorsConfig> CompressedTensorsConfig::parse(
    const std::string& config_json, const std::string& what) {
  const Json json = parse_json(config_json, what);
  const JsonFields top(json, what);
  std::optional<JsonFields> fields = top.object("quantization_config");
  if (!fields) fields = top.object("compression_config");  // its name until 2024
  if (!fields) {
    if (const auto text = top.object("text_config")) fields = text->object("quantization_config");
  }
  if (!fields) return std::nullopt;
  const std::string method = fields->text_or("quant_method", "compressed-tensors");
  if (method != "compressed-tensors") {
    fields->unsupported("quant_method",
                        "lathe reads compressed-tensors; take the unquantized model");
  }
  const std::string status = fields->text_or("quantization_status", "compressed");
  if (status != "compressed") {
    fields->unsupported("quantization_status", "lathe reads weights in their compressed form");
  }
  if (const auto sparsity = fields->object("sparsity_config")) {
    if (sparsity->text_or("format", "dense") != "dense") {
      sparsity->unsupported("format", "lathe reads dense weights");
    }
  }

  CompressedTensorsConfig config;
  const std::string format = fields->text_or("format", "");
  config.ignore_ = parse_patterns(*fields, "ignore");
  const auto groups = fields->object("config_groups");
  if (!groups) fail(ErrorCode::kCorruptData, fields->what(), ": config_groups is missing");
  for (const auto& [name, value] : fields->find("config_groups")->items()) {
    const JsonFields group(value, groups->what() + ": " + name.substr(0, 80));
    Group parsed;
    parsed.targets = parse_patterns(group, "targets");
    if (const auto weights = group.object("weights")) {
      parsed.scheme = parse_scheme(group, *weights, group.text_or("format", format));
    }
    config.groups_.push_back(std::move(parsed));
  }

  const auto transforms = fields->object("transform_config");
  const Json* transform_groups = transforms ? transforms->find("config_groups") : nullptr;
  if (transform_groups == nullptr) return config;
  const auto checked = transforms->object("config_groups");
  for (const auto& [name, value] : transform_groups->items()) {
    const JsonFields transform(value, checked->what() + ": " + name.substr(0, 80));
    if (transform.text("type") != "hadamard") {
      transform.unsupported("type", "lathe knows the deterministic Hadamard matrix");
    }
    Rotation rotation;
    rotation.block = transform.integer("head_dim", 1, kMaxGroupSize);
    if (!std::has_single_bit(static_cast<uint64_t>(rotation.block)) || rotation.block < 16 ||
        rotation.block > 128) {
      transform.unsupported("head_dim", "lathe rotates by blocks of 16, 32, 64 or 128");
    }
    // The online rotation of the input must come with the one merged into the weight: only the
    // pair leaves the layer's result as it was.
    bool online = false, merged = false;
    const Json* apply = transform.find("apply");
    if (apply == nullptr || !apply->is_array()) transform.refuse("apply", "must be a list");
    Json first_targets, first_ignore;
    for (const Json& entry : *apply) {
      const JsonFields step(entry, transform.what() + ": apply");
      const std::string location = step.text("location");
      bool& seen = location == "input" ? online : merged;
      if ((location != "input" && location != "weight_input") || seen) {
        step.unsupported("location", "lathe knows one input with one weight_input");
      }
      const Json targets = entry.value("targets", Json::array());
      const Json ignore = entry.value("ignore", Json::array());
      if ((online || merged) && (targets != first_targets || ignore != first_ignore)) {
        step.unsupported("targets", "input and weight_input must have the same");
      }
      first_targets = targets;
      first_ignore = ignore;
      seen = true;
      if (location == "input") {
        rotation.targets = parse_patterns(step, "targets");
        rotation.ignore = parse_patterns(step, "ignore");
        config.stored_transforms_.push_back({"." + name + "_input.weight", rotation.block});
        config.stored_transforms_.push_back({"." + name + "_weight_input.weight", rotation.block});
      }
    }
    if (!online || !merged) transform.unsupported("apply", "needs input and weight_input");
    config.rotations_.push_back(std::move(rotation));
  }
  return config;
}

const CompressedScheme* CompressedTensorsConfig::scheme(
    const std::vector<std::string>& spellings) const {
  if (ignore_.matches(spellings)) return nullptr;
  for (const Group& group : groups_) {
    if (group.scheme && group.targets.matches(spellings)) return &*group.scheme;
  }
  return nullptr;
}

int64_t CompressedTensorsConfig::hadamard(const std::vector<std::string>& spellings) const {
  int64_t block = 0;
  for (const Rotation& rotation : rotations_) {
    if (!rotation.targets.matches(spellings) || rotation.ignore.matches(spellings)) {
      continue;
    }
    if (block != 0) {
      fail(ErrorCode::kUnsupported, "'", spellings.front(), "' has two rotations of its input");
    }
    block = rotation.block;
  }
  return block;
}

}  // namespace lathe
