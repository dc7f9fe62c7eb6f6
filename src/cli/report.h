// The one-page report of `compress`: what was done, what it saved and what it cost.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "compress/linear_group.h"
#include "eval/perplexity.h"

namespace lathe {

// One way to compress the model, measured.
struct MeasuredMethod {
  std::string method;  // "mr-gptq"
  DivergenceResult quality;
};

// The codec of the cache, measured on the compressed model.
struct MeasuredCache {
  std::string fit;            // kv_fit_json(), as text
  double bits_per_value = 0;  // scales included; bf16: 16
  PerplexityResult quality;   // on the same windows as the methods
};

struct CompressionReport {
  std::string source, out, command, created, version;
  std::string format, method, activations;
  std::string data;                 // the text that quality was measured on
  int64_t source_weight_bytes = 0;  // read for a token, before (as lathe runs the source) and after
  int64_t weight_bytes = 0;
  int64_t source_disk_bytes = 0, disk_bytes = 0;
  std::optional<double> quantize_seconds;  // nullopt: in an earlier run that was interrupted later
  double source_decode_rate = 0, decode_rate = 0;  // tokens per second, one sequence
  std::vector<MeasuredMethod> methods;             // the chosen one first, then those compared
  std::vector<LinearReport> linears;
  std::optional<MeasuredCache> cache;
};

nlohmann::ordered_json report_json(const CompressionReport& report);
// One page without scripts or anything from elsewhere; plots are inline SVG.
std::string report_html(const CompressionReport& report);

}  // namespace lathe
