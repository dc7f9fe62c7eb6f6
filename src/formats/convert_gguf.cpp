#include "formats/convert_gguf.h"

#include <cstring>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "formats/hf_config_writer.h"
#include "formats/hf_names.h"
#include "formats/model_tensors.h"
#include "formats/safetensors_writer.h"

namespace lathe {
namespace {

// One tensor to write: parts of the checkpoint, stacked along the rows.
struct StoredTensor {
  TensorSpec spec;
  std::vector<std::string> parts;  // names in the checkpoint
};

std::vector<StoredTensor> stored_tensors(const GgufCheckpoint& gguf) {
  const ModelConfig& config = gguf.config();
  const ModelTensors tensors = model_tensors(config);
  std::vector<StoredTensor> stored;
  const auto add = [&](const std::string& name, const std::string& part) {
    const Shape shape = gguf.tensor_shape(part);
    if (!stored.empty() && stored.back().spec.name == name) {
      stored.back().spec.shape[0] += shape[0];
      stored.back().parts.push_back(part);
    } else {
      stored.push_back({{name, DType::kBF16, shape}, {part}});
    }
  };
  for (const PlainTensor& tensor : tensors.plain) add(tensor.name, tensor.name);
  // Parts of one stored tensor follow one another in the list of linears.
  for (const LinearModule& linear : tensors.linears) {
    const std::string module = stored_module_name(linear.name, config.architecture);
    add(module + ".weight", linear.name + ".weight");
  }
  for (const LinearModule& linear : tensors.linears) {
    if (!linear.has_bias) continue;
    add(stored_module_name(linear.name, config.architecture) + ".bias", linear.name + ".bias");
  }
  return stored;
}

}  // namespace

std::string write_tokenizer_config(const GgufFile& file, const ModelConfig& config) {
  Json json = {{"tokenizer_class", "PreTrainedTokenizerFast"},
               {"model_max_length", config.max_position_embeddings},
               {"clean_up_tokenization_spaces", false}};
  json["add_bos_token"] = file.boolean_or("tokenizer.ggml.add_bos_token", false);
  if (file.has("tokenizer.ggml.tokens")) {
    const auto& tokens = file.strings("tokenizer.ggml.tokens");
    const auto add = [&](const char* name, const char* key) {
      if (!file.has(key)) return;
      const int64_t id = file.integer(key, 0, static_cast<int64_t>(tokens.size()) - 1);
      json[name] = std::string(tokens[static_cast<std::size_t>(id)]);
    };
    add("bos_token", "tokenizer.ggml.bos_token_id");
    add("eos_token", "tokenizer.ggml.eos_token_id");
    add("unk_token", "tokenizer.ggml.unknown_token_id");
    add("pad_token", "tokenizer.ggml.padding_token_id");
  }
  if (file.has("tokenizer.chat_template")) {
    json["chat_template"] = file.text("tokenizer.chat_template");
  }
  return dump_json(json, 2) + "\n";
}

void convert_gguf_to_hf(const GgufCheckpoint& gguf, const std::string& directory,
                        const ConvertOptions& options) {
  const std::filesystem::path root(directory);
  const auto path = [&](const char* name) { return (root / name).string(); };
  if (std::filesystem::exists(path("config.json"))) {
    fail(ErrorCode::kInvalidArgument, "'", directory,
         "' already holds a model (config.json); name another directory or remove it");
  }
  std::error_code error;
  std::filesystem::create_directories(root, error);
  if (error) fail(ErrorCode::kIo, "cannot create '", directory, "': ", error.message());

  const std::vector<StoredTensor> stored = stored_tensors(gguf);
  std::vector<TensorSpec> specs;
  int64_t total_bytes = 0;
  for (const StoredTensor& tensor : stored) {
    specs.push_back(tensor.spec);
    total_bytes += tensor.spec.num_bytes();
  }
  ShardedSafetensorsWriter writer(directory, specs, options.max_shard_bytes);
  int64_t done_bytes = 0;
  for (const StoredTensor& tensor : stored) {
    for (const std::string& part : tensor.parts) {
      const Tensor values = gguf.load(part, DType::kBF16);
      writer.append(tensor.spec.name,
                    {values.data(), static_cast<std::size_t>(values.num_bytes())});
      done_bytes += values.num_bytes();
    }
    gguf.release_pages();
    if (options.on_progress) options.on_progress(done_bytes, total_bytes);
  }
  writer.finish();

  if (!options.tokenizer_json.empty()) {
    write_file_atomically(path("tokenizer.json"), options.tokenizer_json);
    write_file_atomically(path("tokenizer_config.json"),
                          write_tokenizer_config(gguf.file(), gguf.config()));
  }
  write_file_atomically(path("generation_config.json"), write_generation_config(gguf.config()));
  write_file_atomically(path("config.json"), write_hf_config(gguf.config(), DType::kBF16));
}

}  // namespace lathe
