#include "formats/judge_file.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/json.h"
#include "base/sha256.h"
#include "formats/safetensors.h"
#include "formats/safetensors_writer.h"

namespace lathe {
namespace {

constexpr int64_t kMaxDim = 1 << 20;

std::span<const std::byte> bytes_of(const void* data, int64_t size) {
  return {static_cast<const std::byte*>(data), static_cast<std::size_t>(size)};
}

std::vector<float> read_vector(const SafetensorsFile& file, const std::string& name) {
  const TensorView* found = file.find(name);
  if (found == nullptr) fail(ErrorCode::kCorruptData, file.path(), ": has no tensor '", name, "'");
  const TensorView& view = *found;
  if (view.dtype != DType::kF32 || view.shape.size() != 1 || view.shape[0] > kMaxDim) {
    fail(ErrorCode::kCorruptData, file.path(), ": tensor '", name, "' is ", to_string(view.shape),
         "; a judge has vectors of f32 there");
  }
  const Tensor tensor = load_dense(view, DType::kF32);
  std::vector<float> values(tensor.as<float>(), tensor.as<float>() + tensor.num_elements());
  for (const float value : values) {
    if (std::isfinite(value)) continue;
    fail(ErrorCode::kCorruptData, file.path(), ": tensor '", name,
         "' holds a number that is not finite");
  }
  return values;
}

const Json& field(const Json& json, const char* name, const std::string& path) {
  if (json.is_object() && json.contains(name)) return json[name];
  fail(ErrorCode::kCorruptData, path, ": its metadata have no '", name, "'");
}

std::string text_field(const Json& json, const char* name, const std::string& path) {
  const Json& value = field(json, name, path);
  if (!value.is_string()) {
    fail(ErrorCode::kCorruptData, path, ": '", name, "' in its metadata is no text");
  }
  return value.get<std::string>();
}

double number_field(const Json& json, const char* name, const std::string& path) {
  const Json& value = field(json, name, path);
  if (!value.is_number()) {
    fail(ErrorCode::kCorruptData, path, ": '", name, "' in its metadata is no number");
  }
  return value.get<double>();
}

// {"risk": {"certified": [{"epsilon", "threshold"}, ...]}}; risk may be missing or null.
std::vector<double> certified_thresholds(const Json& json, const std::string& path) {
  std::vector<double> thresholds;
  const auto risk = json.find("risk");
  if (risk == json.end() || risk->is_null()) return thresholds;
  const Json& list = field(*risk, "certified", path);
  if (!list.is_array()) fail(ErrorCode::kCorruptData, path, ": 'certified' is no list");
  for (const Json& row : list) {
    const double threshold = number_field(row, "threshold", path);
    if (!(threshold >= 0 && threshold <= 1)) {
      fail(ErrorCode::kCorruptData, path, ": a certified threshold is ", threshold,
           "; it must be in [0, 1]");
    }
    thresholds.push_back(threshold);
  }
  return thresholds;
}

}  // namespace

JudgeTarget judge_target(const Checkpoint& checkpoint) {
  JudgeTarget target;
  target.hidden_size = checkpoint.config().hidden_size;
  const std::string config = checkpoint.auxiliary_file("config.json").value_or("");
  target.config_sha256 = sha256_hex(bytes_of(config.data(), std::ssize(config)));
  Sha256 hash;
  for (const char* module :
       {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"}) {
    const LinearWeights weights = checkpoint.load_linear(module, DType::kBF16);
    if (weights.quantized) {
      const QuantizedMatrix& matrix = *weights.quantized;
      target.weight_format = weight_format_name(matrix.format);
      hash.update(bytes_of(matrix.codes.data(), matrix.codes.size()));
      hash.update(bytes_of(matrix.scales.data(), matrix.scales.size()));
    } else {
      target.weight_format = "dense";
      hash.update(bytes_of(weights.dense.data(), weights.dense.num_bytes()));
    }
  }
  target.weights_sha256 = hash.hex_digest();
  return target;
}

void write_judge_file(const std::string& path, const JudgeFile& judge) {
  Json json = parse_json(judge.metadata, "judge metadata");
  json["schema"] = 1;
  json["kind"] = "logistic";
  json["features"] = {{{"name", "h_target"},
                       {"dim", judge.weight.size()},
                       {"position", "draft_token"},
                       {"norm", "post_final"}}};
  json["target"]["config_sha256"] = judge.target.config_sha256;
  json["target"]["weights_fingerprint"] = judge.target.weights_sha256;
  json["target"]["weight_format"] = judge.target.weight_format;
  json["default_threshold"] = judge.default_threshold;
  const std::vector<float> bias = {judge.bias};
  const std::pair<const char*, const std::vector<float>*> vectors[] = {
      {"weight", &judge.weight},
      {"bias", &bias},
      {"mean", &judge.mean},
      {"scale", &judge.scale},
      {"raw_weight", &judge.raw_weight},
      {"calib.threshold", &judge.threshold},
      {"calib.recall", &judge.recall},
      {"calib.rho", &judge.rho}};
  std::vector<TensorSpec> specs;
  for (const auto& [name, values] : vectors) {
    specs.push_back({name, DType::kF32, {std::ssize(*values)}});
  }
  SafetensorsWriter writer(path, specs, {{"format", "pt"}, {"judge", dump_json(json)}});
  for (const auto& [name, values] : vectors) {
    writer.append(name, bytes_of(values->data(), std::ssize(*values) * 4));
  }
  writer.commit();
}

JudgeFile read_judge_file(const std::string& path) {
  const SafetensorsFile file(path);
  JudgeFile judge;
  for (const auto& [key, value] : file.metadata()) {
    if (key == "judge") judge.metadata = value;
  }
  if (judge.metadata.empty()) {
    fail(ErrorCode::kCorruptData, path, ": is no judge (no 'judge' in its metadata)");
  }
  const Json json = parse_json(judge.metadata, path);
  if (number_field(json, "schema", path) != 1 || text_field(json, "kind", path) != "logistic") {
    fail(ErrorCode::kUnsupported, path, ": a judge of schema ", number_field(json, "schema", path),
         ", kind '", text_field(json, "kind", path), "'; lathe reads schema 1, logistic");
  }
  judge.weight = read_vector(file, "weight");
  judge.mean = read_vector(file, "mean");
  judge.scale = read_vector(file, "scale");
  judge.raw_weight = read_vector(file, "raw_weight");
  judge.threshold = read_vector(file, "calib.threshold");
  judge.recall = read_vector(file, "calib.recall");
  judge.rho = read_vector(file, "calib.rho");
  const std::vector<float> bias = read_vector(file, "bias");
  const std::size_t dim = judge.weight.size();
  if (dim == 0 || bias.size() != 1 || judge.mean.size() != dim || judge.scale.size() != dim ||
      judge.raw_weight.size() != dim || judge.recall.size() != judge.threshold.size() ||
      judge.rho.size() != judge.threshold.size()) {
    fail(ErrorCode::kCorruptData, path, ": the sizes of its tensors contradict each other");
  }
  for (const float threshold : judge.threshold) {
    if (threshold >= 0 && threshold <= 1) continue;
    fail(ErrorCode::kCorruptData, path, ": a threshold of its table is ", threshold,
         "; it must be in [0, 1]");
  }
  judge.bias = bias[0];
  judge.default_threshold = number_field(json, "default_threshold", path);
  if (!(judge.default_threshold >= 0 && judge.default_threshold <= 1)) {
    fail(ErrorCode::kCorruptData, path, ": default_threshold is ", judge.default_threshold,
         "; it must be in [0, 1]");
  }
  judge.certified = certified_thresholds(json, path);
  const Json& target = field(json, "target", path);
  judge.target = {.config_sha256 = text_field(target, "config_sha256", path),
                  .weights_sha256 = text_field(target, "weights_fingerprint", path),
                  .weight_format = text_field(target, "weight_format", path),
                  .hidden_size = static_cast<int64_t>(dim)};
  return judge;
}

void check_judge_target(const JudgeFile& judge, const std::string& path,
                        const Checkpoint& checkpoint) {
  const JudgeTarget actual = judge_target(checkpoint);
  const auto refuse = [&](const char* what, const std::string& has, const std::string& is) {
    fail(ErrorCode::kInvalidArgument, path, ": was made for another model than ", checkpoint.path(),
         ": ", what, " ", has, ", the model's is ", is, "; train one with fit-judge");
  };
  if (judge.target.hidden_size != actual.hidden_size) {
    refuse("hidden size", str(judge.target.hidden_size), str(actual.hidden_size));
  }
  if (judge.target.weight_format != actual.weight_format) {
    refuse("weight format", judge.target.weight_format, actual.weight_format);
  }
  if (judge.target.config_sha256 != actual.config_sha256) {
    refuse("configuration", judge.target.config_sha256.substr(0, 12),
           actual.config_sha256.substr(0, 12));
  }
  if (judge.target.weights_sha256 != actual.weights_sha256) {
    refuse("weights", judge.target.weights_sha256.substr(0, 12),
           actual.weights_sha256.substr(0, 12));
  }
}

}  // namespace lathe
