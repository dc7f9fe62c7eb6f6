#include "model/gpu_cost.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace lathe {
namespace {

constexpr const char* kResults = "docs/results/hopper.md";

// Linear layers of few rows, MXFP4, H100, m = 1 (the table "Linear layers, few rows"): from 5.8 us
// for 2.9 us of reading to 96.7 for 89.9. The line through these two, 2.8 + 1.04 x, misses the
// others by 19 % at most.
constexpr double kLinearFixed = 2.8e-6;
constexpr double kLinearShare = 0.96;
// The same at 16 to 64 rows against one: 1.1 to 1.9 times as long, the large ones 1.2.
constexpr double kSixteenRows = 1.4;
constexpr double kRowsToThere = 16;
constexpr int64_t kRowsOfAPass = 64;
// The head in 8 bits, 128256 x 4096, H100: 212 us at one row, 384 at 64.
constexpr double kHeadShare = 0.80;
constexpr double kHeadSixtyFourRows = 1.8;
// What a layer of the 8B shape takes beside its linears and the cache: of the 2.49 ms of a step of
// one row (402 tokens/s) 1.81 are linears and head. A row more: of the 5.23 ms of a step of 64
// (12,238 tokens/s).
constexpr double kRestOfALayer = 21e-6;
constexpr double kRestOfARow = 0.17e-6;
// Attention reading the cache, long and short contexts, by format (H100).
constexpr double kAttentionShareBf16 = 0.92;
constexpr double kAttentionShareFp8 = 0.81;
// Prefill of the 8B shape end to end, H200: 74,400 tokens/s of 14.0 GFLOP. By the ratio of the
// linears' table for others.
constexpr double kPrefillFp4 = 1.04e15;
constexpr double kPrefillOther = 0.52e15;

// NVLink of a Hopper host, one direction, as NVIDIA states it (900 GB/s both ways); what a ring
// gets of it is assumed. A small all-reduce on two H100s, in a graph: 10 us at one row of 8192, 13
// at 32.
constexpr double kLinkBandwidth = 450e9;
constexpr double kLinkShare = 0.7;
constexpr double kAllReduceLatency = 10.5e-6;
constexpr int64_t kMaxGpus = 8;
constexpr int64_t kStepRows = 8192;
constexpr double kShardAlign = 128;  // block Hadamard of 128 holds groups of 16 and of 32

struct Linear {
  double n = 0;
  double k = 0;
  bool by_inputs = false;  // o and down: each GPU has some of the inputs
};

std::vector<Linear> linears_of_layer(const ModelConfig& config) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto mlp = static_cast<double>(config.intermediate_size);
  return {{static_cast<double>(config.q_size() + 2 * config.kv_size()), hidden, false},
          {hidden, static_cast<double>(config.q_size()), true},
          {2 * mlp, hidden, false},
          {hidden, mlp, true}};
}

// Copies of a key-value head: 1 while there are as many heads as GPUs.
double head_copies(const ModelConfig& config, int64_t num_gpus) {
  return std::max(1.0, static_cast<double>(num_gpus) / static_cast<double>(config.num_kv_heads));
}

// Numbers of weights on one GPU in layer's linear `index`.
double shard(const ModelConfig& config, const Linear& linear, std::size_t index, int64_t num_gpus) {
  double n = linear.n;
  if (index == 0) {
    n += 2 * static_cast<double>(config.kv_size()) * (head_copies(config, num_gpus) - 1);
  }
  return n * linear.k / static_cast<double>(num_gpus);
}

double bits_of(const GpuCostOptions& options) {
  return options.dense ? 16 : bits_per_weight(options.weights);
}

void check(const ModelConfig& config, const GpuCostOptions& options) {
  const int64_t n = options.num_gpus;
  if (n < 1 || n > kMaxGpus) {
    fail(ErrorCode::kInvalidArgument, "--gpus ", n, ": 1 to ", kMaxGpus, ", the GPUs of one host");
  }
  if (config.num_experts > 0) {
    fail(ErrorCode::kUnsupported, "--gpus forecasts dense models only; this one has ",
         config.num_experts, " experts");
  }
  if (config.num_heads % n != 0 || (config.num_kv_heads % n != 0 && n % config.num_kv_heads != 0)) {
    fail(ErrorCode::kInvalidArgument, "--gpus ", n, ": ", config.num_heads, " heads and ",
         config.num_kv_heads, " key-value heads do not split over it");
  }
  if (std::fmod(static_cast<double>(config.intermediate_size) / static_cast<double>(n),
                n == 1 ? 1 : kShardAlign) != 0) {
    fail(ErrorCode::kInvalidArgument, "--gpus ", n, ": ", config.intermediate_size,
         " MLP features do not split into shards of whole blocks of ", kShardAlign);
  }
}

double all_reduce(const ModelConfig& config, int64_t num_gpus, int64_t rows) {
  if (num_gpus == 1) return 0;
  const double bytes = static_cast<double>(rows) * static_cast<double>(config.hidden_size) * 2;
  const auto n = static_cast<double>(num_gpus);
  return kAllReduceLatency + 2 * (n - 1) / n * bytes / (kLinkBandwidth * kLinkShare);
}

}  // namespace

GpuCard gpu_card_from_name(std::string_view name) {
  if (name == "h200") return {"h200", 139.0 * (1 << 30), 4.43e12};
  if (name == "h100") return {"h100", 78.0 * (1 << 30), 3.11e12};
  fail(ErrorCode::kInvalidArgument, "--gpu ", name, ": unknown; use h200 or h100");
}

ModelConfig shape_from_name(std::string_view name) {
  struct Shape {
    std::string_view name;
    int64_t layers, hidden, mlp, heads;
  };
  constexpr Shape kShapes[] = {
      {"8b", 32, 4096, 14336, 32}, {"70b", 80, 8192, 28672, 64}, {"405b", 126, 16384, 53248, 128}};
  for (const Shape& shape : kShapes) {
    if (shape.name != name) continue;
    return parse_hf_config(
        str(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,)",
            R"("num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,)",
            R"("hidden_act": "silu", "rope_theta": 500000.0, "tie_word_embeddings": false,)",
            R"("hidden_size": )", shape.hidden, R"(, "intermediate_size": )", shape.mlp,
            R"(, "num_hidden_layers": )", shape.layers, R"(, "num_attention_heads": )", shape.heads,
            "}"),
        std::string(name));
  }
  return {};
}

GpuCost gpu_cost(const ModelConfig& config, const GpuCostOptions& options) {
  check(config, options);
  const auto n = static_cast<double>(options.num_gpus);
  const auto layers = static_cast<double>(config.num_layers);
  const std::vector<Linear> linears = linears_of_layer(config);
  double sharded = 0, products = 0;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    sharded += shard(config, linears[i], i, options.num_gpus);
    products += linears[i].n * linears[i].k;
  }
  const auto table =
      static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden_size);
  GpuCost cost;
  // The embedding in bf16, the head beside it in 8 bits or, of a bf16 model, the same table.
  const double head_bytes = options.dense ? (config.tie_word_embeddings ? 0.0 : 2 * table) : table;
  cost.weight_bytes = layers * sharded * bits_of(options) / 8 + (2 * table + head_bytes) / n;
  cost.kv_bytes_per_token = static_cast<double>(kv_token_bytes(options.cache, config)) / n *
                            head_copies(config, options.num_gpus);
  const auto rows = static_cast<double>(kStepRows);
  cost.buffer_bytes =
      rows * (4 + 2 + 2) * static_cast<double>(config.hidden_size) +  // residual, input, codes
      rows * 2 *
          static_cast<double>(3 * config.intermediate_size + 2 * config.q_size() +
                              2 * config.kv_size()) /
          n +
      64 * 4 * static_cast<double>(config.vocab_size) + (options.num_gpus > 1 ? 512e6 : 0) + 1e9;
  const double left = options.card.memory_bytes - cost.weight_bytes - cost.buffer_bytes;
  cost.cache_tokens = left > 0 ? std::floor(left / cost.kv_bytes_per_token) : 0;
  const bool as_fp8 = !options.dense && weight_format_name(options.weights) == "mxfp4";
  const double step = 2 * rows * layers * products / n / (as_fp8 ? kPrefillFp4 : kPrefillOther) +
                      2 * layers * all_reduce(config, options.num_gpus, kStepRows);
  cost.prefill_tokens_per_second = rows / step;
  return cost;
}

GpuStep gpu_decode_step(const ModelConfig& config, const GpuCostOptions& options, int64_t batch,
                        int64_t context) {
  check(config, options);
  const auto n = static_cast<double>(options.num_gpus);
  const auto layers = static_cast<double>(config.num_layers);
  const double bandwidth = options.card.read_bandwidth;
  // Passes over the weights, and how much longer one takes than with one row.
  const auto passes = static_cast<double>((batch + kRowsOfAPass - 1) / kRowsOfAPass);
  const double rows_of_pass = static_cast<double>(std::min(batch, kRowsOfAPass));
  const double longer =
      1 + (kSixteenRows - 1) * (std::min(rows_of_pass, kRowsToThere) - 1) / (kRowsToThere - 1);
  const double head_longer = 1 + (kHeadSixtyFourRows - 1) * (rows_of_pass - 1) / (kRowsOfAPass - 1);
  GpuStep step;
  const std::vector<Linear> linears = linears_of_layer(config);
  for (std::size_t i = 0; i < linears.size(); ++i) {
    const double bytes = shard(config, linears[i], i, options.num_gpus) * bits_of(options) / 8;
    step.linear_seconds +=
        layers * passes * longer * (kLinearFixed + bytes / (kLinearShare * bandwidth));
  }
  const auto table =
      static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden_size);
  step.linear_seconds +=
      passes * head_longer * (options.dense ? 2 : 1) * table / n / (kHeadShare * bandwidth);
  step.rest_seconds = layers * (kRestOfALayer + kRestOfARow * static_cast<double>(batch - 1));
  const double cached = static_cast<double>(batch) * static_cast<double>(context) *
                        static_cast<double>(kv_token_bytes(options.cache, config)) / n *
                        head_copies(config, options.num_gpus);
  step.attention_seconds =
      cached /
      (bandwidth * (options.cache == KvFormat::kFp8 ? kAttentionShareFp8 : kAttentionShareBf16));
  step.all_reduce_seconds = 2 * layers * all_reduce(config, options.num_gpus, batch);
  step.seconds =
      step.linear_seconds + step.rest_seconds + step.attention_seconds + step.all_reduce_seconds;
  return step;
}

std::vector<GpuFigure> gpu_figures(const GpuCard& card) {
  const bool h100 = card.name == "h100";
  const std::string elsewhere =
      h100 ? kResults : str(kResults, ", on an H100; the same share is assumed for this card");
  return {
      {"memory of a GPU", card.memory_bytes, "bytes", false, "what such a card leaves to programs"},
      {"read bandwidth", card.read_bandwidth, "bytes/s", true, kResults},
      {"linear of few rows, fixed", kLinearFixed, "s", h100, elsewhere},
      {"linear of few rows, share of the bandwidth beyond it", kLinearShare, "", h100,
       elsewhere + "; MXFP4, other formats by their bytes"},
      {"sixteen rows and more against one", kSixteenRows, "times", h100, elsewhere},
      {"head in 8 bits, share of the bandwidth", kHeadShare, "", h100, elsewhere},
      {"head in 8 bits, 64 rows against one", kHeadSixtyFourRows, "times", h100, elsewhere},
      {"a layer's rest at one row", kRestOfALayer, "s", h100,
       elsewhere + ", end to end; assumed not to shrink with more GPUs or grow with the model"},
      {"a layer's rest, each further row", kRestOfARow, "s", h100, elsewhere + ", end to end"},
      {"attention, share of the bandwidth, bf16 cache", kAttentionShareBf16, "", true,
       str(kResults, ", on an H100")},
      {"attention, share of the bandwidth, FP8 cache", kAttentionShareFp8, "", true,
       str(kResults, ", on an H100")},
      {"prefill, MXFP4", kPrefillFp4, "FLOP/s", true,
       str(kResults, ", end to end on an H200; an H100 is 3 % slower")},
      {"prefill, other formats", kPrefillOther, "FLOP/s", false,
       str("NVFP4 on an H100 in ", kResults, "; the others assumed like it")},
      {"link between GPUs, one direction", kLinkBandwidth, "bytes/s", false,
       "NVLink 4 as NVIDIA states it"},
      {"what an all-reduce gets of the link", kLinkShare, "", false, "ring; not measured here"},
      {"a small all-reduce", kAllReduceLatency, "s", true,
       str("NCCL on two H100s, ", kResults, "; the same is assumed for more GPUs")},
      {"split of embedding and head over the GPUs", 1, "", false, "by the vocabulary"},
  };
}

}  // namespace lathe
