// plan_quantization(): what a run will take. The work of every stage follows from shapes and
// settings (calibration_profile.h has the stages and their units); how fast this machine does each
// is measured on pieces of it.
#include <algorithm>
#include <map>
#include <vector>

#include "compress/gptq.h"
#include "compress/layer_pass.h"
#include "compress/linear_group.h"
#include "compress/quantize_model.h"
#include "compress/speed_probe.h"

namespace lathe {
namespace {

// Linears that share an input.
struct Group {
  int64_t k = 0;
  int64_t rows = 0;    // of all of them
  double reached = 0;  // calibration tokens
  bool is_expert = false;
};

std::vector<Group> groups_of(const ModelConfig& config, int64_t layer, double tokens) {
  std::vector<Group> groups;
  LinearKind kind = LinearKind::kDown;
  int64_t expert = -1;
  for (const LinearSlot& slot : layer_slots(config, layer)) {
    if (groups.empty() || slot.kind != kind || slot.expert != expert) {
      const double share = slot.expert < 0
                               ? 1
                               : static_cast<double>(config.num_experts_per_token) /
                                     static_cast<double>(std::max<int64_t>(config.num_experts, 1));
      groups.push_back({.k = slot.k, .reached = tokens * share, .is_expert = slot.expert >= 0});
      kind = slot.kind;
      expert = slot.expert;
    }
    groups.back().rows += slot.n;
  }
  return groups;
}

// Passes over the calibration tokens that a layer takes.
struct Passes {
  double collecting = 0;
  double propagating = 0;  // 0 for the last layer
  double all() const { return collecting + propagating; }
};
Passes passes_of(const ModelConfig& config, const QuantizeOptions& options, int64_t layer) {
  if (!options.needs_calibration()) return {};
  double collecting = options.measures_smoothed_inputs() ? 2 : 1;
  if (options.sequential) collecting = 4;
  return {.collecting = collecting, .propagating = layer + 1 < config.num_layers ? 1.0 : 0.0};
}

double trials_of(const QuantizeOptions& options, int64_t k, bool uses_gptq) {
  // One that does not fit k is an error, several are those that fit.
  const auto rotations =
      options.hadamard.size() == 1
          ? 1
          : std::count_if(options.hadamard.begin(), options.hadamard.end(),
                          [&](int64_t block) { return block == 0 || k % block == 0; });
  return static_cast<double>(rotations) *
         static_cast<double>(uses_gptq ? options.damping.size() : std::size_t{1});
}

void add_group(const Group& group, const QuantizeOptions& options, StageNumbers& work) {
  const auto k = static_cast<double>(group.k);
  const auto rows = static_cast<double>(group.rows);
  const bool has_hessian = options.needs_calibration();
  if (has_hessian) work[CalibrationStage::kHessian] += group.reached * k * k;
  const bool reached =
      group.reached > 0 &&
      (!group.is_expert || group.reached >= static_cast<double>(options.min_expert_tokens));
  const bool uses_gptq = options.uses_gptq() && reached;
  const double trials = trials_of(options, group.k, uses_gptq);
  const bool refines = uses_gptq && options.scales.search == ScaleSearch::kExhaustive;
  const double rounds = 1 + (refines ? static_cast<double>(options.refinements) : 0.0);
  work[CalibrationStage::kScales] += trials * rows * k * rounds;
  if (has_hessian) {
    // The weights' energy and the error of rounding to nearest; GPTQ knows its own on the tokens
    // that it fits.
    const double errors = uses_gptq && (options.chooses() || options.sweeps > 0) ? 3 : 2;
    work[CalibrationStage::kError] += trials * errors * rows * k * k;
  }
  if (!uses_gptq) return;
  work[CalibrationStage::kFactor] += trials * k * k * k / 3;
  work[CalibrationStage::kRound] += trials * rounds * rows * k;
  work[CalibrationStage::kCompensate] += trials * rounds * gptq_compensation(group.rows, group.k);
}

// How fast this machine is, in work per second.
class Rates {
 public:
  Rates(const Checkpoint& source, const QuantizeOptions& options, Exec& exec)
      : source_(source), config_(source.config()), options_(options), exec_(exec) {
    const int64_t size = std::min<int64_t>(config_.hidden_size, 2048);
    layer_[CalibrationStage::kLoad] = load_rate();
    if (!options.needs_calibration()) return;
    // As gate and up are: most of the work.
    const int64_t width = std::min<int64_t>(
        2 * std::max(config_.intermediate_size, config_.moe_intermediate_size), 4096);
    layer_[CalibrationStage::kLinear] =
        measure_linear_gflops(width, size, ComputeType::kNearF32, exec) * 1e9;
    layer_[CalibrationStage::kPack] = measure_packing(size, size, options.format, exec);
    layer_[CalibrationStage::kAttention] = measure_attention(config_, options.seq_len, exec);
    layer_[CalibrationStage::kBetween] = measure_between(config_, exec);
    layer_[CalibrationStage::kHidden] = kFileBytesPerSecond;
  }

  void add_seconds(const StageNumbers& work, StageNumbers& seconds) const {
    add_seconds(work, layer_, seconds);
  }
  // Of a group, at its width or at the largest that is measured.
  void add_group_seconds(int64_t k, const StageNumbers& work, StageNumbers& seconds) {
    const int64_t width = std::min<int64_t>(k, kLargestWidth);
    const auto [place, is_new] = groups_.try_emplace(width);
    if (is_new) place->second = measure_group(width, options_, exec_);
    add_seconds(work, place->second, seconds);
  }

  // Written through the page cache, digested (SHA-256) and synced; measured 2026-11-27.
  static constexpr double kResultBytesPerSecond = 300e6;

 private:
  static constexpr int64_t kLargestWidth = 2048;
  static constexpr double kFileBytesPerSecond = 2e9;  // of the page cache; measured 4e9 and 5e9

  static void add_seconds(const StageNumbers& work, const StageNumbers& rates,
                          StageNumbers& seconds) {
    for (std::size_t i = 0; i < kNumCalibrationStages; ++i) {
      if (rates.values[i] > 0) seconds.values[i] += work.values[i] / rates.values[i];
    }
  }

  // Weights a second, from one of the first layer's, of at most four million where there is one.
  double load_rate() const {
    const std::vector<LinearSlot> slots = layer_slots(config_, 0);
    const LinearSlot* chosen = &slots[0];
    for (const LinearSlot& slot : slots) {
      const int64_t size = slot.n * slot.k;
      const int64_t best = chosen->n * chosen->k;
      constexpr int64_t kEnough = int64_t{1} << 22;
      if (best > kEnough ? size < best : size <= kEnough && size > best) chosen = &slot;
    }
    return measure_loading(source_, chosen->module);
  }

  const Checkpoint& source_;
  const ModelConfig& config_;
  const QuantizeOptions& options_;
  Exec& exec_;
  StageNumbers layer_;
  std::map<int64_t, StageNumbers> groups_;
};

double bytes(double floats) { return 4 * floats; }

// The largest that a layer holds at a time; see plan_memory().
struct LayerMemory {
  double weights = 0;        // of all linears, fp32
  double largest_group = 0;  // of linears that share an input, fp32
  double hessians = 0;       // of all inputs
  double largest_hessian = 0;
};

double plan_memory(const ModelConfig& config, const QuantizeOptions& options) {
  const bool calibrates = options.needs_calibration();
  const double held_out = options.chooses() ? 2 : 1;
  const double rows = static_cast<double>(std::max<int64_t>(options.seq_len, 2048));
  const auto mlp =
      static_cast<double>(std::max(config.intermediate_size, config.moe_intermediate_size));
  // A step: residual stream and two branches; projections with keys once more, attention's output,
  // gate, up and what comes of them; keys and values of two steps.
  const double step = bytes(rows * (3 * static_cast<double>(config.hidden_size) +
                                    std::max(2 * static_cast<double>(config.q_size()) +
                                                 3 * static_cast<double>(config.kv_size()),
                                             3 * mlp) +
                                    4 * static_cast<double>(config.kv_size())));
  double largest = 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    LayerMemory memory;
    for (const Group& group : groups_of(config, layer, 0)) {
      const auto k = static_cast<double>(group.k);
      const double weights = bytes(static_cast<double>(group.rows) * k);
      memory.weights += weights;
      memory.largest_group = std::max(memory.largest_group, weights);
      memory.hessians += bytes(k * k);
      memory.largest_hessian = std::max(memory.largest_hessian, bytes(k * k));
    }
    // In a pass: the weights, their packed copy, the Hessians so far.
    const double calibrating =
        calibrates ? 2 * memory.weights + held_out * memory.hessians + step : 0;
    // In front of it: the copies are being packed, one linear after the other.
    const double packing = calibrates ? 3 * memory.weights : 0;
    // Solving: the weights, all Hessians, a copy to rotate and a factor, and for a group the
    // difference, GPTQ's transposed rows and its codes.
    const double choices = options.hadamard.size() > 1 ? 2 : 0;
    const double solving = memory.weights + (calibrates ? held_out * memory.hessians : 0) +
                           (options.uses_gptq() ? (1 + choices) * memory.largest_hessian : 0) +
                           (2.25 + (options.hadamard.size() > 1 ? 1 : 0)) * memory.largest_group +
                           (calibrates ? step : 0);
    largest = std::max({largest, calibrating, packing, solving});
  }
  return largest + 64e6;
}

}  // namespace

double gptq_compensation(int64_t rows, int64_t k) {
  double work = 0;
  for (int64_t first = 0; first < k; first += kGptqBlock) {
    work += 2 * static_cast<double>(std::min(kGptqBlock, k - first)) * static_cast<double>(first) *
            static_cast<double>(rows);
  }
  return work;
}

StageNumbers quantization_work(const ModelConfig& config, const QuantizeOptions& options) {
  StageNumbers work;
  const bool calibrates = options.needs_calibration();
  const double tokens =
      calibrates ? static_cast<double>(options.samples) * static_cast<double>(options.seq_len) : 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const Passes passes = passes_of(config, options, layer);
    double weights = 0;
    double met = static_cast<double>(config.num_experts * config.hidden_size);  // by a token
    for (const Group& group : groups_of(config, layer, tokens)) {
      const double size = static_cast<double>(group.rows) * static_cast<double>(group.k);
      weights += size;
      met += group.is_expert ? size * static_cast<double>(config.num_experts_per_token) /
                                   static_cast<double>(config.num_experts)
                             : size;
      add_group(group, options, work);
    }
    const bool slides = config.layer_is_sliding[static_cast<std::size_t>(layer)];
    const double seen =
        static_cast<double>(options.samples) *
        static_cast<double>(visible_positions(options.seq_len, slides ? config.sliding_window : 0));
    work[CalibrationStage::kLoad] += weights;
    work[CalibrationStage::kPack] += passes.all() * weights;
    work[CalibrationStage::kLinear] += passes.all() * 2 * tokens * met;
    work[CalibrationStage::kAttention] +=
        passes.all() * 4 * seen * static_cast<double>(config.q_size());
    work[CalibrationStage::kBetween] += passes.all() * tokens * numbers_between(config);
    // Every pass reads, and what propagates writes too.
    work[CalibrationStage::kHidden] +=
        (passes.all() + passes.propagating) * tokens * static_cast<double>(config.hidden_size) * 4;
  }
  return work;
}

QuantizePlan plan_quantization(const Checkpoint& source, const QuantizeOptions& options,
                               Exec& exec) {
  const ModelConfig& config = source.config();
  const double tokens = options.needs_calibration() ? static_cast<double>(options.samples) *
                                                          static_cast<double>(options.seq_len)
                                                    : 0;
  QuantizePlan plan;
  plan.stage_work = quantization_work(config, options);
  double codes = 0;
  Rates rates(source, options, exec);
  StageNumbers of_layers = plan.stage_work;
  for (const CalibrationStage stage :
       {CalibrationStage::kHessian, CalibrationStage::kFactor, CalibrationStage::kScales,
        CalibrationStage::kRound, CalibrationStage::kCompensate, CalibrationStage::kError}) {
    of_layers[stage] = 0;  // added group by group
  }
  rates.add_seconds(of_layers, plan.stage_seconds);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Group& group : groups_of(config, layer, tokens)) {
      StageNumbers work;
      add_group(group, options, work);
      rates.add_group_seconds(group.k, work, plan.stage_seconds);
      codes += static_cast<double>(group.rows) * static_cast<double>(group.k) *
               bits_per_weight(options.format) / 8;
    }
  }

  double embedding = 0;
  double head = 0;
  double dense = 0;  // tensors that stay dense: embeddings, head, norms
  for (const std::string& name : source.tensor_names()) {
    if (name.starts_with("model.layers.")) continue;
    const double size = static_cast<double>(num_elements(source.tensor_shape(name))) * 2;
    dense += size;
    if (name == "model.embed_tokens.weight") embedding = size;
    if (name == "lm_head.weight") head = size;
  }
  plan.result_bytes = codes + dense;
  plan.stage_seconds[CalibrationStage::kWrite] = plan.result_bytes / Rates::kResultBytesPerSecond;
  plan.seconds = plan.stage_seconds.total();
  const double hidden = tokens * static_cast<double>(config.hidden_size) * 4;
  plan.disk_bytes = plan.result_bytes + 2 * hidden;
  // Embeddings and head are read, converted and written one behind the other, but held together.
  plan.memory_bytes = std::max(plan_memory(config, options), embedding + head + 64e6);
  plan.loaded_bytes = codes + embedding + 2 * std::max(head, embedding) + 64e6;
  return plan;
}

}  // namespace lathe
