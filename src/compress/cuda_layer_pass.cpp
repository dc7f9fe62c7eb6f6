#include "compress/cuda_layer_pass.h"

#include <algorithm>

#include "tensor/cuda_check.h"

namespace lathe {
namespace {

DeviceBuffer upload(const RopeFrequencies& frequencies) {
  return DeviceBuffer::from_host(frequencies.inverse.data(),
                                 static_cast<int64_t>(frequencies.inverse.size() * sizeof(float)));
}

}  // namespace

CudaLayerPass::CudaLayerPass(const ModelConfig& config, int64_t cache_tokens, int64_t longest,
                             const RopeFrequencies& full, const RopeFrequencies& sliding,
                             int device)
    : config_(config),
      context_(device),
      cache_(config, KvFormat::kF32, cache_tokens, longest, context_.stream()),
      rope_full_(upload(full)),
      rope_sliding_(upload(sliding)),
      full_factor_(static_cast<float>(full.attention_factor)),
      sliding_factor_(static_cast<float>(sliding.attention_factor)) {}

void CudaLayerPass::forward(const CudaDecoderLayer& layer, std::span<const KvRows> rows,
                            std::span<const int64_t> positions, CudaLayerTap* tap, float* hidden,
                            Exec& exec) {
  context_.use();
  const CudaStream stream = context_.stream();
  const auto num_rows = static_cast<int64_t>(positions.size());
  const int64_t hidden_bytes = num_rows * config_.hidden_size * static_cast<int64_t>(sizeof(float));
  StepShape shape = {.num_rows = num_rows,
                     .num_sequences = static_cast<int64_t>(rows.size()),
                     .num_logits = 0,
                     .max_rows_per_sequence = 0,
                     .max_context = 0};
  for (const KvRows& run : rows) {
    shape.max_rows_per_sequence = std::max(shape.max_rows_per_sequence, run.num_rows);
    shape.max_context = std::max(shape.max_context, run.sequence->num_tokens + run.num_rows);
  }
  token_ids_.resize(positions.size(), 0);
  steps_.send(
      {.token_ids = token_ids_, .positions = positions, .sequences = rows, .logit_rows = {}}, shape,
      stream);
  const CudaBatch batch = steps_.batch();

  hidden_.reserve(hidden_bytes);
  const AttentionCudaArgs attention = {.element = layer.element,
                                       .q_stride = layer.qkv.n(),
                                       .num_heads = config_.num_heads,
                                       .num_kv_heads = config_.num_kv_heads,
                                       .head_dim = config_.head_dim};
  const int64_t workspace_bytes = attention_cuda_workspace_bytes(attention, batch);
  if (workspace_bytes > attention_workspace_.size()) {
    attention_workspace_.reserve(workspace_bytes);
    cuda_check(cudaMemsetAsync(attention_workspace_.data(), 0,
                               static_cast<std::size_t>(attention_workspace_.size()), stream),
               "clearing memory");
  }
  cuda_check(cudaMemcpyAsync(hidden_.data(), hidden, static_cast<std::size_t>(hidden_bytes),
                             cudaMemcpyHostToDevice, stream),
             "copying hidden states to the GPU");

  cache_.begin_step(rows, exec);
  try {
    DeviceWorkspace& workspace = context_.workspace();
    const DeviceWorkspace::Scope scope(workspace);
    const int64_t half = config_.rotary_dim / 2;
    auto* cos = workspace.allocate_as<float>(num_rows * half);
    auto* sin = workspace.allocate_as<float>(num_rows * half);
    rope_tables_cuda((layer.is_sliding ? rope_sliding_ : rope_full_).as<float>(),
                     layer.is_sliding ? sliding_factor_ : full_factor_, half, batch.positions,
                     num_rows, cos, sin, stream);
    std::byte* branch = workspace.allocate(hidden_bytes);
    const CudaLayerStep step = {.config = config_,
                                .rope = {cos, sin},
                                .batch = batch,
                                .cache = cache_.layer(0),
                                .attention_workspace = attention_workspace_.data(),
                                .tap = tap};
    auto* x = hidden_.as<float>();
    const PendingBranch pending = forward_cuda_layer(layer, step, x, {}, branch, context_);
    add_pending(pending, config_, x, num_rows, context_);
    hidden_.to_host(hidden, hidden_bytes, stream);
  } catch (...) {
    cache_.abandon_step();
    throw;
  }
  cache_.commit();
}

}  // namespace lathe
