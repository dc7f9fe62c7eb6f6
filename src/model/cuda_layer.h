// One decoder layer on the GPU, the counterpart of decoder_layer.h: the same layers from the same
// description, with the operations fused as a GPU wants them. The residual stream is fp32; what
// runs between the kernels is bf16, or fp32 in the exact mode (ComputeType::kF32).
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/latent_attention_cuda.h"
#include "kernels/collective/collective.h"
#include "kernels/cuda_context.h"
#include "kernels/linear/cuda_linear.h"
#include "kernels/quantize_activations/quantize_cuda.h"
#include "model/layer_weights.h"
#include "model/rope_table.h"
#include "model/stacked_linear.h"

namespace lathe {

// Sees what enters the linear layers, before rotation and quantization.
class CudaLayerTap {
 public:
  virtual ~CudaLayerTap() = default;
  // x: [rows, k] on the device, fp32, dense; valid until the next call. What reads it must be
  // enqueued on `stream`.
  virtual void on_linear_input(LinearKind kind, int64_t expert, const float* x, int64_t rows,
                               int64_t k, CudaStream stream) = 0;
  // Queries, keys and values as the projections leave them, before any norm and RoPE: [rows,
  // (num_heads + 2 num_kv_heads) * head_dim] of `element` with the given row stride. Valid as
  // above.
  virtual void on_projections(const void* /*qkv*/, CudaElement /*element*/, int64_t /*stride*/,
                              int64_t /*rows*/, CudaStream /*stream*/) {}
};

class CudaStackedLinear {
 public:
  CudaStackedLinear() = default;
  CudaStackedLinear(std::span<const LinearStack> stacks, ComputeType compute, CudaContext& context);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t weight_bytes() const;
  std::string kernels() const;
  const std::vector<std::unique_ptr<CudaLinear>>& weights() const { return weights_; }

 private:
  std::vector<std::unique_ptr<CudaLinear>> weights_;
  int64_t n_ = 0;
  int64_t k_ = 0;
};

struct CudaGatedMlp {
  CudaStackedLinear gate_up;
  CudaStackedLinear down;
};

struct CudaDecoderLayer {
  int64_t index = 0;
  bool is_sliding = false;
  CudaElement element = CudaElement::kBF16;  // between the kernels
  CudaStackedLinear qkv;
  CudaStackedLinear o;
  std::vector<CudaGatedMlp> mlps;  // one, or one per expert
  CudaStackedLinear router;        // experts only
  DeviceBuffer input_norm, q_norm, k_norm, post_attention_norm, mlp_norm, post_mlp_norm;
  // [kv_size]: what codes of keys leave out (KeyOffset, attention.h). Model::learn_key_means(), or
  // key_bias() (layer_weights.h), or nothing.
  DeviceBuffer key_offset;

  bool is_moe() const { return router.n() > 0; }
  int64_t weight_bytes(const ModelConfig& config) const;
};

CudaDecoderLayer make_cuda_layer(const ModelConfig& config, const LayerWeights& weights,
                                 ComputeType compute, CudaContext& context);

// cos and sin of each row's position, attention factor included: [num_rows, rotary_dim / 2].
struct CudaRopeRows {
  const float* cos = nullptr;
  const float* sin = nullptr;
};

// The frequencies of one kind of layer, on the device.
class CudaRope {
 public:
  explicit CudaRope(const RopeFrequencies& frequencies);
  const float* inverse_frequencies() const { return inverse_.as<float>(); }  // on the device
  float attention_factor() const { return attention_factor_; }
  // In the context's workspace; valid until its enclosing scope ends.
  CudaRopeRows rows(const CudaBatch& batch, CudaContext& context) const;

 private:
  int64_t half_;          // rotary_dim / 2
  DeviceBuffer inverse_;  // [half], radians per position
  float attention_factor_;
};

// Angles of whole blocks of positions on the device (model/rope_rows.h).
struct CudaRotationBlocks {
  CudaRotationBlocks(const RopeFrequencies& frequencies, int64_t head_dim, int64_t num_positions);

  DeviceBuffer starts, in_block;
};

// Makes `workspace` large enough for the attention of `layer` over `batch`, zeroed as
// attention_cuda.h asks. True when it has moved.
bool reserve_attention_workspace(DeviceBuffer& workspace, const CudaDecoderLayer& layer,
                                 const ModelConfig& config, const CudaBatch& batch,
                                 KvCudaElement cache, CudaContext& context);

struct CudaLayerStep {
  const ModelConfig& config;
  CudaRopeRows rope;
  const CudaBatch& batch;
  KvCudaLayer cache;
  const LatentKvCuda* codes = nullptr;                  // attended to instead of `cache`; null: not
  void* attention_workspace;                            // attention_cuda.h
  const CudaRotationBlocks* rotation_blocks = nullptr;  // for a cache that drops key offsets
  CudaLayerTap* tap = nullptr;
  Collective* collective = nullptr;  // where the layer is one rank's part: sums its branches
};

// The output of a branch (attention, MLP) that has not been added to the residual stream yet: the
// next norm does it on its way.
struct PendingBranch {
  const void* data = nullptr;  // [num_rows, hidden_size]; null: none
  CudaElement element = CudaElement::kBF16;
  const float* gain = nullptr;  // its own norm (sandwich_norms)
};

// hidden: [num_rows, hidden_size] fp32 on the device; branch_buffer: room for as many numbers of
// layer.element, in which the returned branch stands. Scratch comes from the context's workspace.
PendingBranch forward_cuda_layer(const CudaDecoderLayer& layer, const CudaLayerStep& step,
                                 float* hidden, PendingBranch pending, void* branch_buffer,
                                 CudaContext& context);

// hidden += what is pending.
void add_pending(PendingBranch pending, const ModelConfig& config, float* hidden, int64_t num_rows,
                 CudaContext& context);

}  // namespace lathe
