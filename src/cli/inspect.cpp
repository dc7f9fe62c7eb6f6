// lathe inspect: what a checkpoint is, whether it is whole, and what it will do on this machine.
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/gpu_forecast.h"
#include "cli/loaded_model.h"
#include "cli/output.h"
#include "formats/manifest.h"
#include "formats/model_tensors.h"
#include "kernels/features.h"
#include "kernels/peaks/peaks.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

struct InspectFlags {
  CommonFlags common;
  ModelFlags model;
  std::string path;
  bool quick = false;
  GpuForecastFlags forecast;
};

int64_t bytes_on_disk(const std::string& path) {
  if (!fs::is_directory(path)) return static_cast<int64_t>(fs::file_size(path));
  int64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size());
  }
  return bytes;
}

std::string dtype_label(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "fp32";
    case DType::kF16:
      return "fp16";
    default:
      return "bf16";
  }
}

int64_t count_parameters(const ModelConfig& config) {
  const ModelTensors tensors = model_tensors(config);
  int64_t count = 0;
  for (const LinearModule& linear : tensors.linears) {
    count += linear.rows * linear.cols + (linear.has_bias ? linear.rows : 0);
  }
  for (const PlainTensor& tensor : tensors.plain) count += num_elements(tensor.shape);
  return count;
}

Json config_json(const ModelConfig& config) {
  Json json;
  json["model_type"] = config.model_type;
  json["parameters"] = count_parameters(config);
  json["num_layers"] = config.num_layers;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_heads"] = config.num_heads;
  json["num_kv_heads"] = config.num_kv_heads;
  json["head_dim"] = config.head_dim;
  json["vocab_size"] = config.vocab_size;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  if (config.sliding_window > 0) json["sliding_window"] = config.sliding_window;
  if (config.num_experts > 0) {
    json["num_experts"] = config.num_experts;
    json["num_experts_per_token"] = config.num_experts_per_token;
  }
  return json;
}

// Bytes of the weights by how they are stored. The format of a quantized layer is read from layer
// 0's module of the same kind; which modules are quantized, from each one.
Json stored_weights_json(const Checkpoint& checkpoint) {
  if (checkpoint.is_gguf()) return {{"gguf", bytes_on_disk(checkpoint.path())}};
  const ModelTensors tensors = model_tensors(checkpoint.config());
  const std::string dense = dtype_label(checkpoint.weight_dtype());
  const auto dense_bytes = [&](int64_t count) {
    return count * dtype_size(checkpoint.weight_dtype());
  };
  std::map<std::string, int64_t> bytes;
  std::map<std::string, std::pair<std::string, double>> formats;  // by kind: name, bits per weight
  for (const LinearModule& linear : tensors.linears) {
    const int64_t count = linear.rows * linear.cols;
    if (checkpoint.has_tensor(linear.name + ".weight")) {
      bytes[dense] += dense_bytes(count);
      continue;
    }
    const std::string kind = linear.name.substr(linear.name.rfind('.') + 1);
    if (formats.find(kind) == formats.end()) {
      const LinearWeights weights = checkpoint.load_linear(linear.name, DType::kBF16);
      if (!weights.quantized)
        fail(ErrorCode::kInternal, linear.name, ": neither dense nor quantized");
      std::string name = weight_format_name(weights.quantized->format);
      if (weights.scheme.hadamard > 0) name += str(", rotated by ", weights.scheme.hadamard);
      if (weights.scheme.activations != ActivationFormat::kNone) {
        name += str(", activations ", activation_format_name(weights.scheme.activations));
      }
      formats[kind] = {name, bits_per_weight(weights.quantized->format)};
    }
    const auto& [name, bits] = formats[kind];
    bytes[name] += static_cast<int64_t>(static_cast<double>(count) * bits / 8);
  }
  for (const PlainTensor& tensor : tensors.plain) {
    bytes[dense] += dense_bytes(num_elements(tensor.shape));
  }
  Json json = Json::object();
  for (const auto& [name, count] : bytes) json[name] = count;
  return json;
}

// {"intact": true | false | null, "state": ..., "problems": [...]}. null: nothing to compare with.
Json integrity_json(const std::string& path, bool quick) {
  Json json;
  if (!fs::is_directory(path)) {
    json["intact"] = nullptr;
    json["state"] = "header, tensor sizes and offsets agree; a GGUF file has no checksums";
    json["problems"] = Json::array();
    return json;
  }
  const DirectoryReport report = verify_directory(path, /*digests=*/!quick);
  switch (report.state) {
    case DirectoryState::kWhole:
      json["intact"] = true;
      json["state"] = quick ? "every file has its size" : "every file has its SHA-256";
      break;
    case DirectoryState::kDamaged:
      json["intact"] = false;
      json["state"] = "files differ from lathe.json";
      break;
    case DirectoryState::kIncomplete:
      json["intact"] = false;
      json["state"] = "unfinished";
      break;
    case DirectoryState::kForeign:
      json["intact"] = nullptr;
      json["state"] = "headers, shapes and offsets agree; not written by lathe, so no checksums";
      break;
  }
  json["problems"] = report.problems;
  return json;
}

Json machine_json(const InspectFlags& flags, Exec& exec) {
  const LoadedModel loaded(flags.path, flags.model, exec, {.quiet = flags.common.json});
  const Model& model = loaded.model();
  const ModelConfig& config = model.config();
  const double bandwidth = model.measure_bandwidth(exec);
  Json json;
  json["threads"] = exec.threads.num_threads();
  json["cpu_features"] = cpu_features_text();
  json["kernels"] = model.kernels();
  json["load_seconds"] = loaded.load_seconds();
  json["weight_bytes"] = model.weight_bytes();
  const LoadedKvCodec* codec = loaded.kv_codec();
  json["kv_bytes_per_token"] =
      codec != nullptr ? kv_token_bytes(codec->file) : kv_token_bytes(loaded.kv_format(), config);
  json["read_bandwidth_bytes_per_second"] = bandwidth;
  // Decoding one sequence reads every weight once a token; so this is a ceiling.
  json["expected_decode_tokens_per_second"] =
      bandwidth > 0 ? Json(bandwidth / static_cast<double>(model.weight_bytes())) : Json(nullptr);
  return json;
}

std::string indent(std::string text) {
  std::string result;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    result += "  " + text.substr(begin, end - begin) + "\n";
    begin = end + 1;
  }
  return result;
}

std::string inspect_text(const Json& json) {
  const Json& config = json["config"];
  const auto number = [&](const char* key) { return std::to_string(config[key].get<int64_t>()); };
  std::string text =
      str(json["path"].get<std::string>(), "\n  ", config["model_type"].get<std::string>(), ", ",
          json["format"].get<std::string>(), ", ",
          static_cast<double>(config["parameters"].get<int64_t>() / 100000) / 10,
          " million parameters, ", format_bytes(json["bytes"].get<double>()), " on disk\n  ",
          number("num_layers"), " layers, hidden ", number("hidden_size"), ", MLP ",
          number("intermediate_size"), ", heads ", number("num_heads"), ":", number("num_kv_heads"),
          " x ", number("head_dim"), ", vocabulary ", number("vocab_size"), ", context ",
          number("max_position_embeddings"),
          "\n  chat template: ", json["chat_template"].get<bool>() ? "yes" : "no", "\n");
  text += "weights\n";
  for (const auto& [format, bytes] : json["weights"].items()) {
    text += str("  ", format, "  ", format_bytes(bytes.get<double>()), "\n");
  }
  if (json.contains("emulates")) {
    text += str("  emulates ", json["emulates"].get<std::string>(), ": to measure only\n");
  }
  const Json& integrity = json["integrity"];
  text += str("integrity\n  ",
              integrity["intact"].is_null() ? "" : (integrity["intact"] ? "intact: " : "BROKEN: "),
              integrity["state"].get<std::string>(), "\n");
  for (const Json& problem : integrity["problems"]) {
    text += "  " + problem.get<std::string>() + "\n";
  }
  if (!json.contains("machine")) return text;
  const Json& machine = json["machine"];
  text += str("this machine (", machine["threads"], " threads, ",
              machine["cpu_features"].get<std::string>(), ")\n",
              indent(machine["kernels"].get<std::string>()),
              "  weights read for a token: ", format_bytes(machine["weight_bytes"].get<double>()),
              ", cache: ", format_bytes(machine["kv_bytes_per_token"].get<double>()), " a token\n");
  if (!machine["expected_decode_tokens_per_second"].is_null()) {
    char line[160];
    std::snprintf(line, sizeof line, "  memory reads %.1f GB/s: at most %.1f tokens/s\n",
                  machine["read_bandwidth_bytes_per_second"].get<double>() / 1e9,
                  machine["expected_decode_tokens_per_second"].get<double>());
    text += line;
  }
  return text;
}

void run_forecast(const InspectFlags& flags) {
  GpuForecastFlags forecast = flags.forecast;
  forecast.path = flags.path;
  const Json json = gpu_forecast_json(forecast);
  if (flags.common.json) {
    print_json(json);
  } else {
    print(gpu_forecast_text(json));
  }
}

void run_inspect(const InspectFlags& flags) {
  Runtime runtime(flags.common);
  Json json;
  json["path"] = flags.path;
  // First: of an unfinished or damaged directory the rest may be unreadable.
  if (fs::is_directory(flags.path)) {
    json["integrity"] = integrity_json(flags.path, flags.quick);
    if (json["integrity"]["intact"] == false) {
      std::string problems = json["integrity"]["state"].get<std::string>();
      for (const Json& problem : json["integrity"]["problems"]) {
        problems += "; " + problem.get<std::string>();
      }
      if (flags.common.json) print_json(json);
      fail(ErrorCode::kCorruptData, flags.path, ": not intact: ", problems);
    }
  }
  const TextModel model(flags.path);
  const Checkpoint& checkpoint = model.checkpoint();
  json["format"] = checkpoint.is_gguf() ? "GGUF file" : "Hugging Face directory";
  json["bytes"] = bytes_on_disk(flags.path);
  json["config"] = config_json(checkpoint.config());
  json["chat_template"] = model.has_chat_template();
  json["weights"] = stored_weights_json(checkpoint);
  if (fs::exists(fs::path(flags.path) / kManifestFileName)) {
    for (const auto& [name, value] : read_manifest(flags.path).settings) {
      if (name == "emulates") json["emulates"] = value;
    }
  }
  if (!json.contains("integrity")) json["integrity"] = integrity_json(flags.path, flags.quick);
  if (!flags.quick) json["machine"] = machine_json(flags, runtime.exec());
  if (flags.common.json) {
    print_json(json);
  } else {
    print(inspect_text(json));
  }
}

}  // namespace

void add_inspect_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<InspectFlags>();  // shared: the callback outlives this function
  CLI::App* command =
      app.add_subcommand("inspect", "What a model is, whether it is intact, what it will do here");
  add_model_argument(*command, flags->path);
  command->add_flag("--quick", flags->quick,
                    "Do not load the weights, measure the machine or compute checksums");
  CLI::Option* gpus =
      command
          ->add_option(
              "--gpus", flags->forecast.num_gpus,
              "Only forecast memory and speed on so many GPUs of one host; MODEL may then be "
              "a shape of Llama 3.1: 8b, 70b, 405b")
          ->type_name("N");
  command->add_option("--gpu", flags->forecast.card, "With --gpus: h200 or h100")
      ->needs(gpus)
      ->capture_default_str()
      ->type_name("NAME");
  command
      ->add_option("--context", flags->forecast.context,
                   "With --gpus: tokens in front of each decoded one")
      ->needs(gpus)
      ->capture_default_str()
      ->type_name("N");
  add_model_flags(*command, flags->model);
  add_common_flags(*command, flags->common);
  command->footer(
      "Exit code 1 when the model is damaged or incomplete.\n\n"
      "Examples:\n  lathe inspect smollm2.gguf\n  lathe inspect 70b --gpus 2");
  command->callback([flags, gpus, &invocation] {
    const bool forecasts = gpus->count() > 0;
    invocation.run = [flags, forecasts] {
      if (forecasts) {
        run_forecast(*flags);
      } else {
        run_inspect(*flags);
      }
    };
  });
}

}  // namespace lathe
