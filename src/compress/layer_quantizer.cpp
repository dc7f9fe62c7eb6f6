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
                                      LayerPass& pass, Exec& exec) {
  LayerWeights form = shell_of(weights);
  for (const LayerLinear& linear : weights.linears) {
    form.linears.push_back({linear.slot, calibration_form(linear, options, exec)});
  }
  return pass.pack(form, exec);
}

class LayerQuantizer {
 public:
  LayerQuantizer(LayerWeights weights, const ModelConfig& config, const QuantizeOptions& options,
                 LayerPass* pass, const OnStage& on_stage, Exec& exec)
      : config_(config), options_(options), pass_(pass), on_stage_(on_stage), exec_(exec) {
    layer_.weights = std::move(weights);
  }

  QuantizedLayer run(DType store_dtype) {
    const bool smooths =
        options_.method == QuantizeMethod::kSmoothQuant || options_.method == QuantizeMethod::kAwq;
    layer_.gains_changed = smooths || options_.method == QuantizeMethod::kQuaRot;
    if (pass_ == nullptr) {
      LayerStatistics none;
      for (const LinearKind kind : kAllKinds) quantize_kind(kind, none);
    } else if (options_.sequential) {
      for (const LinearKind kind : kAllKinds) {
        LayerStatistics statistics = collect({kind});
        quantize_kind(kind, statistics);
      }
    } else {
      LayerStatistics statistics = collect({std::begin(kAllKinds), std::end(kAllKinds)});
      if (smooths) {
        stage("smoothing", 0);
#ifdef LATHE_HAS_CUDA
        bring_to_host(statistics);
#endif
        smooth_layer(layer_.weights, statistics, config_, options_, store_dtype, exec_);
      }
      for (const LinearKind kind : kAllKinds) quantize_kind(kind, statistics);
    }
    return std::move(layer_);
  }

 private:
  void stage(const std::string& name, int64_t tokens) {
    if (on_stage_) on_stage_(name, tokens);
  }

  LayerStatistics collect(std::vector<LinearKind> kinds) {
    CollectOptions collect_options;
    collect_options.kinds = std::move(kinds);
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
    const CalibrationLayer packed = pack_for_calibration(layer_.weights, options_, *pass_, exec_);
    return pass_->collect(
        packed, collect_options, [&](int64_t tokens) { stage("calibrating", tokens); }, exec_);
  }

  void quantize_kind(LinearKind kind, LayerStatistics& statistics) {
    // The linears of a kind come in runs of equal expert.
    std::vector<LayerLinear>& linears = layer_.weights.linears;
    for (std::size_t begin = 0; begin < linears.size();) {
      std::size_t end = begin + 1;
      while (end < linears.size() && linears[end].slot.kind == linears[begin].slot.kind &&
             linears[end].slot.expert == linears[begin].slot.expert) {
        ++end;
      }
      if (linears[begin].slot.kind == kind) {
        const std::span<LayerLinear> group(linears.data() + begin, end - begin);
        with_context(group[0].slot.module, [&] { quantize_shared_input(group, statistics); });
      }
      begin = end;
    }
  }

  void quantize_shared_input(std::span<LayerLinear> group, LayerStatistics& statistics) {
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
      layer_.reports.push_back(std::move(reports[i]));
    }
  }

  std::vector<LinearReport> quantize_tasks(std::span<LinearTask> tasks,
                                           LayerStatistics::Input* input,
                                           const QuantizeOptions& options, bool use_gptq) {
    if (input == nullptr) return quantize_group(tasks, nullptr, nullptr, options, use_gptq, exec_);
#ifdef LATHE_HAS_CUDA
    if (input->cuda_calibration) {
      CudaInputStatistics* other = input->cuda_held_out ? &*input->cuda_held_out : nullptr;
      return cuda_quantize_group(tasks, cuda_group_input(&*input->cuda_calibration, other), options,
                                 use_gptq, exec_);
    }
#endif
    return quantize_group(tasks, &input->calibration, input->held_out ? &*input->held_out : nullptr,
                          options, use_gptq, exec_);
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
  LayerPass* pass_;
  const OnStage& on_stage_;
  Exec& exec_;
  QuantizedLayer layer_;
  std::vector<int64_t> amax_blocks_;
};

}  // namespace

QuantizedLayer quantize_layer(LayerWeights weights, const ModelConfig& config,
                              const QuantizeOptions& options, DType store_dtype, LayerPass* pass,
                              const OnStage& on_stage, Exec& exec) {
  return LayerQuantizer(std::move(weights), config, options, pass, on_stage, exec).run(store_dtype);
}

CalibrationLayer pack_quantized_layer(const QuantizedLayer& layer, LayerPass& pass, Exec& exec) {
  return pack_for_calibration(layer.weights, {}, pass, exec);
}

}  // namespace lathe
