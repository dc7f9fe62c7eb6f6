// The forward pass of one decoder layer on a GPU, for calibration: LayerPass's part there.
#pragma once
#include <cstdint>
#include <memory>
#include <span>

#include "cache/cuda_kv_cache.h"
#include "compress/layer_pass.h"
#include "model/cuda_layer.h"
#include "model/rope_table.h"
#include "model/step_buffers.h"

namespace lathe {

class CudaLayerPass {
 public:
  // Room for cache_tokens in the cache of one layer.
  CudaLayerPass(const ModelConfig& config, int64_t cache_tokens, int64_t longest,
                const RopeFrequencies& full, const RopeFrequencies& sliding, int device);

  CudaDecoderLayer pack(const LayerWeights& weights, ComputeType compute) {
    context_.use();
    return make_cuda_layer(config_, weights, compute, context_);
  }
  KvCache& cache() { return cache_; }
  // hidden: [positions.size(), hidden_size] on the host, updated in place. The rows have been
  // reserved in cache().
  void forward(const CudaDecoderLayer& layer, std::span<const KvRows> rows,
               std::span<const int64_t> positions, CudaLayerTap* tap, float* hidden, Exec& exec);

 private:
  ModelConfig config_;  // of one layer
  CudaContext context_;
  CudaKvCache cache_;
  StepBuffers steps_;
  CudaRope rope_full_, rope_sliding_;
  DeviceBuffer hidden_;
  DeviceBuffer attention_workspace_;
  std::vector<int32_t> token_ids_;  // zeros: the embedding is not looked at
};

}  // namespace lathe
