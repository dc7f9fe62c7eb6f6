// How compressed-tensors stores a quantized linear layer: the tensors that stand for it in the
// file, and the `quantization_config` that says how to read them. Pure functions; the directory
// around them is compressed_tensors_writer.h's. docs/formats.md lists every tensor. Source:
// compressed-tensors 0.20.0 (compressors/, quantization/, transform/).
#pragma once
#include <span>
#include <string>
#include <vector>

#include "quant/weight_format.h"
#include "tensor/tensor.h"

namespace lathe {

// One quantized linear layer. Borrows the matrix.
struct QuantizedLinear {
  std::string module;  // without ".weight": "model.layers.0.self_attn.q_proj"
  const QuantizedMatrix* weight = nullptr;
  LinearScheme scheme;
};

struct NamedTensor {
  std::string name;  // whole: "model.layers.0.input_layernorm.weight"
  TensorView view;
};

// Throws for what others would read as different numbers:
// - kUnsupported: a format that compressed-tensors does not have. It knows MXFP4 with power-of-two
//   scales only, so a global scale on it (the 4/3 rule) and the fitted grid are refused, as are the
//   4-bit integers with one-byte scales. The way out is to store the decoded weights densely.
// - kInvalidArgument: q/k/v or gate/up of one layer with different global scales. Engines stack
//   those layers and keep one scale for all.
void check_expressible(std::span<const QuantizedLinear> linears);

// The tensors of one layer (check_expressible first). Views borrow the matrix or `owned`.
struct LinearTensors {
  std::vector<NamedTensor> tensors;
  std::vector<Tensor> owned;
};
LinearTensors linear_tensors(const QuantizedLinear& linear);

// What the configuration says about one quantized module.
struct ModuleScheme {
  std::string module;
  WeightFormat format;
  LinearScheme scheme;
};

// The value of `quantization_config`, as JSON text, for these modules and `ignore`, the linear
// modules that stay dense. Modules of one kind become one group that targets "Linear"; several
// kinds become groups that name their modules.
std::string quantization_config(std::span<const ModuleScheme> modules,
                                std::span<const std::string> ignore);

}  // namespace lathe
