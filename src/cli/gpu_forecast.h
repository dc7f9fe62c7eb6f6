// `lathe inspect MODEL --gpus N`: what the model would take and give on N GPUs of one host.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace lathe {

struct GpuForecastFlags {
  std::string path;  // a model, or the name of a shape: 8b, 70b, 405b
  int64_t num_gpus = 0;
  std::string card = "h200";
  int64_t context = 1024;
};

// Throws kInvalidArgument, and what opening the model throws.
nlohmann::ordered_json gpu_forecast_json(const GpuForecastFlags& flags);
std::string gpu_forecast_text(const nlohmann::ordered_json& json);

}  // namespace lathe
