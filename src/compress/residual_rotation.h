// Rotation of the residual stream, x -> x Q, merged into the weights around it (QuaRot's offline
// part). RMSNorm does not see it (|x Q| = |x|) once its gain has moved into the linears behind it:
//   embedding                   E Q
//   q k v gate up router head   W diag(gain) Q        read the stream
//   o down                      Q^T W, bias Q         write to it
// Q = diag(signs) (O_m (x) H_p): random signs, hidden_size = m p with p the largest power of two,
// H_p the normalised Hadamard matrix, O_m a random orthogonal matrix (m is odd: 1, 3, 7, 9, ...;
// where the paper uses tabulated Hadamard matrices of sizes 12, 20, 28, ...). The online rotations
// of the inputs of o and down are the block Hadamard of quant/hadamard.h, because that is what
// checkpoints can express; the paper's are full-size.
// Source: Ashkboos et al., "QuaRot" (2024); spec/mr-gptq.md 5.1.
#pragma once
#include <cstdint>

#include "model/layer_weights.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace lathe {

class ResidualRotation {
 public:
  ResidualRotation(int64_t hidden_size, uint64_t seed);

  const Tensor& matrix() const { return q_; }  // [hidden_size, hidden_size] f32

  // rows [n, hidden_size] -> rows Q, in place.
  void rotate_rows(float* rows, int64_t n, Exec& exec) const;
  // Columns of W [n, hidden_size] are scaled by gain first (null: not).
  void rotate_reader(float* w, int64_t n, const float* gain, Exec& exec) const;
  // W [hidden_size, k] -> Q^T W, bias [hidden_size] -> bias Q (null: none).
  void rotate_writer(float* w, int64_t k, float* bias, Exec& exec) const;

  // All linears and gains of a layer (f32, dense). Gains become 1. Throws kUnsupported for norms
  // behind attention and MLP (Gemma 3), whose gains cannot move.
  void rotate_layer(LayerWeights& weights, const ModelConfig& config, Exec& exec) const;

 private:
  Tensor q_;
};

}  // namespace lathe
