#include "compress/cuda_layer_pass.h"

#include "tensor/cuda_check.h"

namespace lathe {

CudaLayerPass::CudaLayerPass(const ModelConfig& config, int64_t cache_tokens, int64_t longest,
                             const RopeFrequencies& full, const RopeFrequencies& sliding,
                             int device)
    : config_(config),
      context_(device),
      cache_(config, KvFormat::kF32, cache_tokens, longest, context_.stream()),
      rope_full_(full),
      rope_sliding_(sliding) {}

void CudaLayerPass::forward(const CudaDecoderLayer& layer, std::span<const KvRows> rows,
                            std::span<const int64_t> positions, CudaLayerTap* tap, float* hidden,
                            Exec& exec) {
  context_.use();
  const CudaStream stream = context_.stream();
  const auto num_rows = static_cast<int64_t>(positions.size());
  const int64_t hidden_bytes = num_rows * config_.hidden_size * static_cast<int64_t>(sizeof(float));
  token_ids_.resize(positions.size(), 0);
  const ForwardBatch rows_only = {
      .token_ids = token_ids_, .positions = positions, .sequences = rows, .logit_rows = {}};
  steps_.send(rows_only, shape_of(rows_only), cache_, stream);
  const CudaBatch batch = steps_.batch();

  hidden_.reserve(hidden_bytes);
  reserve_attention_workspace(attention_workspace_, layer, config_, batch, cache_.layer(0).element,
                              context_);
  cuda_check(cudaMemcpyAsync(hidden_.data(), hidden, static_cast<std::size_t>(hidden_bytes),
                             cudaMemcpyHostToDevice, stream),
             "copying hidden states to the GPU");

  cache_.begin_step(rows, exec);
  try {
    DeviceWorkspace& workspace = context_.workspace();
    const DeviceWorkspace::Scope scope(workspace);
    std::byte* branch = workspace.allocate(hidden_bytes);
    const CudaLayerStep step = {
        .config = config_,
        .rope = (layer.is_sliding ? rope_sliding_ : rope_full_).rows(batch, context_),
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
