// One layer of the decoder, packed for the kernels, and its forward pass over flat rows. It stands
// alone: calibration (compress/) loads, runs and frees one layer at a time.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "kernels/collective/collective.h"
#include "model/layer_weights.h"
#include "model/rope_rows.h"
#include "model/stacked_linear.h"
#include "model/step_profile.h"

namespace lathe {

// Sees what enters the linear layers, before their rotation and quantization, and what enters the
// cache.
class LayerTap {
 public:
  virtual ~LayerTap() = default;
  // x: [rows, k], dense, valid during the call. expert: -1, or the expert whose rows these are
  // (only experts that got rows are reported).
  virtual void on_linear_input(LinearKind kind, int64_t expert, const float* x, int64_t rows,
                               int64_t k) = 0;
  // keys (behind any k norm, before RoPE) and values: [rows, kv_size] with the given row stride,
  // valid during the call.
  virtual void on_keys_values(const float* /*keys*/, const float* /*values*/, int64_t /*stride*/,
                              int64_t /*rows*/) {}
};

struct GatedMlp {
  StackedLinear gate_up;  // [2 * size, hidden_size]
  StackedLinear down;     // [hidden_size, size]
};

struct DecoderLayer {
  int64_t index = 0;
  bool is_sliding = false;
  StackedLinear qkv;  // [(num_heads + 2 num_kv_heads) * head_dim, hidden_size]
  StackedLinear o;
  std::vector<GatedMlp> mlps;  // one, or one per expert
  StackedLinear router;        // experts only: [num_experts, hidden_size], f32
  Tensor input_norm, q_norm, k_norm, post_attention_norm, mlp_norm, post_mlp_norm;
  // f32 [kv_size]: what codes of keys leave out (KeyOffset, attention.h). Model::learn_key_means(),
  // or the keys' biases where only RoPE comes behind, or empty.
  Tensor key_offset;

  bool is_moe() const { return router.n() > 0; }
  // Bytes of weights that a step over one row reads.
  int64_t weight_bytes(const ModelConfig& config) const;
};

// Packs a layer; the raw weights are not needed afterwards. Throws kCorruptData when sizes do not
// fit the config.
DecoderLayer pack_layer(const ModelConfig& config, const LayerWeights& weights, ComputeType compute,
                        Exec& exec);

// The rows of one step, as every layer sees them.
struct LayerStep {
  const ModelConfig& config;
  const RopeRows& rope;
  std::span<const KvRows> sequences;  // consecutive runs that cover all rows
  KvCache& cache;                     // behind begin_step(sequences)
  int64_t cache_layer;  // which of its layers is this one's (0 in a cache of one layer)
  LayerTap* tap = nullptr;
  StepProfile* profile = nullptr;
  const RotationMiddles* rotation_middles = nullptr;  // for a cache that drops key offsets
  Collective* collective = nullptr;  // where the layer is one rank's part: sums its branches
};

// hidden: [num_rows, hidden_size], the residual stream, updated in place. Scratch comes from
// exec.workspace; no other allocation after warm-up.
void forward_layer(const DecoderLayer& layer, const LayerStep& step, float* hidden,
                   int64_t num_rows, Exec& exec);

}  // namespace lathe
