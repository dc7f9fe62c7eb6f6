#include "cli/gpu_forecast.h"

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/loaded_model.h"
#include "model/gpu_cost.h"

namespace lathe {
namespace {

constexpr int64_t kBatches[] = {1, 32};

ModelConfig config_of(const GpuForecastFlags& flags) {
  if (!std::filesystem::exists(flags.path)) {
    const ModelConfig shape = shape_from_name(flags.path);
    if (shape.num_layers > 0) return shape;
  }
  return TextModel(flags.path).checkpoint().config();
}

Json step_json(const ModelConfig& config, const GpuCostOptions& options, int64_t batch,
               int64_t context) {
  const GpuStep step = gpu_decode_step(config, options, batch, context);
  return {{"batch", batch},
          {"tokens_per_second", static_cast<double>(batch) / step.seconds},
          {"step_seconds", step.seconds},
          {"linear_seconds", step.linear_seconds},
          {"rest_seconds", step.rest_seconds},
          {"attention_seconds", step.attention_seconds},
          {"all_reduce_seconds", step.all_reduce_seconds}};
}

std::string text_of(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

}  // namespace

Json gpu_forecast_json(const GpuForecastFlags& flags) {
  const ModelConfig config = config_of(flags);
  if (flags.context < 1 || flags.context > (int64_t{1} << 24)) {
    fail(ErrorCode::kInvalidArgument, "--context ", flags.context, ": 1 to 2^24");
  }
  GpuCostOptions options;
  options.card = gpu_card_from_name(flags.card);
  options.num_gpus = flags.num_gpus;
  Json json = {{"model", flags.path},
               {"gpus", flags.num_gpus},
               {"gpu", flags.card},
               {"memory_bytes_per_gpu", options.card.memory_bytes},
               {"context", flags.context}};
  Json caches = Json::array();
  for (const KvFormat format : {KvFormat::kBF16, KvFormat::kFp8}) {
    GpuCostOptions with = options;
    with.dense = true;
    with.cache = format;
    caches.push_back({{"format", kv_format_name(format)},
                      {"bytes_per_token_and_gpu", gpu_cost(config, with).kv_bytes_per_token}});
  }
  json["caches"] = caches;
  json["weights"] = Json::array();
  for (const char* name : {"bf16", "fp8", "nvfp4", "mxfp4"}) {
    GpuCostOptions with = options;
    with.dense = std::string_view(name) == "bf16";
    if (!with.dense) with.weights = weight_format_from_name(name);
    const GpuCost cost = gpu_cost(config, with);
    const bool fits = cost.cache_tokens > 0;
    Json entry = {{"format", name},
                  {"weight_bytes_per_gpu", cost.weight_bytes},
                  {"buffer_bytes_per_gpu", cost.buffer_bytes},
                  {"fits", fits},
                  {"cache_tokens_bf16", cost.cache_tokens}};
    if (fits) {
      entry["prefill_tokens_per_second"] = cost.prefill_tokens_per_second;
      entry["decode"] = Json::array();
      for (const int64_t batch : kBatches) {
        entry["decode"].push_back(step_json(config, with, batch, flags.context));
      }
    }
    json["weights"].push_back(entry);
  }
  json["figures"] = Json::array();
  for (const GpuFigure& figure : gpu_figures(options.card)) {
    json["figures"].push_back({{"name", figure.name},
                               {"value", figure.value},
                               {"unit", figure.unit},
                               {"basis", figure.measured ? "measured" : "assumed"},
                               {"source", figure.source}});
  }
  return json;
}

std::string gpu_forecast_text(const Json& json) {
  const auto bytes = [](const Json& value) { return format_bytes(value.get<double>()); };
  std::string text = str(json["model"].get<std::string>(), " on ", json["gpus"], " x ",
                         json["gpu"].get<std::string>(), ", ", bytes(json["memory_bytes_per_gpu"]),
                         " each: a forecast\n");
  for (const Json& cache : json["caches"]) {
    text += str("  cache ", cache["format"].get<std::string>(), ": ",
                bytes(cache["bytes_per_token_and_gpu"]), " a token and GPU\n");
  }
  char line[240];
  std::snprintf(line, sizeof line, "  %-7s %12s %12s %14s %12s %12s %12s %11s\n", "weights",
                "a GPU", "buffers", "cache tokens", "prefill", "decode x1", "decode x32",
                "all-reduce");
  text += line;
  for (const Json& entry : json["weights"]) {
    const std::string name = entry["format"].get<std::string>();
    if (!entry["fits"].get<bool>()) {
      std::snprintf(line, sizeof line, "  %-7s %12s %12s %14s\n", name.c_str(),
                    bytes(entry["weight_bytes_per_gpu"]).c_str(),
                    bytes(entry["buffer_bytes_per_gpu"]).c_str(), "does not fit");
      text += line;
      continue;
    }
    const Json& one = entry["decode"][0];
    const Json& many = entry["decode"][1];
    std::snprintf(
        line, sizeof line, "  %-7s %12s %12s %14.0f %12.0f %12.0f %12.0f %9.0f %%\n", name.c_str(),
        bytes(entry["weight_bytes_per_gpu"]).c_str(), bytes(entry["buffer_bytes_per_gpu"]).c_str(),
        entry["cache_tokens_bf16"].get<double>(), entry["prefill_tokens_per_second"].get<double>(),
        one["tokens_per_second"].get<double>(), many["tokens_per_second"].get<double>(),
        100 * many["all_reduce_seconds"].get<double>() / many["step_seconds"].get<double>());
    text += line;
  }
  text += str("  tokens/s; decoding at a context of ", json["context"],
              ", bf16 cache; all-reduce: share of a step of 32\nwhat it rests on\n");
  for (const Json& figure : json["figures"]) {
    text +=
        str("  ", figure["basis"].get<std::string>(), "  ", figure["name"].get<std::string>(), ": ",
            text_of(figure["value"].get<double>()), " ", figure["unit"].get<std::string>(), " (",
            figure["source"].get<std::string>(), ")\n");
  }
  return text;
}

}  // namespace lathe
