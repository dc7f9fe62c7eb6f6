#include "formats/judge_file.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/json.h"
#include "base/sha256.h"
#include "formats/kv_codec_file.h"
#include "formats/safetensors.h"
#include "formats/safetensors_writer.h"

namespace lathe {
namespace {

constexpr int64_t kMaxDim = 1 << 20;
// 1: the target's tokenizer, precision, cache and most of its weights are not said.
constexpr int kSchema = 2;

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

// Returns the name of the format.
std::string add_linear(Sha256& hash, const Checkpoint& checkpoint, const std::string& module) {
  const LinearWeights weights = checkpoint.load_linear(module, DType::kBF16);
  if (!weights.quantized) {
    hash.update(bytes_of(weights.dense.data(), weights.dense.num_bytes()));
    return "dense";
  }
  const QuantizedMatrix& matrix = *weights.quantized;
  hash.update(bytes_of(matrix.codes.data(), matrix.codes.size()));
  hash.update(bytes_of(matrix.scales.data(), matrix.scales.size()));
  return weight_format_name(matrix.format);
}

// A judge reads the target's last hidden state at the draft token and nothing else, whoever drafts.
Json only_features(std::size_t dim) {
  Json list = Json::array();
  list.push_back(
      {{"name", "h_target"}, {"dim", dim}, {"position", "draft_token"}, {"norm", "post_final"}});
  return list;
}

void read_target(const Json& json, bool is_first_schema, const std::string& path,
                 JudgeTarget& target) {
  target.config_sha256 = text_field(json, "config_sha256", path);
  target.weights_sha256 = text_field(json, "weights_fingerprint", path);
  target.weight_format = text_field(json, "weight_format", path);
  if (is_first_schema) return;
  target.layers_sha256 = text_field(json, "layers_fingerprint", path);
  target.tokenizer_sha256 = text_field(json, "tokenizer_sha256", path);
  target.compute = text_field(json, "compute", path);
  target.kv_format = text_field(json, "kv_format", path);
  target.name = text_field(json, "name", path);
}

}  // namespace

JudgeTarget judge_target(const Checkpoint& checkpoint) {
  JudgeTarget target;
  target.hidden_size = checkpoint.config().hidden_size;
  const std::string config = checkpoint.auxiliary_file("config.json").value_or("");
  target.config_sha256 = sha256_hex(bytes_of(config.data(), std::ssize(config)));
  Sha256 first;
  target.weight_format = add_linear(first, checkpoint, "model.layers.0.self_attn.q_proj");
  add_linear(first, checkpoint, "model.layers.0.self_attn.o_proj");
  target.weights_sha256 = first.hex_digest();
  // A fine-tune may leave the first layer alone, and attention too.
  Sha256 rest;
  const std::string common = kv_model_fingerprint(checkpoint);
  rest.update(bytes_of(common.data(), std::ssize(common)));
  const ModelConfig& shape = checkpoint.config();
  const std::string last = str("model.layers.", shape.num_layers - 1, ".");
  add_linear(rest, checkpoint, last + "self_attn.q_proj");
  add_linear(rest, checkpoint, last + "self_attn.o_proj");
  if (shape.num_experts == 0) {
    add_linear(rest, checkpoint, "model.layers.0.mlp.down_proj");
    add_linear(rest, checkpoint, last + "mlp.down_proj");
  }
  target.layers_sha256 = rest.hex_digest();
  return target;
}

void write_judge_file(const std::string& path, const JudgeFile& judge) {
  Json json = parse_json(judge.metadata, "judge metadata");
  json["schema"] = kSchema;
  json["kind"] = "logistic";
  json["features"] = only_features(judge.weight.size());
  json["target"] = {{"name", judge.target.name},
                    {"config_sha256", judge.target.config_sha256},
                    {"tokenizer_sha256", judge.target.tokenizer_sha256},
                    {"weights_fingerprint", judge.target.weights_sha256},
                    {"layers_fingerprint", judge.target.layers_sha256},
                    {"weight_format", judge.target.weight_format},
                    {"compute", judge.target.compute},
                    {"kv_format", judge.target.kv_format}};
  json["draft"] = "any";
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
  const double schema = number_field(json, "schema", path);
  if ((schema != 1 && schema != kSchema) || text_field(json, "kind", path) != "logistic") {
    fail(ErrorCode::kUnsupported, path, ": a judge of schema ", schema, ", kind '",
         text_field(json, "kind", path), "'; lathe reads schemas 1 and ", kSchema, ", logistic");
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
  if (schema != 1 && field(json, "features", path) != only_features(dim)) {
    fail(ErrorCode::kUnsupported, path, ": a judge of other features than the ", dim,
         " numbers of the target's last hidden state at the draft token");
  }
  if (schema != 1 && field(json, "draft", path) != "any") {
    fail(ErrorCode::kUnsupported, path,
         ": a judge for one draft model only; lathe reads those for "
         "any");
  }
  read_target(field(json, "target", path), schema == 1, path, judge.target);
  judge.target.hidden_size = static_cast<int64_t>(dim);
  return judge;
}

std::string check_judge_target(const JudgeFile& judge, const std::string& path,
                               const JudgeTarget& actual, const std::string& model) {
  const auto short_of = [](const std::string& digest) { return digest.substr(0, 12); };
  const auto refuse = [&](const char* what, const std::string& has, const std::string& is) {
    fail(ErrorCode::kInvalidArgument, path, ": was made for another model than ", model, ": ", what,
         " ", has, ", the model's is ", is, "; train one with fit-judge");
  };
  const JudgeTarget& made_for = judge.target;
  if (made_for.hidden_size != actual.hidden_size) {
    refuse("hidden size", str(made_for.hidden_size), str(actual.hidden_size));
  }
  if (made_for.weight_format != actual.weight_format) {
    refuse("weight format", made_for.weight_format, actual.weight_format);
  }
  std::string unknown;
  // Whether the file says something else; what it does not say joins `unknown`.
  const auto differs = [&](const char* what, const std::string& has, const std::string& is) {
    if (has.empty()) unknown += str(unknown.empty() ? "" : ", ", what);
    return !has.empty() && has != is;
  };
  const auto compare = [&](const char* what, const std::string& has, const std::string& is) {
    if (differs(what, has, is)) refuse(what, short_of(has), short_of(is));
  };
  compare("configuration", made_for.config_sha256, actual.config_sha256);
  compare("tokenizer", made_for.tokenizer_sha256, actual.tokenizer_sha256);
  compare("weights", made_for.weights_sha256, actual.weights_sha256);
  compare("other layers' weights", made_for.layers_sha256, actual.layers_sha256);
  const auto compare_run = [&](const char* what, const char* flag, const std::string& has,
                               const std::string& is) {
    if (!differs(what, has, is)) return;
    fail(ErrorCode::kInvalidArgument, path, ": was trained on ", model, " with ", flag, " ", has,
         ", and hidden states are others with ", flag, " ", is, "; use that, or train one so");
  };
  compare_run("precision", "--dtype", made_for.compute, actual.compute);
  compare_run("cache format", "--kv", made_for.kv_format, actual.kv_format);
  return unknown;
}

}  // namespace lathe
