// What a model takes on N GPUs of one host with tensor parallelism, computed from shapes and from
// figures that docs/results/hopper.md measured on one GPU: a forecast, of which every number says
// whether it was measured or assumed.
//
//   decode step = layers * (4 linears + rest + 2 all-reduces) + head + cache / bandwidth
//   linear      = fixed + bytes of the shard / (share of the bandwidth), for each 16 rows
//   prefill     = FLOPs / (N * rate) + 2 all-reduces a layer
//
// Split: q, k, v, gate, up and the head by output features, o and down by input features (so two
// all-reduces a layer of [rows, hidden_size]); key-value heads over the GPUs, copied where there
// are fewer heads than GPUs. Norms are copied. Dense decoders only.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cache/kv_format.h"
#include "formats/model_config.h"
#include "quant/weight_format.h"

namespace lathe {

// One figure that a forecast rests on.
struct GpuFigure {
  std::string name;
  double value = 0;
  std::string unit;
  bool measured = false;
  std::string source;  // where it was measured, or why it is assumed
};

struct GpuCard {
  std::string name;           // "h200", "h100"
  double memory_bytes = 0;    // that programs get
  double read_bandwidth = 0;  // bytes/s, measured
};
// Throws kInvalidArgument listing them.
GpuCard gpu_card_from_name(std::string_view name);

// Llama 3.1's "8b", "70b", "405b". Empty config (num_layers 0) for another name.
ModelConfig shape_from_name(std::string_view name);

struct GpuCostOptions {
  GpuCard card;
  int64_t num_gpus = 1;  // 1 to 8
  WeightFormat weights;  // of the linear layers
  bool dense = false;    // bf16 linear layers; `weights` does not count then
  KvFormat cache = KvFormat::kBF16;
};

struct GpuCost {
  // Bytes on each GPU.
  double weight_bytes = 0;  // linear layers, embeddings, head
  double kv_bytes_per_token = 0;
  double buffer_bytes = 0;  // a step of 8192 rows, logits of 64, NCCL's
  double cache_tokens = 0;  // what is left, in tokens of all sequences together; 0: it does not fit
  double prefill_tokens_per_second = 0;  // 8192 rows a step, short contexts
};

// Throws kInvalidArgument for a number of GPUs that heads or features do not divide by,
// kUnsupported for experts.
GpuCost gpu_cost(const ModelConfig& config, const GpuCostOptions& options);

// One step of `batch` sequences that have `context` tokens each.
struct GpuStep {
  double seconds = 0;
  double linear_seconds = 0;     // with the head
  double rest_seconds = 0;       // norms, rotations, quantizing, launches
  double attention_seconds = 0;  // reading the cache
  double all_reduce_seconds = 0;
};
GpuStep gpu_decode_step(const ModelConfig& config, const GpuCostOptions& options, int64_t batch,
                        int64_t context);

// Everything that the two rest on.
std::vector<GpuFigure> gpu_figures(const GpuCard& card);

}  // namespace lathe
