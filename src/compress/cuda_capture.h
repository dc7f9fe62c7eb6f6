// Keys and values of a step on a GPU, for the host: what LayerPass::propagate_and_capture hands
// out.
#pragma once
#include <cstdint>
#include <vector>

#include "compress/layer_pass.h"
#include "model/cuda_layer.h"

namespace lathe {

class CudaCaptureTap : public CudaLayerTap {
 public:
  // k_norm: [head_dim] on the host, empty where the model has none. Borrows all.
  CudaCaptureTap(const ModelConfig& config, const Tensor& k_norm,
                 const LayerPass::OnKeysValues& on_keys_values, int64_t first_token, Exec& exec)
      : config_(config),
        k_norm_(k_norm),
        on_keys_values_(on_keys_values),
        first_token_(first_token),
        exec_(exec) {}

  void on_linear_input(LinearKind, int64_t, const float*, int64_t, int64_t, CudaStream) override {}
  // Waits for the stream.
  void on_projections(const void* qkv, CudaElement element, int64_t stride, int64_t rows,
                      CudaStream stream) override;

 private:
  const ModelConfig& config_;
  const Tensor& k_norm_;
  const LayerPass::OnKeysValues& on_keys_values_;
  const int64_t first_token_;
  Exec& exec_;
};

}  // namespace lathe
