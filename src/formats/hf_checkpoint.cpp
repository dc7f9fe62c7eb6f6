#include "formats/hf_checkpoint.h"

#include <algorithm>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "formats/finite_values.h"
#include "formats/hf_names.h"
#include "formats/json_fields.h"
#include "formats/manifest.h"

namespace lathe {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;
constexpr int64_t kMaxAuxiliaryBytes = int64_t{256} << 20;  // a tokenizer.json has some 30 MB

ModelConfig read_config(const std::filesystem::path& directory) {
  const std::string path = (directory / "config.json").string();
  ModelConfig config = parse_hf_config(read_file(path, kMaxConfigBytes), path);

  // Instruction-tuned models often name their end-of-turn token only for generation.
  const std::string generation_path = (directory / "generation_config.json").string();
  if (std::filesystem::exists(generation_path)) {
    const Json json = parse_json(read_file(generation_path, kMaxConfigBytes), generation_path);
    const JsonFields fields(json, generation_path);
    if (const Json* eos = fields.find("eos_token_id")) {
      const int64_t last = config.vocab_size - 1;
      const std::vector<int64_t> ids =
          eos->is_array() ? fields.integers("eos_token_id", 0, last)
                          : std::vector<int64_t>{fields.integer("eos_token_id", 0, last)};
      for (const int64_t id : ids) {
        auto& known = config.eos_token_ids;
        if (std::find(known.begin(), known.end(), id) == known.end()) known.push_back(id);
      }
    }
  }
  return config;
}

// Just before the manifest an unfinished directory has all that a model needs, but nobody has said
// yet that it is whole.
const std::string& refuse_unfinished(const std::string& directory) {
  const std::filesystem::path path(directory);
  if (std::filesystem::exists(path / kJournalFileName) &&
      !std::filesystem::exists(path / kManifestFileName)) {
    fail(ErrorCode::kCorruptData, "'", directory,
         "' is not a whole model: the compression was interrupted; run it again with --resume to "
         "finish it");
  }
  return directory;
}

bool is_dense(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
         dtype == DType::kF64;
}

}  // namespace

HfCheckpoint::HfCheckpoint(const std::string& directory)
    : directory_(refuse_unfinished(directory)), config_(read_config(directory)), files_(directory) {
  tensors_ = canonical_tensors(files_.tensors(), config_, directory);
  // With tied embeddings a stored lm_head is a second copy: transformers ignores it as well.
  if (config_.tie_word_embeddings) tensors_.erase("lm_head.weight");
  find_ = [this](const std::string& name) { return find(name); };
  const std::string config_path = (std::filesystem::path(directory) / "config.json").string();
  quantization_ =
      CompressedTensorsConfig::parse(read_file(config_path, kMaxConfigBytes), config_path);
  check_against_config();
}

void HfCheckpoint::check_against_config() {
  const auto check = [&](const std::string& name, const Shape& expected) {
    const TensorView& stored = view(name);
    if (stored.shape != expected) {
      fail(ErrorCode::kCorruptData, directory_, ": tensor '", name, "' has shape ",
           to_string(stored.shape), ", config.json asks for ", to_string(expected));
    }
    if (!is_dense(stored.dtype)) {
      fail(ErrorCode::kUnsupported, directory_, ": tensor '", name, "' is ",
           dtype_name(stored.dtype), ", expected floating point");
    }
  };
  if (quantization_) {
    for (const auto& transform : quantization_->stored_transforms()) {
      const std::string& suffix = transform.suffix;
      for (const auto& entry : tensors_) {  // no bindings: clang 14 cannot capture them
        const std::string& name = entry.first;
        if (name.size() > suffix.size() &&
            name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0) {
          with_context(directory_,
                       [&] { check_stored_hadamard(entry.second, transform.block, name); });
        }
      }
    }
  }
  ModelTensors expected = model_tensors(config_);
  for (const PlainTensor& tensor : expected.plain) check(tensor.name, tensor.shape);
  for (LinearModule& linear : expected.linears) {
    if (is_compressed(linear.name, find_)) {
      with_context(directory_, [&] {
        check_compressed_linear(scheme_of(linear.name), linear.name, linear.rows, linear.cols,
                                find_);
      });
    } else {
      check(linear.name + ".weight", {linear.rows, linear.cols});
    }
    if (linear.has_bias) check(linear.name + ".bias", {linear.rows});
    const int64_t block = hadamard_of(linear.name);
    if (block > 0 && linear.cols % block != 0) {
      fail(ErrorCode::kCorruptData, directory_, ": '", linear.name, "': ", linear.cols,
           " input features are not a multiple of the rotation's ", block);
    }
    std::string name = linear.name;
    linears_.emplace(std::move(name), std::move(linear));
  }
}

const CompressedScheme& HfCheckpoint::scheme_of(const std::string& module) const {
  const CompressedScheme* scheme =
      quantization_ ? quantization_->scheme(module_spellings(module)) : nullptr;
  if (scheme == nullptr) {
    fail(ErrorCode::kCorruptData, directory_, ": '", module,
         "' is stored quantized, but config.json's quantization_config does not target it");
  }
  return *scheme;
}

int64_t HfCheckpoint::hadamard_of(const std::string& module) const {
  return quantization_ ? quantization_->hadamard(module_spellings(module)) : 0;
}

const TensorView* HfCheckpoint::find(const std::string& hf_name) const {
  const auto found = tensors_.find(hf_name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const TensorView& HfCheckpoint::view(const std::string& hf_name) const {
  const TensorView* found = find(hf_name);
  if (found == nullptr) fail(ErrorCode::kNotFound, directory_, ": no tensor '", hf_name, "'");
  return *found;
}

DType HfCheckpoint::weight_dtype() const {
  const DType dtype = view("model.embed_tokens.weight").dtype;
  return dtype == DType::kF64 ? DType::kF32 : dtype;
}

std::string HfCheckpoint::decoder_prefix() const {
  for (const char* prefix : {"language_model.model.", "model.language_model."}) {
    if (files_.tensors().contains(str(prefix, "embed_tokens.weight"))) return prefix;
  }
  return "model.";
}

bool HfCheckpoint::has_tensor(const std::string& hf_name) const { return find(hf_name) != nullptr; }

std::vector<std::string> HfCheckpoint::tensor_names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, stored] : tensors_) names.push_back(name);
  return names;
}

Shape HfCheckpoint::tensor_shape(const std::string& hf_name) const { return view(hf_name).shape; }

Tensor HfCheckpoint::load(const std::string& hf_name, DType dtype) const {
  const TensorView& stored = view(hf_name);
  const std::string what = directory_ + ": tensor '" + hf_name + "'";
  Tensor loaded = with_context(what, [&] { return load_dense(stored, dtype); });
  check_finite(loaded, what);
  return loaded;
}

LinearWeights HfCheckpoint::load_linear(const std::string& module, DType dense_dtype) const {
  LinearWeights weights;
  if (module == "lm_head" && config_.tie_word_embeddings) {
    weights.dense = load("model.embed_tokens.weight", dense_dtype);
    return weights;
  }
  const auto linear = linears_.find(module);
  if (linear != linears_.end() && is_compressed(module, find_)) {
    weights = with_context(directory_, [&] {
      return read_compressed_linear(scheme_of(module), module, linear->second.rows,
                                    linear->second.cols, find_);
    });
  } else {
    weights.dense = load(module + ".weight", dense_dtype);
  }
  if (has_tensor(module + ".bias")) weights.bias = load(module + ".bias", DType::kF32);
  weights.scheme.hadamard = hadamard_of(module);
  return weights;
}

std::optional<std::string> HfCheckpoint::auxiliary_file(const std::string& name) const {
  if (name.empty() || name.find('/') != std::string::npos || name.front() == '.') {
    fail(ErrorCode::kInvalidArgument, "'", name, "' is not a plain file name");
  }
  const std::filesystem::path path = std::filesystem::path(directory_) / name;
  if (!std::filesystem::exists(path)) return std::nullopt;
  return read_file(path.string(), kMaxAuxiliaryBytes);
}

}  // namespace lathe
