// What a decoder layer becomes in the file: its tensors under the names that published checkpoints
// of its family have (Phi-3 stacks q/k/v and gate/up, Mixtral calls an expert's parts w1, w3, w2),
// since its config.json stays what it was and other engines look for those names.
#pragma once
#include <deque>
#include <string>
#include <vector>

#include "compress/layer_quantizer.h"
#include "formats/checkpoint.h"
#include "formats/compressed_tensors_layout.h"

namespace lathe {

struct StoredTensors {
  std::vector<QuantizedLinear> linears;
  std::vector<NamedTensor> dense;
  // What the two borrow, beside the layer.
  std::deque<QuantizedMatrix> matrices;
  std::deque<Tensor> tensors;

  void add(const std::string& name, Tensor tensor);
};

// Borrows `layer`. Tensors of the layer that quantization left alone are those of `source`, in
// store_dtype. decoded: the weights as ordinary fp32 tensors, rotated back. Throws as
// check_expressible() does for parts of one stored tensor.
StoredTensors stored_layer(const QuantizedLayer& layer, const Checkpoint& source, bool decoded,
                           DType store_dtype);

// A norm's gain as the file has it: without Gemma's 1.
Tensor stored_gain(const Tensor& gain, const ModelConfig& config, DType store_dtype);

}  // namespace lathe
