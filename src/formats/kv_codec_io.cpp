// Reading and writing kv_codec.safetensors. Tensors, d = num_kv_heads * head_dim:
//   layer.L.{key,value}.weight      dense [d, in], or block-diagonal [heads, head_dim, in / heads]
//   layer.L.{key,value}.weight_in   low-rank [rank, in], and .weight_out [d, rank]
//   layer.L.{key,value}.bias [d]    .sigma [d]          where the metadata say so
//   group.G.projection [rank, in]   .mean [in]   .sigma [rank]
// and one metadata entry, JSON with everything else (docs/formats.md).
#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "formats/json_fields.h"
#include "formats/kv_codec_file.h"
#include "formats/safetensors.h"
#include "formats/safetensors_writer.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr int64_t kVersion = 1;
constexpr const char* kMetadataKey = "lathe_kv_codec";
// Bounds that no codec meets; validate() has the tight ones.
constexpr int64_t kMaxCount = int64_t{1} << 31;
constexpr std::size_t kMaxMetadataBytes = std::size_t{16} << 20;

using Weight = KvPredictor::Weight;

std::string_view weight_name(Weight weight) {
  switch (weight) {
    case Weight::kNone:
      return "none";
    case Weight::kDense:
      return "dense";
    case Weight::kLowRank:
      return "low-rank";
    case Weight::kBlockDiagonal:
      break;
  }
  return "block-diagonal";
}

// --- the list of tensors, the same for writing and reading ---------------------------------------

struct StoredNumbers {
  std::string name;
  Shape shape;
  std::vector<float>* numbers;
};

void list_plane(KvCodecFile& file, KvPlane& plane, const std::string& prefix, bool has_bias,
                bool has_sigma, std::vector<StoredNumbers>& out) {
  KvPredictor& p = plane.predictor;
  const int64_t d = file.shape.width();
  const int64_t in = kv_input_width(file, p);
  switch (p.weight) {
    case Weight::kNone:
      break;
    case Weight::kDense:
      out.push_back({prefix + "weight", {d, in}, &p.w1});
      break;
    case Weight::kLowRank:
      out.push_back({prefix + "weight_in", {p.rank, in}, &p.w1});
      out.push_back({prefix + "weight_out", {d, p.rank}, &p.w2});
      break;
    case Weight::kBlockDiagonal:
      out.push_back({prefix + "weight",
                     {file.shape.num_heads, file.shape.head_dim,
                      static_cast<int64_t>(p.inputs.size()) * file.shape.head_dim},
                     &p.w1});
      break;
  }
  if (has_bias) out.push_back({prefix + "bias", {d}, &p.bias});
  if (has_sigma) out.push_back({prefix + "sigma", {d}, &plane.sigma});
}

void list_latent(const KvCodecFile& file, KvLatent& latent, std::size_t group,
                 std::vector<StoredNumbers>& out) {
  const std::string prefix = str("group.", group, ".");
  const int64_t in = static_cast<int64_t>(latent.layers.size()) * file.shape.width() *
                     (latent.with_values ? 2 : 1);
  out.push_back({prefix + "projection", {latent.rank, in}, &latent.projection});
  out.push_back({prefix + "mean", {in}, &latent.mean});
  out.push_back({prefix + "sigma", {latent.rank}, &latent.sigma});
}

// --- metadata ------------------------------------------------------------------------------------

Json format_json(const RowFormat& format) {
  Json json;
  if (format.method == RowMethod::kUniform) {
    json["method"] = "int";
    json["bits"] = format.bits;
    json["group"] = format.group;
    return json;
  }
  const HiggsGrid& grid = higgs_grid(format.bits, format.grid_dim);
  json["method"] = "higgs";
  json["bits"] = format.bits;
  json["grid_dim"] = format.grid_dim;
  json["grid"] = grid.name;
  json["grid_sha256"] = grid.hash;
  json["scale"] = row_scale_name(format.scale);
  json["hadamard"] = format.hadamard;
  return json;
}

RowFormat parse_format(const JsonFields& fields) {
  RowFormat format;
  const std::string method = fields.text("method");
  format.bits = static_cast<int>(fields.integer("bits", 1, 8));
  if (method == "int") {
    format.method = RowMethod::kUniform;
    format.group = fields.integer("group", 1, kMaxRowWidth);
    return format;
  }
  if (method != "higgs") fields.refuse("method", "must be higgs or int");
  format.grid_dim = fields.integer("grid_dim", 1, 8);
  format.scale =
      with_context(fields.what(), [&] { return row_scale_from_name(fields.text("scale")); });
  format.hadamard = fields.boolean_or("hadamard", true);
  const std::string hash = fields.text("grid_sha256");
  for (const HiggsGrid* grid : higgs_grids()) {
    if (grid->bits() != format.bits || grid->dim != format.grid_dim) continue;
    if (grid->hash == hash) return format;
    fields.unsupported("grid_sha256", str("this lathe's grid ", grid->name, " is ", grid->hash));
  }
  fields.unsupported("bits", "there is no such grid");
}

Json plane_json(const KvPlane& plane, const KvFitQuality* quality) {
  Json json;
  json["weight"] = weight_name(plane.predictor.weight);
  json["inputs"] = Json::array();
  for (const auto& input : plane.predictor.inputs) json["inputs"].push_back(kv_input_name(input));
  if (plane.predictor.weight == Weight::kLowRank) json["rank"] = plane.predictor.rank;
  json["bias"] = !plane.predictor.bias.empty();
  json["sigma"] = !plane.sigma.empty();
  json["codes"] = format_json(plane.format);
  if (quality != nullptr) {
    json["relative_mse"] = {{"train", quality->train_relative_mse},
                            {"heldout", quality->heldout_relative_mse}};
    json["explained_variance"] = {{"train", quality->train_explained_variance},
                                  {"heldout", quality->heldout_explained_variance}};
  }
  return json;
}

KvPredictorInput parse_input(const std::string& name, const JsonFields& fields) {
  const std::size_t dot = name.find('.');
  const std::string kind = name.substr(0, dot);
  const std::string digits = dot == std::string::npos ? "" : name.substr(dot + 1);
  KvPredictorInput input;
  if (kind == "key") {
    input.kind = KvPredictorInput::Kind::kKeys;
  } else if (kind == "value") {
    input.kind = KvPredictorInput::Kind::kValues;
  } else if (kind == "latent") {
    input.kind = KvPredictorInput::Kind::kLatent;
  } else {
    fields.refuse("inputs", "must be key.L, value.L or latent.G");
  }
  if (digits.empty() || digits.size() > 6 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    fields.refuse("inputs", "must be key.L, value.L or latent.G with a number");
  }
  input.index = std::stoll(digits);
  return input;
}

struct ParsedPlane {
  KvPlane plane;
  bool has_bias = false;
  bool has_sigma = false;
  std::optional<KvFitQuality> quality;
};

ParsedPlane parse_plane(const JsonFields& fields) {
  ParsedPlane parsed;
  KvPredictor& predictor = parsed.plane.predictor;
  const std::string weight = fields.text("weight");
  bool known = false;
  for (const Weight kind :
       {Weight::kNone, Weight::kDense, Weight::kLowRank, Weight::kBlockDiagonal}) {
    if (weight != weight_name(kind)) continue;
    predictor.weight = kind;
    known = true;
  }
  if (!known) fields.refuse("weight", "must be none, dense, low-rank or block-diagonal");
  for (const std::string& name : fields.texts("inputs")) {
    predictor.inputs.push_back(parse_input(name, fields));
  }
  if (predictor.weight == Weight::kLowRank) {
    predictor.rank = fields.integer("rank", 1, kMaxRowWidth);
  }
  parsed.has_bias = fields.boolean_or("bias", false);
  parsed.has_sigma = fields.boolean_or("sigma", false);
  const auto codes = fields.object("codes");
  if (!codes) fields.refuse("codes", "must be an object");
  parsed.plane.format = parse_format(*codes);
  const auto mse = fields.object("relative_mse");
  const auto explained = fields.object("explained_variance");
  if (mse && explained) {
    parsed.quality = {mse->number("train", -1e9, 1e9), mse->number("heldout", -1e9, 1e9),
                      explained->number("train", -1e9, 1e9),
                      explained->number("heldout", -1e9, 1e9)};
  }
  return parsed;
}

std::string metadata_text(const KvCodecFile& file) {
  Json json;
  json["version"] = kVersion;
  json["method"] = file.method;
  json["variant"] = file.variant;
  json["bits"] = file.bits;
  json["first_layer_bits"] = file.first_layer_bits;
  json["bits_per_value"] = kv_bits_per_value(file);
  json["num_kv_heads"] = file.shape.num_heads;
  json["head_dim"] = file.shape.head_dim;
  json["sinks"] = file.num_sinks;
  json["window"] = file.window;
  json["chunk"] = file.chunk_tokens;
  json["model_fingerprint"] = file.model_fingerprint;
  json["calibration_sha256"] = file.calibration_hash;
  json["created_by"] = file.created_by;
  json["layers"] = Json::array();
  for (std::size_t i = 0; i < file.keys.size(); ++i) {
    json["layers"].push_back(
        {{"key",
          plane_json(file.keys[i], file.key_quality.empty() ? nullptr : &file.key_quality[i])},
         {"value", plane_json(file.values[i],
                              file.value_quality.empty() ? nullptr : &file.value_quality[i])}});
  }
  json["groups"] = Json::array();
  for (const KvLatent& latent : file.latents) {
    json["groups"].push_back({{"layers", latent.layers},
                              {"values", latent.with_values},
                              {"rank", latent.rank},
                              {"bits", latent.bits}});
  }
  return dump_json(json);
}

// What a fit without finite numbers reports as null must not make the file unreadable.
void check_quality(const KvCodecFile& file) {
  for (const auto* list : {&file.key_quality, &file.value_quality}) {
    for (const KvFitQuality& q : *list) {
      for (const double x : {q.train_relative_mse, q.heldout_relative_mse,
                             q.train_explained_variance, q.heldout_explained_variance}) {
        if (!(std::fabs(x) <= 1e9)) {
          fail(ErrorCode::kInvalidArgument, "kv codec: a measured quality of ", x);
        }
      }
    }
  }
}

const Json& list_of(const JsonFields& fields, const std::string& key) {
  const Json* list = fields.find(key);
  if (list == nullptr || !list->is_array()) fields.refuse(key, "must be a list of objects");
  return *list;
}

}  // namespace

void write_kv_codec(const KvCodecFile& file, const std::string& path) {
  validate(file, path);
  check_quality(file);
  KvCodecFile copy = file;  // the list of tensors borrows from it
  std::vector<StoredNumbers> stored;
  for (std::size_t i = 0; i < copy.keys.size(); ++i) {
    const std::string layer = str("layer.", i, ".");
    for (auto* plane : {&copy.keys[i], &copy.values[i]}) {
      list_plane(copy, *plane, layer + (plane == &copy.keys[i] ? "key." : "value."),
                 !plane->predictor.bias.empty(), !plane->sigma.empty(), stored);
    }
  }
  for (std::size_t g = 0; g < copy.latents.size(); ++g) {
    list_latent(copy, copy.latents[g], g, stored);
  }
  std::vector<TensorSpec> specs;
  for (const StoredNumbers& s : stored) specs.push_back({s.name, file.predictor_dtype, s.shape});
  SafetensorsWriter writer(path, specs, {{"format", "pt"}, {kMetadataKey, metadata_text(file)}});
  for (const StoredNumbers& s : stored) {
    Tensor tensor(file.predictor_dtype, s.shape);
    for (std::size_t i = 0; i < s.numbers->size(); ++i) {
      const float x = (*s.numbers)[i];
      if (file.predictor_dtype == DType::kF32) {
        tensor.as<float>()[i] = x;
        continue;
      }
      const uint16_t bits = bf16_from_float(x);
      if (float_from_bf16(bits) != x) {
        fail(ErrorCode::kInvalidArgument, path, ": ", s.name, ": ", x,
             " is not a bf16 number; round predictors before the codes are made with them");
      }
      tensor.as<uint16_t>()[i] = bits;
    }
    writer.write(s.name, tensor.view());
  }
  writer.commit();
}

KvCodecFile read_kv_codec(const std::string& path) {
  const SafetensorsFile source(path);
  const std::string* text = nullptr;
  for (const auto& [key, value] : source.metadata()) {
    if (key == kMetadataKey) text = &value;
  }
  if (text == nullptr) {
    fail(ErrorCode::kCorruptData, path, ": no '", kMetadataKey,
         "' in its metadata; not a KV codec");
  }
  if (text->size() > kMaxMetadataBytes) {
    fail(ErrorCode::kCorruptData, path, ": ", text->size(), " bytes of metadata");
  }
  const Json json = parse_json(*text, path + ": " + kMetadataKey);
  const JsonFields fields(json, path);
  const int64_t version = fields.integer("version", 1, kMaxCount);
  if (version != kVersion) {
    fields.unsupported("version", str("this lathe reads version ", kVersion));
  }
  KvCodecFile file;
  file.method = fields.text("method");
  file.variant = fields.text("variant");
  file.bits = static_cast<int>(fields.integer("bits", 1, 8));
  file.first_layer_bits = static_cast<int>(fields.integer("first_layer_bits", 1, 16));
  file.shape.num_heads = fields.integer("num_kv_heads", 1, kMaxRowWidth);
  file.shape.head_dim = fields.integer("head_dim", 1, kMaxRowHeadDim);
  file.num_sinks = fields.integer("sinks", 0, kMaxCount);
  file.window = fields.integer("window", 0, kMaxCount);
  file.chunk_tokens = fields.integer("chunk", 1, kMaxCount);
  file.model_fingerprint = fields.text("model_fingerprint");
  file.calibration_hash = fields.text("calibration_sha256");
  file.created_by = fields.text("created_by");
  if (!source.tensors().empty()) file.predictor_dtype = source.tensors().front().view.dtype;

  const Json& groups = list_of(fields, "groups");
  for (const Json& entry : groups) {
    const JsonFields group(entry, path + ": groups");
    KvLatent latent;
    latent.layers = group.integers("layers", 0, kMaxCount);
    latent.with_values = group.boolean_or("values", false);
    latent.rank = group.integer("rank", 1, kMaxRowWidth);
    latent.bits = static_cast<int>(group.integer("bits", 1, 8));
    file.latents.push_back(std::move(latent));
  }
  // Which of a plane's optional tensors there are, in the order key, value of each layer.
  std::vector<std::pair<bool, bool>> optional;
  for (const Json& entry : list_of(fields, "layers")) {
    const JsonFields layer(entry, str(path, ": layer ", file.keys.size()));
    for (const bool is_value : {false, true}) {
      const auto plane = layer.object(is_value ? "value" : "key");
      if (!plane) layer.refuse(is_value ? "value" : "key", "must be an object");
      ParsedPlane parsed = parse_plane(*plane);
      for (const KvPredictorInput& input : parsed.plane.predictor.inputs) {
        if (input.kind == KvPredictorInput::Kind::kLatent &&
            input.index >= static_cast<int64_t>(file.latents.size())) {
          plane->refuse("inputs", str("there are ", file.latents.size(), " latents"));
        }
      }
      optional.emplace_back(parsed.has_bias, parsed.has_sigma);
      (is_value ? file.values : file.keys).push_back(std::move(parsed.plane));
      if (parsed.quality) {
        (is_value ? file.value_quality : file.key_quality).push_back(*parsed.quality);
      }
    }
  }
  std::vector<StoredNumbers> wanted;
  for (std::size_t i = 0; i < file.keys.size(); ++i) {
    const std::string layer = str("layer.", i, ".");
    list_plane(file, file.keys[i], layer + "key.", optional[2 * i].first, optional[2 * i].second,
               wanted);
    list_plane(file, file.values[i], layer + "value.", optional[2 * i + 1].first,
               optional[2 * i + 1].second, wanted);
  }
  for (std::size_t g = 0; g < file.latents.size(); ++g) {
    list_latent(file, file.latents[g], g, wanted);
  }
  if (wanted.size() != source.tensors().size()) {
    fail(ErrorCode::kCorruptData, path, ": ", source.tensors().size(),
         " tensors; its metadata name ", wanted.size());
  }
  for (const StoredNumbers& w : wanted) {
    const TensorView& view = source.at(w.name);
    if (view.dtype != file.predictor_dtype || view.shape != w.shape ||
        (view.dtype != DType::kF32 && view.dtype != DType::kBF16)) {
      fail(ErrorCode::kCorruptData, path, ": tensor '", w.name, "' is ", dtype_name(view.dtype),
           " ", to_string(view.shape), ", not ", dtype_name(file.predictor_dtype), " ",
           to_string(w.shape), " (BF16 or F32 throughout)");
    }
    const Tensor loaded = load_dense(view, DType::kF32);  // no larger than twice its bytes
    w.numbers->assign(loaded.as<float>(), loaded.as<float>() + loaded.num_elements());
  }
  validate(file, path);
  return file;
}

}  // namespace lathe
