#include "model/decoder_layer.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/activation/gated_activation.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "model/moe.h"

namespace lathe {
namespace {

StackedLinear pack_kind(const LayerWeights& weights, LinearKind kind, int64_t expert, int64_t n,
                        int64_t k, ComputeType compute, Exec& exec) {
  return StackedLinear(layer_stacks(weights, kind, expert, n, k), compute, exec);
}

GatedMlp pack_mlp(const ModelConfig& config, const LayerWeights& weights, int64_t expert,
                  int64_t size, ComputeType compute, Exec& exec) {
  const int64_t hidden_size = config.hidden_size;
  return {pack_kind(weights, LinearKind::kGateUp, expert, 2 * size, hidden_size, compute, exec),
          pack_kind(weights, LinearKind::kDown, expert, hidden_size, size, compute, exec)};
}

// One forward_layer() call: the pieces that its stages share.
class LayerForward {
 public:
  LayerForward(const DecoderLayer& layer, const LayerStep& step, int64_t num_rows, Exec& exec)
      : layer_(layer), step_(step), config_(step.config), num_rows_(num_rows), exec_(exec) {}

  // y = norm(x), rows of hidden_size.
  void norm(const float* x, const Tensor& gain, float* y) {
    const StageTimer timer(step_.profile, Stage::kNorm);
    rms_norm({.x = x,
              .weight = gain.as<float>(),
              .y = y,
              .num_tokens = num_rows_,
              .norm_size = config_.hidden_size,
              .eps = static_cast<float>(config_.rms_norm_eps)},
             exec_);
  }

  // hidden += branch, behind the branch's own norm where the architecture has one.
  void add_branch(float* branch, const Tensor& gain, float* hidden) {
    if (!gain.empty()) norm(branch, gain, branch);
    const StageTimer timer(step_.profile, Stage::kNorm);
    constexpr int64_t kGrain = 16384;  // elements; below that a thread is not worth waking
    exec_.threads.parallel_for(num_rows_ * config_.hidden_size, kGrain,
                               [&](int64_t begin, int64_t end, int) {
                                 for (int64_t i = begin; i < end; ++i) hidden[i] += branch[i];
                               });
  }

  // branch = its sum over the ranks, where the layer is one rank's part.
  void add_up(float* branch) {
    if (step_.collective == nullptr) return;
    const StageTimer timer(step_.profile, Stage::kAllReduce);
    step_.collective->all_reduce_sum(branch, num_rows_ * config_.hidden_size, DType::kF32, nullptr);
  }

  void attention_branch(const float* x, float* y);
  void mlp_branch(const float* x, float* y);
  void expert_branch(const float* x, float* y);

 private:
  // Rows of the projections: [q | k before RoPE | v | k after RoPE].
  struct Projections {
    float* rows;
    int64_t stride;
    float* q;
    float* k_raw;
    float* v;
    float* k;
  };

  void linear(LinearKind kind, int64_t expert, const StackedLinear& weight, const float* x,
              int64_t rows, float* y, int64_t y_stride) {
    if (step_.tap != nullptr) step_.tap->on_linear_input(kind, expert, x, rows, weight.k());
    constexpr Stage kStages[] = {Stage::kQkv, Stage::kO, Stage::kGateUp, Stage::kDown};
    const StageTimer timer(step_.profile, kStages[static_cast<std::size_t>(kind)]);
    weight.run(x, rows, y, y_stride, exec_);
  }
  Projections project_qkv(const float* x);
  void norm_and_rotate(const Projections& p);
  // The cache has keys without the layer's offset.
  bool drops_key_offset() const {
    return !layer_.key_offset.empty() && step_.rotation_middles != nullptr &&
           kv_drops_key_offset(step_.cache.element());
  }
  void drop_key_offset(const Projections& p);
  KeyOffset key_offset() const;
  void norm_heads(float* x, int64_t num_heads, int64_t stride, const Tensor& gain);
  void rotate(const float* x, float* y, int64_t num_heads, int64_t stride);
  void attend(const Projections& p, float* out);
  void gated_mlp(const GatedMlp& mlp, int64_t expert, const float* x, int64_t rows, float* y);

  const DecoderLayer& layer_;
  const LayerStep& step_;
  const ModelConfig& config_;
  const int64_t num_rows_;
  Exec& exec_;
};

void LayerForward::attention_branch(const float* x, float* y) {
  const Workspace::Scope scope(exec_.workspace);
  const Projections p = project_qkv(x);
  norm_and_rotate(p);
  float* attended = exec_.workspace.allocate_as<float>(num_rows_ * config_.q_size());
  attend(p, attended);
  linear(LinearKind::kO, -1, layer_.o, attended, num_rows_, y, config_.hidden_size);
}

LayerForward::Projections LayerForward::project_qkv(const float* x) {
  const int64_t stride = config_.q_size() + 3 * config_.kv_size();
  float* rows = exec_.workspace.allocate_as<float>(num_rows_ * stride);
  linear(LinearKind::kQkv, -1, layer_.qkv, x, num_rows_, rows, stride);
  float* k_raw = rows + config_.q_size();
  float* v = k_raw + config_.kv_size();
  return {.rows = rows,
          .stride = stride,
          .q = rows,
          .k_raw = k_raw,
          .v = v,
          .k = v + config_.kv_size()};
}

void LayerForward::norm_and_rotate(const Projections& p) {
  const StageTimer timer(step_.profile, Stage::kRope);
  if (!layer_.q_norm.empty()) norm_heads(p.q, config_.num_heads, p.stride, layer_.q_norm);
  if (!layer_.k_norm.empty()) norm_heads(p.k_raw, config_.num_kv_heads, p.stride, layer_.k_norm);
  if (drops_key_offset()) drop_key_offset(p);
  rotate(p.q, p.q, config_.num_heads, p.stride);
  rotate(p.k_raw, p.k, config_.num_kv_heads, p.stride);
}

void LayerForward::drop_key_offset(const Projections& p) {
  const float* offset = layer_.key_offset.as<float>();
  exec_.threads.parallel_for(num_rows_, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      float* key = p.k_raw + row * p.stride;
      for (int64_t j = 0; j < config_.kv_size(); ++j) key[j] -= offset[j];
    }
  });
}

KeyOffset LayerForward::key_offset() const {
  if (!drops_key_offset()) return {};
  return {.offset = layer_.key_offset.as<float>(),
          .middles = step_.rotation_middles->middles.as<float>(),
          .from_middle = step_.rotation_middles->from_middle.as<float>(),
          .num_blocks = step_.rotation_middles->num_blocks,
          .rotary_dim = config_.rotary_dim};
}

void LayerForward::norm_heads(float* x, int64_t num_heads, int64_t stride, const Tensor& gain) {
  rms_norm({.x = x,
            .weight = gain.as<float>(),
            .y = x,
            .num_tokens = num_rows_,
            .num_heads = num_heads,
            .norm_size = config_.head_dim,
            .x_stride = stride,
            .y_stride = stride,
            .eps = static_cast<float>(config_.rms_norm_eps)},
           exec_);
}

void LayerForward::rotate(const float* x, float* y, int64_t num_heads, int64_t stride) {
  rope({.x = x,
        .y = y,
        .positions = step_.rope.row_idx,
        .cos = step_.rope.cos,
        .sin = step_.rope.sin,
        .num_positions = step_.rope.num_rows,
        .num_rows = num_rows_,
        .num_heads = num_heads,
        .head_dim = config_.head_dim,
        .rotary_dim = config_.rotary_dim,
        .x_stride = stride,
        .y_stride = stride},
       exec_);
}

void LayerForward::attend(const Projections& p, float* out) {
  const StageTimer timer(step_.profile, Stage::kAttention);
  if (step_.tap != nullptr) step_.tap->on_keys_values(p.k_raw, p.v, p.stride, num_rows_);
  step_.cache.append(step_.cache_layer, p.k_raw, p.k, p.v, p.stride, exec_);
  const auto num_segments = static_cast<int64_t>(step_.sequences.size());
  auto* segments = exec_.workspace.allocate_as<AttentionSegment>(num_segments);
  for (int64_t i = 0; i < num_segments; ++i) {
    const KvRows& rows = step_.sequences[static_cast<std::size_t>(i)];
    segments[i] = {.row_begin = rows.row_begin,
                   .num_rows = rows.num_rows,
                   .first_position = rows.sequence->num_tokens,
                   .blocks = step_.cache.views(step_.cache_layer, i).data(),
                   .sinks = step_.cache.sinks(step_.cache_layer, i)};
  }
  attention({.q = p.q,
             .q_stride = p.stride,
             .out = out,
             .segments = {segments, step_.sequences.size()},
             .element = step_.cache.element(),
             .num_heads = config_.num_heads,
             .num_kv_heads = config_.num_kv_heads,
             .head_dim = config_.head_dim,
             .scale = static_cast<float>(config_.attention_scale),
             .softcap = static_cast<float>(config_.attention_softcap),
             .sliding_window = layer_.is_sliding ? config_.sliding_window : 0,
             .key_offset = key_offset()},
            exec_);
}

void LayerForward::mlp_branch(const float* x, float* y) {
  gated_mlp(layer_.mlps[0], -1, x, num_rows_, y);
}

void LayerForward::gated_mlp(const GatedMlp& mlp, int64_t expert, const float* x, int64_t rows,
                             float* y) {
  const Workspace::Scope scope(exec_.workspace);
  const int64_t size = mlp.down.k();
  float* gate_up = exec_.workspace.allocate_as<float>(rows * 2 * size);
  float* activated = exec_.workspace.allocate_as<float>(rows * size);
  linear(LinearKind::kGateUp, expert, mlp.gate_up, x, rows, gate_up, 2 * size);
  {
    const StageTimer timer(step_.profile, Stage::kActivation);
    gated_activation(
        {.gate = gate_up,
         .up = gate_up + size,
         .y = activated,
         .num_rows = rows,
         .size = size,
         .gate_stride = 2 * size,
         .up_stride = 2 * size,
         .function = config_.hidden_act == Activation::kSilu ? GateFunction::kSilu
                                                             : GateFunction::kGeluTanh},
        exec_);
  }
  linear(LinearKind::kDown, expert, mlp.down, activated, rows, y, config_.hidden_size);
}

// Each expert runs once over all of its rows. A row's sum adds its experts in order of index, so it
// does not depend on the other rows.
void LayerForward::expert_branch(const float* x, float* y) {
  const Workspace::Scope scope(exec_.workspace);
  const int64_t hidden_size = config_.hidden_size;
  ExpertRows chosen;
  {
    const StageTimer timer(step_.profile, Stage::kRouter);
    float* scores = exec_.workspace.allocate_as<float>(num_rows_ * config_.num_experts);
    layer_.router.run(x, num_rows_, scores, config_.num_experts, exec_);
    chosen = choose_experts(config_, scores, num_rows_, exec_);
    std::fill(y, y + num_rows_ * hidden_size, 0.0f);
  }
  for (int64_t expert = 0; expert < config_.num_experts; ++expert) {
    const int64_t begin = chosen.offsets[expert];
    const int64_t rows = chosen.offsets[expert + 1] - begin;
    if (rows == 0) continue;
    const Workspace::Scope expert_scope(exec_.workspace);
    float* gathered = exec_.workspace.allocate_as<float>(rows * hidden_size);
    float* result = exec_.workspace.allocate_as<float>(rows * hidden_size);
    for (int64_t i = 0; i < rows; ++i) {
      const float* row = x + chosen.rows[begin + i] * hidden_size;
      std::copy(row, row + hidden_size, gathered + i * hidden_size);
    }
    gated_mlp(layer_.mlps[static_cast<std::size_t>(expert)], expert, gathered, rows, result);
    const StageTimer timer(step_.profile, Stage::kRouter);
    for (int64_t i = 0; i < rows; ++i) {
      float* sum = y + chosen.rows[begin + i] * hidden_size;
      const float weight = chosen.weights[begin + i];
      for (int64_t j = 0; j < hidden_size; ++j) sum[j] += weight * result[i * hidden_size + j];
    }
  }
}

}  // namespace

int64_t DecoderLayer::weight_bytes(const ModelConfig& config) const {
  const int64_t active = is_moe() ? config.num_experts_per_token : 1;
  const GatedMlp& mlp = mlps.front();
  return qkv.weight_bytes() + o.weight_bytes() + router.weight_bytes() +
         active * (mlp.gate_up.weight_bytes() + mlp.down.weight_bytes());
}

DecoderLayer pack_layer(const ModelConfig& config, const LayerWeights& weights, ComputeType compute,
                        Exec& exec) {
  DecoderLayer layer;
  layer.index = weights.layer;
  layer.is_sliding = config.layer_is_sliding[static_cast<std::size_t>(weights.layer)];
  layer.qkv = pack_kind(weights, LinearKind::kQkv, -1, config.q_size() + 2 * config.kv_size(),
                        config.hidden_size, compute, exec);
  layer.o =
      pack_kind(weights, LinearKind::kO, -1, config.hidden_size, config.q_size(), compute, exec);
  if (weights.router.empty()) {
    layer.mlps.push_back(pack_mlp(config, weights, -1, config.intermediate_size, compute, exec));
  } else {
    for (int64_t expert = 0; expert < config.num_experts; ++expert) {
      layer.mlps.push_back(
          pack_mlp(config, weights, expert, config.moe_intermediate_size, compute, exec));
    }
    LinearWeights router;
    router.dense = weights.router.clone();
    const LinearWeights* part = &router;
    layer.router = StackedLinear(stack_linears({&part, 1}), ComputeType::kF32, exec);
  }
  const auto clone = [](const Tensor& gain) { return gain.empty() ? Tensor() : gain.clone(); };
  layer.key_offset = key_bias(weights);
  layer.input_norm = clone(weights.input_norm);
  layer.q_norm = clone(weights.q_norm);
  layer.k_norm = clone(weights.k_norm);
  layer.post_attention_norm = clone(weights.post_attention_norm);
  layer.mlp_norm = clone(weights.mlp_norm);
  layer.post_mlp_norm = clone(weights.post_mlp_norm);
  return layer;
}

void forward_layer(const DecoderLayer& layer, const LayerStep& step, float* hidden,
                   int64_t num_rows, Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  float* normed = exec.workspace.allocate_as<float>(num_rows * step.config.hidden_size);
  float* branch = exec.workspace.allocate_as<float>(num_rows * step.config.hidden_size);
  LayerForward forward(layer, step, num_rows, exec);

  forward.norm(hidden, layer.input_norm, normed);
  forward.attention_branch(normed, branch);
  forward.add_up(branch);
  forward.add_branch(branch, layer.post_attention_norm, hidden);

  forward.norm(hidden, layer.mlp_norm, normed);
  if (layer.is_moe()) {
    forward.expert_branch(normed, branch);
  } else {
    forward.mlp_branch(normed, branch);
  }
  forward.add_up(branch);
  forward.add_branch(branch, layer.post_mlp_norm, hidden);
}

}  // namespace lathe
