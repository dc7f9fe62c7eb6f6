#include "compress/layer_quantizer.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "compress/channel_scaling.h"
#ifdef LATHE_HAS_CUDA
#include "compress/cuda_layer_statistics.h"
#include "compress/cuda_linear_group.h"
#endif
#include "quant/encode.h"
#include "quant/hadamard.h"

namespace lathe {
namespace {

constexpr int64_t kHeldOutEvery = 8;

constexpr LinearKind kAllKinds[] = {LinearKind::kQkv, LinearKind::kO, LinearKind::kGateUp,
                                    LinearKind::kDown};

// QuaRot rotates online only where the residual rotation does not reach.
std::vector<int64_t> rotations_for(const QuantizeOptions& options, LinearKind kind, int64_t k) {
  if (options.method != QuantizeMethod::kQuaRot) return options.hadamard;
  if (kind == LinearKind::kQkv || kind == LinearKind::kGateUp) return {0};
  int64_t block = options.hadamard[0];
  while (block >= 16 && k % block != 0) block /= 2;
  return {block >= 16 ? block : 0};
}

Tensor copy_of(const Tensor& from) { return from.empty() ? Tensor() : from.clone(); }

// Gains, router and an empty list of linears.
LayerWeights shell_of(const LayerWeights& from) {
  LayerWeights to;
  to.layer = from.layer;
  to.input_norm = copy_of(from.input_norm);
  to.q_norm = copy_of(from.q_norm);
  to.k_norm = copy_of(from.k_norm);
  to.post_attention_norm = copy_of(from.post_attention_norm);
  to.mlp_norm = copy_of(from.mlp_norm);
  to.post_mlp_norm = copy_of(from.post_mlp_norm);
  to.router = copy_of(from.router);
  return to;
}

// What a linear computes with in a calibration pass. Activations that will be quantized are so in
// the pass as well: the weights then have to be rotated, and keep their full precision.
LinearWeights calibration_form(const LayerLinear& linear, const QuantizeOptions& options,
                               Exec& exec) {
  const LinearWeights& weights = linear.weights;
  LinearWeights out;
  if (!weights.bias.empty()) out.bias = weights.bias.clone();
  if (weights.quantized) {  // finished in an earlier pass of `sequential`
    const QuantizedMatrix& matrix = *weights.quantized;
    out.dense = Tensor(DType::kF32, {matrix.rows, matrix.cols});
    float* w = out.dense.as<float>();
    const bool online = weights.scheme.activations != ActivationFormat::kNone;
    exec.threads.parallel_for(matrix.rows, 16, [&](int64_t begin, int64_t end, int) {
      dequantize_rows(matrix, begin, end, w + begin * matrix.cols);
      // Without quantized activations the rotation cancels: undo it here, once.
      if (!online) {
        hadamard_rows(w + begin * matrix.cols, end - begin, matrix.cols, weights.scheme.hadamard);
      }
    });
    if (online) out.scheme = weights.scheme;
    return out;
  }
  out.dense = weights.dense.clone();
  if (options.activations == ActivationFormat::kNone) return out;
  out.scheme.activations = options.activations;
  out.scheme.hadamard = rotations_for(options, linear.slot.kind, linear.slot.k)[0];
  float* w = out.dense.as<float>();
  const int64_t k = linear.slot.k;
  exec.threads.parallel_for(linear.slot.n, 16, [&](int64_t begin, int64_t end, int) {
    hadamard_rows(w + begin * k, end - begin, k, out.scheme.hadamard);
  });
  return out;
}

CalibrationLayer pack_for_calibration(const LayerWeights& weights, const QuantizeOptions& options,
                                      LayerPass& pass, CalibrationProfile* profile, Exec& exec) {
  double num_weights = 0;
  for (const LayerLinear& linear : weights.linears) {
    num_weights += static_cast<double>(linear.slot.n) * static_cast<double>(linear.slot.k);
  }
  const CalibrationTimer timer(profile, CalibrationStage::kPack, num_weights);
  const bool as_they_are =
      options.activations == ActivationFormat::kNone &&
      std::none_of(weights.linears.begin(), weights.linears.end(),
                   [](const LayerLinear& linear) { return linear.weights.quantized.has_value(); });
  if (as_they_are) return pass.pack(weights, exec);
  LayerWeights form = shell_of(weights);
  for (const LayerLinear& linear : weights.linears) {
    form.linears.push_back({linear.slot, calibration_form(linear, options, exec)});
  }
  return pass.pack(form, exec);
}

class LayerQuantizer {
 public:
  LayerQuantizer(LayerWeights weights, const ModelConfig& config, const QuantizeOptions& options,
                 LayerPass* pass, const OnStage& on_stage, Communicator& ranks, Exec& exec,
                 CalibrationProfile* profile)
      : config_(config),
        options_(options),
        smooths_(options.smooths()),
        pass_(pass),
        on_stage_(on_stage),
        ranks_(ranks),
        exec_(exec),
        profile_(profile) {
    layer_.weights = std::move(weights);
    find_groups();
  }

  QuantizedLayer run(DType store_dtype) {
    layer_.gains_changed = smooths_ || options_.method == QuantizeMethod::kQuaRot;
    if (pass_ == nullptr) {
      LayerStatistics none;
      quantize_kinds(kAllKinds, none);
    } else if (options_.sequential) {
      for (const LinearKind kind : kAllKinds) {
        LayerStatistics statistics = collect({kind});
        quantize_kinds({&kind, 1}, statistics);
      }
    } else {
      LayerStatistics statistics = collect({std::begin(kAllKinds), std::end(kAllKinds)});
      if (smooths_) {
        stage("smoothing", 0);
#ifdef LATHE_HAS_CUDA
        bring_to_host(statistics);
#endif
        if (ranks_.rank() == 0) {
          smooth_layer(layer_.weights, statistics, config_, options_, store_dtype, exec_);
        }
        broadcast_small_tensors();
        if (options_.activations == ActivationFormat::kNvfp4) renew_input_amax(statistics);
      }
      quantize_kinds(kAllKinds, statistics);
    }
    return std::move(layer_);
  }

 private:
  // Linears that share an input, in layer_.weights.linears, and the rank that quantizes them.
  struct Group {
    std::size_t begin = 0;
    std::size_t end = 0;
    int rank = 0;
  };

  // The linears of a kind come in runs of equal expert. The most expensive group goes first, to the
  // rank with the least to do: the same everywhere, since it follows from shapes.
  void find_groups() {
    const std::vector<LayerLinear>& linears = layer_.weights.linears;
    std::vector<double> costs;
    for (std::size_t begin = 0; begin < linears.size();) {
      Group group{.begin = begin, .end = begin + 1};
      while (group.end < linears.size() &&
             linears[group.end].slot.kind == linears[begin].slot.kind &&
             linears[group.end].slot.expert == linears[begin].slot.expert) {
        ++group.end;
      }
      const auto k = static_cast<double>(linears[begin].slot.k);
      double cost = k * k * k / 3;  // the factor; then the columns of every row
      for (std::size_t i = begin; i < group.end; ++i) {
        // Compensation and two errors; scales and codes, in operations that take as long
        // (measured 2026-11-27: 5.5e7 weights and 7e10 operations a second).
        cost += static_cast<double>(linears[i].slot.n) * k * (3 * k + 2500);
      }
      costs.push_back(cost);
      groups_.push_back(group);
      begin = group.end;
    }
    // Smoothing couples the groups and rounding behind it is cheap: all on rank 0.
    if (smooths_ || ranks_.size() == 1) return;
    std::vector<std::size_t> order(groups_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });
    std::vector<double> load(static_cast<std::size_t>(ranks_.size()), 0.0);
    for (const std::size_t i : order) {
      const auto least = std::min_element(load.begin(), load.end());
      *least += costs[i];
      groups_[i].rank = static_cast<int>(least - load.begin());
    }
  }

  std::span<LayerLinear> linears_of(const Group& group) {
    return std::span(layer_.weights.linears).subspan(group.begin, group.end - group.begin);
  }

  void broadcast(Tensor& tensor) {
    if (tensor.empty()) return;
    const auto bytes = static_cast<std::size_t>(tensor.num_elements()) * sizeof(float);
    ranks_.broadcast(0, {reinterpret_cast<std::byte*>(tensor.as<float>()), bytes});
  }

  // Gains, router and biases as rank 0 has them.
  void broadcast_small_tensors() {
    LayerWeights& weights = layer_.weights;
    for (Tensor* tensor :
         {&weights.input_norm, &weights.q_norm, &weights.k_norm, &weights.post_attention_norm,
          &weights.mlp_norm, &weights.post_mlp_norm, &weights.router}) {
      broadcast(*tensor);
    }
    for (LayerLinear& linear : weights.linears) broadcast(linear.weights.bias);
  }

  void stage(const std::string& name, int64_t tokens) {
    if (on_stage_) on_stage_(name, tokens);
  }

  // Static scales are those of the inputs that the finished layer sees: divided, then rotated.
  void renew_input_amax(LayerStatistics& statistics) {
    if (!options_.measures_smoothed_inputs()) {
      for (auto& [key, input] : statistics.inputs) {
        const std::vector<float>& amax = input.calibration.amax();
        input.rotated_amax.assign(1, *std::max_element(amax.begin(), amax.end()));
      }
      return;
    }
    if (ranks_.size() > 1) {
      for (LayerLinear& linear : layer_.weights.linears) broadcast(linear.weights.dense);
    }
    LayerStatistics smoothed =
        collect({std::begin(kAllKinds), std::end(kAllKinds)}, /*gram=*/false);
    for (auto& [key, input] : statistics.inputs) {
      const LayerStatistics::Input* same = smoothed.find(key.first, key.second);
      for (std::size_t i = 0; i < amax_blocks_.size(); ++i) {
        input.rotated_amax[i] = input_amax(smoothed, key.first, same, amax_blocks_[i]);
      }
    }
  }

  LayerStatistics collect(std::vector<LinearKind> kinds, bool gram = true) {
    CollectOptions collect_options;
    collect_options.kinds = std::move(kinds);
    collect_options.gram = gram;
    collect_options.held_out_every = options_.chooses() ? kHeldOutEvery : 0;
    if (options_.activations == ActivationFormat::kNvfp4) {
      std::set<int64_t> blocks = {0};
      for (const LayerLinear& linear : layer_.weights.linears) {
        for (const int64_t block : rotations_for(options_, linear.slot.kind, linear.slot.k)) {
          blocks.insert(block);
        }
      }
      collect_options.amax_blocks.assign(blocks.begin(), blocks.end());
    }
    amax_blocks_ = collect_options.amax_blocks;
    const CalibrationLayer packed =
        pack_for_calibration(layer_.weights, options_, *pass_, profile_, exec_);
    LayerStatistics statistics = pass_->collect(
        packed, collect_options, [&](int64_t tokens) { stage("calibrating", tokens); }, exec_);
    if (ranks_.size() > 1) {
      const CalibrationTimer timer(profile_, CalibrationStage::kExchange);
      const auto rank_of = [&](LinearKind kind, int64_t expert) {
        const auto group = std::find_if(groups_.begin(), groups_.end(), [&](const Group& g) {
          const LinearSlot& slot = layer_.weights.linears[g.begin].slot;
          return slot.kind == kind && slot.expert == expert;
        });
        LATHE_CHECK(group != groups_.end());
        return group->rank;
      };
      statistics.join(ranks_, rank_of, exec_);
    }
    return statistics;
  }

  void quantize_kinds(std::span<const LinearKind> kinds, LayerStatistics& statistics) {
    std::vector<std::pair<const Group*, std::vector<LinearReport>>> done;
    for (const LinearKind kind : kinds) {
      for (const Group& group : groups_) {
        if (layer_.weights.linears[group.begin].slot.kind != kind) continue;
        done.emplace_back(&group, std::vector<LinearReport>());
        if (group.rank != ranks_.rank()) continue;
        const std::span<LayerLinear> linears = linears_of(group);
        done.back().second = with_context(
            linears[0].slot.module, [&] { return quantize_shared_input(linears, statistics); });
      }
    }
    // Behind all of them: the ranks work at the same time.
    const CalibrationTimer timer(profile_, CalibrationStage::kExchange);
    for (auto& [group, reports] : done) {
      if (ranks_.size() > 1) exchange(*group, reports);
      for (LinearReport& report : reports) layer_.reports.push_back(std::move(report));
    }
  }

  // The group's codes, schemes and reports, from the rank that made them to all.
  void exchange(const Group& group, std::vector<LinearReport>& reports) {
    std::string text = reports_to_json(reports);
    broadcast_text(ranks_, group.rank, text);
    if (group.rank != ranks_.rank()) reports = reports_from_json(text);
    for (LayerLinear& linear : linears_of(group)) {
      LinearWeights& weights = linear.weights;
      if (group.rank != ranks_.rank()) {
        weights.dense = Tensor();
        weights.quantized = make_quantized_matrix(options_.format, linear.slot.n, linear.slot.k);
      }
      QuantizedMatrix& matrix = *weights.quantized;
      for (Buffer* buffer : {&matrix.codes, &matrix.scales}) {
        ranks_.broadcast(group.rank, {buffer->data(), static_cast<std::size_t>(buffer->size())});
      }
      broadcast_value(ranks_, group.rank, matrix.global_scale);
      broadcast_value(ranks_, group.rank, matrix.log_alpha);
      broadcast_value(ranks_, group.rank, matrix.log_beta);
      broadcast_value(ranks_, group.rank, weights.scheme);
    }
  }

  std::vector<LinearReport> quantize_shared_input(std::span<LayerLinear> group,
                                                  LayerStatistics& statistics) {
    const LinearSlot& slot = group[0].slot;
    LayerStatistics::Input* input = statistics.find(slot.kind, slot.expert);
    stage(slot.module, 0);
    std::vector<LinearTask> tasks;
    for (LayerLinear& linear : group) {
      tasks.push_back({.module = linear.slot.module,
                       .weight = std::move(linear.weights.dense),
                       .quantized = {}});
      linear.weights.dense = Tensor();
    }
    QuantizeOptions options = options_;
    options.hadamard = rotations_for(options_, slot.kind, slot.k);
    const int64_t tokens = input != nullptr ? input->tokens() : 0;
    bool use_gptq = options_.uses_gptq() && tokens > 0;
    if (slot.expert >= 0 && tokens < options_.min_expert_tokens) use_gptq = false;

    std::vector<LinearReport> reports = quantize_tasks(tasks, input, options, use_gptq);
    for (std::size_t i = 0; i < group.size(); ++i) {
      LinearWeights& weights = group[i].weights;
      weights.quantized = std::move(tasks[i].quantized);
      weights.scheme = {};
      weights.scheme.activations = options_.activations;
      weights.scheme.hadamard = reports[i].hadamard;
      if (options_.activations == ActivationFormat::kNvfp4) {
        weights.scheme.input_global_scale =
            nvfp4_global_scale(input_amax(statistics, slot.kind, input, reports[i].hadamard));
      }
    }
    return reports;
  }

  std::vector<LinearReport> quantize_tasks(std::span<LinearTask> tasks,
                                           LayerStatistics::Input* input,
                                           const QuantizeOptions& options, bool use_gptq) {
    if (input == nullptr) {
      return quantize_group(tasks, nullptr, nullptr, options, use_gptq, exec_, profile_);
    }
#ifdef LATHE_HAS_CUDA
    if (input->cuda_calibration) {
      CudaInputStatistics* other = input->cuda_held_out ? &*input->cuda_held_out : nullptr;
      return cuda_quantize_group(tasks, cuda_group_input(&*input->cuda_calibration, other), options,
                                 use_gptq, exec_);
    }
#endif
    return quantize_group(tasks, &input->calibration, input->held_out ? &*input->held_out : nullptr,
                          options, use_gptq, exec_, profile_);
  }

  // Of the rotated input. An expert that no calibration token reached takes the largest of its
  // fellows.
  float input_amax(const LayerStatistics& statistics, LinearKind kind,
                   const LayerStatistics::Input* input, int64_t block) const {
    const auto place = std::find(amax_blocks_.begin(), amax_blocks_.end(), block);
    LATHE_CHECK(place != amax_blocks_.end());
    const auto idx = static_cast<std::size_t>(place - amax_blocks_.begin());
    if (input != nullptr) return input->rotated_amax[idx];
    float largest = 0;
    for (const auto& [key, other] : statistics.inputs) {
      if (key.first == kind) largest = std::max(largest, other.rotated_amax[idx]);
    }
    return largest;
  }

  const ModelConfig& config_;
  const QuantizeOptions& options_;
  const bool smooths_;
  LayerPass* pass_;
  const OnStage& on_stage_;
  Communicator& ranks_;
  Exec& exec_;
  CalibrationProfile* profile_;
  std::vector<Group> groups_;
  QuantizedLayer layer_;
  std::vector<int64_t> amax_blocks_;
};

}  // namespace

QuantizedLayer quantize_layer(LayerWeights weights, const ModelConfig& config,
                              const QuantizeOptions& options, DType store_dtype, LayerPass* pass,
                              const OnStage& on_stage, Communicator& ranks, Exec& exec,
                              CalibrationProfile* profile) {
  return LayerQuantizer(std::move(weights), config, options, pass, on_stage, ranks, exec, profile)
      .run(store_dtype);
}

CalibrationLayer pack_quantized_layer(const QuantizedLayer& layer, LayerPass& pass, Exec& exec,
                                      CalibrationProfile* profile) {
  return pack_for_calibration(layer.weights, {}, pass, profile, exec);
}

}  // namespace lathe
