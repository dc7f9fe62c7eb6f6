// One decoder layer as a checkpoint stores it: its linear layers, which of them share an input, and
// their weights. compress/ walks these; decoder_layer.h packs them for the kernels. Tensors have
// the shapes that the config asks for, since Checkpoint::open() has checked them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "formats/checkpoint.h"

namespace lathe {

// The linear layers of one kind share their input.
enum class LinearKind {
  kQkv,     // q_proj, k_proj, v_proj: the normed hidden state
  kO,       // o_proj: the attention output
  kGateUp,  // gate_proj, up_proj: the normed hidden state
  kDown,    // down_proj: act(gate) * up
};

// Where one linear layer stands. The router of a mixture of experts is not among them: it stays
// dense.
struct LinearSlot {
  std::string module;  // "model.layers.3.self_attn.q_proj"
  LinearKind kind = LinearKind::kQkv;
  int64_t expert = -1;  // -1: not an expert's
  int64_t n = 0;        // output features
  int64_t k = 0;        // input features
};

// The linear layers of decoder layer `layer`, in the order of evaluation: q k v o, then gate up
// down (of expert 0, of expert 1, ...).
std::vector<LinearSlot> layer_slots(const ModelConfig& config, int64_t layer);

struct LayerLinear {
  LinearSlot slot;
  LinearWeights weights;
};

struct LayerWeights {
  int64_t layer = 0;
  std::vector<LayerLinear> linears;  // as layer_slots() lists them

  // RMSNorm gains, f32: [hidden_size], or [head_dim] for q_norm and k_norm; empty where the
  // architecture has none. Gemma's 1 + weight is folded in.
  Tensor input_norm;           // before attention
  Tensor q_norm, k_norm;       // per head, before RoPE
  Tensor post_attention_norm;  // behind attention, before the residual (sandwich_norms)
  Tensor mlp_norm;             // before the MLP
  Tensor post_mlp_norm;        // behind the MLP, before the residual (sandwich_norms)

  Tensor router;  // [num_experts, hidden_size] f32; empty: dense
};

// Loads one layer alone; dense weights in dense_dtype. Errors name the tensor.
LayerWeights load_layer_weights(const Checkpoint& checkpoint, int64_t layer, DType dense_dtype);

// The keys' biases in f32 where only RoPE comes behind them, [kv_size]; else empty.
Tensor key_bias(const LayerWeights& weights);

// A norm's gain in f32, with Gemma's + 1.
Tensor load_norm(const Checkpoint& checkpoint, const std::string& name);

}  // namespace lathe
