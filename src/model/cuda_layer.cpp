#include "model/cuda_layer.h"

#include "base/check.h"
#include "base/error.h"
#include "kernels/moe/moe_cuda.h"
#include "model/rope_rows.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

int64_t element_size(CudaElement element) {
  return element == CudaElement::kF32 ? 4 : element == CudaElement::kBF16 ? 2 : 1;
}

DeviceBuffer upload(const Tensor& tensor) {
  if (tensor.empty()) return {};
  return DeviceBuffer::from_host(tensor.data(), tensor.num_bytes());
}

const float* gain_of(const DeviceBuffer& buffer) {
  return buffer.size() > 0 ? buffer.as<float>() : nullptr;
}

// One forward_cuda_layer() call.
class LayerForward {
 public:
  LayerForward(const CudaDecoderLayer& layer, const CudaLayerStep& step, float* hidden,
               CudaContext& context)
      : layer_(layer),
        step_(step),
        config_(step.config),
        num_rows_(step.batch.num_rows),
        hidden_(hidden),
        context_(context),
        stream_(context.stream()) {}

  void attention_branch(PendingBranch pending, void* out);
  void attend(const void* qkv, int64_t stride, const KeyOffsetCuda& offset, void* attended);
  void mlp_branch(PendingBranch pending, void* out);
  // branch = its sum over the ranks, where the layer is one rank's part.
  void add_up(void* branch) {
    if (step_.collective == nullptr) return;
    const DType dtype = layer_.element == CudaElement::kF32 ? DType::kF32 : DType::kBF16;
    step_.collective->all_reduce_sum(branch, num_rows_ * config_.hidden_size, dtype, stream_);
  }

 private:
  // Writes the layer's input, prepared as the target says.
  template <typename Prepare>
  void linear(const CudaStackedLinear& weight, LinearKind kind, int64_t expert, int64_t rows,
              void* y, CudaElement y_element, const Prepare& prepare);
  template <typename Prepare>
  void prepare_and_run(const CudaStackedLinear& weight, int64_t rows, void* y,
                       CudaElement y_element, const Prepare& prepare);
  void norm(PendingBranch pending, const DeviceBuffer& gain, const QuantizedTarget& target);
  void gated_mlp(const CudaGatedMlp& mlp, int64_t expert, const void* gate_up, int64_t rows,
                 void* y);
  void expert_branch(PendingBranch pending, void* out);

  // Of a cache that has keys without the layer's offset; its products in the workspace.
  KeyOffsetCuda key_offset();

  DeviceWorkspace& workspace() { return context_.workspace(); }
  void* allocate(int64_t count, CudaElement element) {
    return workspace().allocate(count * element_size(element));
  }

  const CudaDecoderLayer& layer_;
  const CudaLayerStep& step_;
  const ModelConfig& config_;
  const int64_t num_rows_;
  float* hidden_;
  CudaContext& context_;
  CudaStream stream_;
};

void LayerForward::norm(PendingBranch pending, const DeviceBuffer& gain,
                        const QuantizedTarget& target) {
  add_norm_quantize_cuda({.hidden = hidden_,
                          .m = num_rows_,
                          .k = config_.hidden_size,
                          .branch = pending.data,
                          .branch_element = pending.element,
                          .branch_gain = pending.gain,
                          .gain = gain_of(gain),
                          .eps = static_cast<float>(config_.rms_norm_eps),
                          .target = target},
                         stream_);
}

// Each weight of the stack on x as it wants it. prepare(target) is called once where they agree;
// otherwise once for all as plain numbers, from which every weight's own input is made.
template <typename Prepare>
void LayerForward::prepare_and_run(const CudaStackedLinear& weight, int64_t rows, void* y,
                                   CudaElement y_element, const Prepare& prepare) {
  const DeviceWorkspace::Scope scope(workspace());
  const auto target_for = [&](const CudaInputClass& input) {
    return QuantizedTarget{.format = input.format,
                           .hadamard = input.hadamard,
                           .element = input.element,
                           .data = allocate(rows * weight.k(), input.element),
                           .row_scales = workspace().allocate_as<float>(rows),
                           .global_scale = input.global_scale};
  };
  const CudaInputClass first = weight.weights().front()->input_class(rows);
  bool is_shared = true;
  for (const auto& part : weight.weights()) {
    is_shared = is_shared && part->input_class(rows) == first;
  }
  QuantizedTarget shared;
  if (is_shared) {
    shared = target_for(first);
    prepare(shared);
  } else {
    shared = {.element = layer_.element, .data = allocate(rows * weight.k(), layer_.element)};
    prepare(shared);
  }
  int64_t column = 0;
  for (const auto& part : weight.weights()) {
    const DeviceWorkspace::Scope part_scope(workspace());
    QuantizedTarget target = shared;
    if (!is_shared) {
      target = target_for(part->input_class(rows));
      quantize_cuda({.x = shared.data,
                     .element = shared.element,
                     .m = rows,
                     .k = weight.k(),
                     .target = target},
                    stream_);
    }
    part->run({.element = target.element,
               .data = target.data,
               .row_scales = target.row_scales,
               .m = rows,
               .k = weight.k()},
              {.element = y_element,
               .data = static_cast<std::byte*>(y) + column * element_size(y_element),
               .stride = weight.n()});
    column += part->n();
  }
}

// With a tap, the input is made as fp32 numbers first, and quantized from those.
template <typename Prepare>
void LayerForward::linear(const CudaStackedLinear& weight, LinearKind kind, int64_t expert,
                          int64_t rows, void* y, CudaElement y_element, const Prepare& prepare) {
  if (step_.tap == nullptr) {
    prepare_and_run(weight, rows, y, y_element, prepare);
    return;
  }
  const DeviceWorkspace::Scope scope(workspace());
  const QuantizedTarget plain = {.element = CudaElement::kF32,
                                 .data = allocate(rows * weight.k(), CudaElement::kF32)};
  prepare(plain);
  const auto* x = static_cast<const float*>(plain.data);
  step_.tap->on_linear_input(kind, expert, x, rows, weight.k(), stream_);
  prepare_and_run(weight, rows, y, y_element, [&](const QuantizedTarget& target) {
    quantize_cuda(
        {.x = x, .element = CudaElement::kF32, .m = rows, .k = weight.k(), .target = target},
        stream_);
  });
}

KeyOffsetCuda LayerForward::key_offset() {
  if (layer_.key_offset.size() == 0 || step_.rotation_blocks == nullptr ||
      !kv_cuda_drops_key_offset(step_.cache.element)) {
    return {};
  }
  return {.offset = layer_.key_offset.as<float>(),
          .block_starts = step_.rotation_blocks->starts.as<float>(),
          .in_block = step_.rotation_blocks->in_block.as<float>(),
          .rotary_dim = config_.rotary_dim,
          .products = step_.batch.only_long_runs
                          ? nullptr
                          : workspace().allocate_as<float>(num_rows_ * config_.q_size())};
}

void LayerForward::attention_branch(PendingBranch pending, void* out) {
  const DeviceWorkspace::Scope scope(workspace());
  const CudaElement element = layer_.element;
  const int64_t stride = layer_.qkv.n();
  void* qkv = allocate(num_rows_ * stride, element);
  linear(layer_.qkv, LinearKind::kQkv, -1, num_rows_, qkv, element,
         [&](const QuantizedTarget& target) { norm(pending, layer_.input_norm, target); });
  if (step_.tap != nullptr) step_.tap->on_projections(qkv, element, stride, num_rows_, stream_);

  const KeyOffsetCuda offset = key_offset();
  rope_append_cuda({.qkv = qkv,
                    .element = element,
                    .stride = stride,
                    .q_norm = gain_of(layer_.q_norm),
                    .k_norm = gain_of(layer_.k_norm),
                    .eps = static_cast<float>(config_.rms_norm_eps),
                    .cos = step_.rope.cos,
                    .sin = step_.rope.sin,
                    .num_heads = config_.num_heads,
                    .num_kv_heads = config_.num_kv_heads,
                    .head_dim = config_.head_dim,
                    .rotary_dim = config_.rotary_dim,
                    .key_offset = offset.offset,
                    .offset_products = offset.products},
                   step_.batch, step_.cache, stream_);
  void* attended = allocate(num_rows_ * config_.q_size(), element);
  attend(qkv, stride, offset, attended);
  // Often it takes what attention wrote as it stands.
  const CudaLinear& first = *layer_.o.weights().front();
  if (step_.tap == nullptr && layer_.o.weights().size() == 1 &&
      first.input_class(num_rows_) == CudaInputClass{.element = element}) {
    first.run({.element = element, .data = attended, .m = num_rows_, .k = config_.q_size()},
              {.element = element, .data = out, .stride = layer_.o.n()});
    return;
  }
  linear(layer_.o, LinearKind::kO, -1, num_rows_, out, element, [&](const QuantizedTarget& target) {
    quantize_cuda({.x = attended,
                   .element = element,
                   .m = num_rows_,
                   .k = config_.q_size(),
                   .target = target},
                  stream_);
  });
}

void LayerForward::attend(const void* qkv, int64_t stride, const KeyOffsetCuda& offset,
                          void* attended) {
  const auto scale = static_cast<float>(config_.attention_scale);
  if (step_.codes != nullptr) {
    LatentAttentionCudaArgs args = {.q = qkv,
                                    .q_stride = stride,
                                    .out = attended,
                                    .num_heads = config_.num_heads,
                                    .num_kv_heads = config_.num_kv_heads,
                                    .head_dim = config_.head_dim,
                                    .scale = scale};
    const DeviceWorkspace::Scope scope(workspace());
    args.workspace = workspace().allocate_as<float>(
        latent_attention_workspace_floats(args, step_.batch, *step_.codes));
    latent_attention_cuda(args, step_.batch, *step_.codes, stream_);
    return;
  }
  attention_cuda({.q = qkv,
                  .element = layer_.element,
                  .q_stride = stride,
                  .out = attended,
                  .num_heads = config_.num_heads,
                  .num_kv_heads = config_.num_kv_heads,
                  .head_dim = config_.head_dim,
                  .scale = scale,
                  .softcap = static_cast<float>(config_.attention_softcap),
                  .sliding_window = layer_.is_sliding ? config_.sliding_window : 0,
                  .key_offset = offset,
                  .follows_rope_append = true,
                  .workspace = step_.attention_workspace},
                 step_.batch, step_.cache, stream_);
}

void LayerForward::mlp_branch(PendingBranch pending, void* out) {
  if (layer_.is_moe()) {
    expert_branch(pending, out);
    return;
  }
  const DeviceWorkspace::Scope scope(workspace());
  const CudaGatedMlp& mlp = layer_.mlps.front();
  void* gate_up = allocate(num_rows_ * mlp.gate_up.n(), layer_.element);
  linear(mlp.gate_up, LinearKind::kGateUp, -1, num_rows_, gate_up, layer_.element,
         [&](const QuantizedTarget& target) { norm(pending, layer_.mlp_norm, target); });
  gated_mlp(mlp, -1, gate_up, num_rows_, out);
}

void LayerForward::gated_mlp(const CudaGatedMlp& mlp, int64_t expert, const void* gate_up,
                             int64_t rows, void* y) {
  linear(mlp.down, LinearKind::kDown, expert, rows, y, layer_.element,
         [&](const QuantizedTarget& target) {
           gated_quantize_cuda(
               {.gate_up = gate_up,
                .element = layer_.element,
                .m = rows,
                .size = mlp.down.k(),
                .function = config_.hidden_act == Activation::kSilu ? GateFunction::kSilu
                                                                    : GateFunction::kGeluTanh,
                .target = target},
               stream_);
         });
}

// The host waits for the router's choice, to launch each expert on its own rows.
void LayerForward::expert_branch(PendingBranch pending, void* out) {
  const DeviceWorkspace::Scope scope(workspace());
  const int64_t hidden_size = config_.hidden_size;
  const int64_t num_experts = config_.num_experts;
  const int64_t per_token = config_.num_experts_per_token;
  const int64_t num_entries = num_rows_ * per_token;
  // The router sees the fp32 numbers, as on the CPU.
  auto* normed = workspace().allocate_as<float>(num_rows_ * hidden_size);
  norm(pending, layer_.mlp_norm, {.element = CudaElement::kF32, .data = normed});
  auto* scores = workspace().allocate_as<float>(num_rows_ * num_experts);
  layer_.router.weights().front()->run(
      {.element = CudaElement::kF32, .data = normed, .m = num_rows_, .k = hidden_size},
      {.element = CudaElement::kF32, .data = scores, .stride = num_experts});
  const ExpertRowsCuda chosen = {.offsets = workspace().allocate_as<int32_t>(num_experts + 1),
                                 .rows = workspace().allocate_as<int32_t>(num_entries),
                                 .weights = workspace().allocate_as<float>(num_entries),
                                 .entries = workspace().allocate_as<int32_t>(num_entries)};
  choose_experts_cuda({.scores = scores,
                       .num_rows = num_rows_,
                       .num_experts = num_experts,
                       .experts_per_token = per_token,
                       .normalize = config_.norm_topk_prob,
                       .chosen = workspace().allocate_as<int32_t>(num_entries),
                       .chosen_weights = workspace().allocate_as<float>(num_entries),
                       .out = chosen},
                      stream_);
  std::vector<int32_t> offsets(static_cast<std::size_t>(num_experts + 1));
  cuda_check(cudaMemcpyAsync(offsets.data(), chosen.offsets, offsets.size() * sizeof(int32_t),
                             cudaMemcpyDeviceToHost, stream_),
             "reading the router's choice");
  context_.synchronize();

  auto* gathered = workspace().allocate_as<float>(num_entries * hidden_size);
  gather_rows_cuda({.from = normed,
                    .to = gathered,
                    .row_bytes = hidden_size * static_cast<int64_t>(sizeof(float)),
                    .rows = chosen.rows,
                    .count = num_entries},
                   stream_);
  auto* results = static_cast<std::byte*>(allocate(num_entries * hidden_size, layer_.element));
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const int64_t begin = offsets[static_cast<std::size_t>(expert)];
    const int64_t rows = offsets[static_cast<std::size_t>(expert + 1)] - begin;
    if (rows == 0) continue;
    const DeviceWorkspace::Scope expert_scope(workspace());
    const CudaGatedMlp& mlp = layer_.mlps[static_cast<std::size_t>(expert)];
    void* gate_up = allocate(rows * mlp.gate_up.n(), layer_.element);
    linear(mlp.gate_up, LinearKind::kGateUp, expert, rows, gate_up, layer_.element,
           [&](const QuantizedTarget& target) {
             quantize_cuda({.x = gathered + begin * hidden_size,
                            .element = CudaElement::kF32,
                            .m = rows,
                            .k = hidden_size,
                            .target = target},
                           stream_);
           });
    gated_mlp(mlp, expert, gate_up, rows,
              results + begin * hidden_size * element_size(layer_.element));
  }
  combine_experts_cuda({.results = results,
                        .element = layer_.element,
                        .weights = chosen.weights,
                        .entries = chosen.entries,
                        .num_rows = num_rows_,
                        .experts_per_token = per_token,
                        .hidden_size = hidden_size,
                        .y = out},
                       stream_);
}

}  // namespace

CudaStackedLinear::CudaStackedLinear(std::span<const LinearStack> stacks, ComputeType compute,
                                     CudaContext& context) {
  for (const LinearStack& stack : stacks) {
    weights_.push_back(make_cuda_linear(stack.parts, stack.scheme, compute, context));
    n_ += weights_.back()->n();
  }
  k_ = weights_.front()->k();
}

int64_t CudaStackedLinear::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& weight : weights_) bytes += weight->weight_bytes();
  return bytes;
}

std::string CudaStackedLinear::kernels() const {
  std::string names;
  for (const auto& weight : weights_) {
    if (!names.empty()) names += " + ";
    names += weight->kernels();
  }
  return names;
}

int64_t CudaDecoderLayer::weight_bytes(const ModelConfig& config) const {
  const int64_t active = is_moe() ? config.num_experts_per_token : 1;
  const CudaGatedMlp& mlp = mlps.front();
  return qkv.weight_bytes() + o.weight_bytes() + router.weight_bytes() +
         active * (mlp.gate_up.weight_bytes() + mlp.down.weight_bytes());
}

CudaDecoderLayer make_cuda_layer(const ModelConfig& config, const LayerWeights& weights,
                                 ComputeType compute, CudaContext& context) {
  const auto stacked = [&](LinearKind kind, int64_t expert, int64_t n, int64_t k) {
    return CudaStackedLinear(layer_stacks(weights, kind, expert, n, k), compute, context);
  };
  const auto mlp = [&](int64_t expert, int64_t size) {
    return CudaGatedMlp{stacked(LinearKind::kGateUp, expert, 2 * size, config.hidden_size),
                        stacked(LinearKind::kDown, expert, config.hidden_size, size)};
  };
  CudaDecoderLayer layer;
  layer.index = weights.layer;
  layer.is_sliding = config.layer_is_sliding[static_cast<std::size_t>(weights.layer)];
  layer.element = compute == ComputeType::kF32 ? CudaElement::kF32 : CudaElement::kBF16;
  layer.qkv =
      stacked(LinearKind::kQkv, -1, config.q_size() + 2 * config.kv_size(), config.hidden_size);
  layer.o = stacked(LinearKind::kO, -1, config.hidden_size, config.q_size());
  if (weights.router.empty()) {
    layer.mlps.push_back(mlp(-1, config.intermediate_size));
  } else {
    for (int64_t expert = 0; expert < config.num_experts; ++expert) {
      layer.mlps.push_back(mlp(expert, config.moe_intermediate_size));
    }
    LinearWeights router;
    router.dense = weights.router.clone();
    const LinearWeights* part = &router;
    layer.router = CudaStackedLinear(stack_linears({&part, 1}), ComputeType::kF32, context);
  }
  layer.input_norm = upload(weights.input_norm);
  layer.q_norm = upload(weights.q_norm);
  layer.k_norm = upload(weights.k_norm);
  layer.post_attention_norm = upload(weights.post_attention_norm);
  layer.mlp_norm = upload(weights.mlp_norm);
  layer.post_mlp_norm = upload(weights.post_mlp_norm);
  layer.key_offset = upload(key_bias(weights));
  return layer;
}

CudaRope::CudaRope(const RopeFrequencies& frequencies)
    : half_(static_cast<int64_t>(frequencies.inverse.size())),
      inverse_(DeviceBuffer::from_host(frequencies.inverse.data(),
                                       half_ * static_cast<int64_t>(sizeof(float)))),
      attention_factor_(static_cast<float>(frequencies.attention_factor)) {}

CudaRopeRows CudaRope::rows(const CudaBatch& batch, CudaContext& context) const {
  auto* cos = context.workspace().allocate_as<float>(batch.num_rows * half_);
  auto* sin = context.workspace().allocate_as<float>(batch.num_rows * half_);
  rope_tables_cuda(inverse_.as<float>(), attention_factor_, half_, batch.positions, batch.num_rows,
                   cos, sin, context.stream());
  return {cos, sin};
}

CudaRotationBlocks::CudaRotationBlocks(const RopeFrequencies& frequencies, int64_t head_dim,
                                       int64_t num_positions) {
  const RotationBlocks blocks(frequencies, head_dim, num_positions);
  starts = DeviceBuffer::from_host(blocks.starts.data(), blocks.starts.size());
  in_block = DeviceBuffer::from_host(blocks.in_block.data(), blocks.in_block.size());
}

bool reserve_attention_workspace(DeviceBuffer& workspace, const CudaDecoderLayer& layer,
                                 const ModelConfig& config, const CudaBatch& batch,
                                 KvCudaElement cache, CudaContext& context) {
  const AttentionCudaArgs attention = {.element = layer.element,
                                       .q_stride = layer.qkv.n(),
                                       .num_heads = config.num_heads,
                                       .num_kv_heads = config.num_kv_heads,
                                       .head_dim = config.head_dim};
  const int64_t bytes = attention_cuda_workspace_bytes(attention, batch, cache);
  if (bytes <= workspace.size()) return false;
  context.synchronize();
  workspace.reserve(bytes + bytes / 8);
  cuda_check(cudaMemsetAsync(workspace.data(), 0, static_cast<std::size_t>(workspace.size()),
                             context.stream()),
             "clearing memory");
  return true;
}

PendingBranch forward_cuda_layer(const CudaDecoderLayer& layer, const CudaLayerStep& step,
                                 float* hidden, PendingBranch pending, void* branch_buffer,
                                 CudaContext& context) {
  LayerForward forward(layer, step, hidden, context);
  // The branch buffer is free again once the norm in front of the next linear layer has read it.
  forward.attention_branch(pending, branch_buffer);
  forward.add_up(branch_buffer);
  const PendingBranch attended = {branch_buffer, layer.element, gain_of(layer.post_attention_norm)};
  forward.mlp_branch(attended, branch_buffer);
  forward.add_up(branch_buffer);
  return {branch_buffer, layer.element, gain_of(layer.post_mlp_norm)};
}

void add_pending(PendingBranch pending, const ModelConfig& config, float* hidden, int64_t num_rows,
                 CudaContext& context) {
  if (pending.data == nullptr) return;
  add_norm_quantize_cuda({.hidden = hidden,
                          .m = num_rows,
                          .k = config.hidden_size,
                          .branch = pending.data,
                          .branch_element = pending.element,
                          .branch_gain = pending.gain,
                          .eps = static_cast<float>(config.rms_norm_eps)},
                         context.stream());
}

}  // namespace lathe
