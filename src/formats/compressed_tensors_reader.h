// One quantized linear layer of a compressed-tensors checkpoint: the tensors L.weight_packed (or
// L.weight), L.weight_scale, L.weight_global_scale, L.input_global_scale, L.weight_shape as a
// QuantizedMatrix. Codes keep their bits, except that packed integers lose their offset; the scales
// of a whole row or tensor become fp32, one a row.
#pragma once
#include <functional>
#include <string>

#include "formats/checkpoint.h"
#include "formats/compressed_tensors_config.h"
#include "tensor/tensor.h"

namespace lathe {

// nullptr when the checkpoint has no such tensor.
using FindTensor = std::function<const TensorView*(const std::string& name)>;

// Whether the checkpoint holds the module quantized.
bool is_compressed(const std::string& module, const FindTensor& find);

// Checks dtypes and shapes of the module's tensors without touching their numbers. rows, cols: what
// the model's config says. Throws kNotFound or kCorruptData naming the tensor.
void check_compressed_linear(const CompressedScheme& scheme, const std::string& module,
                             int64_t rows, int64_t cols, const FindTensor& find);

// Reads the module (checked first). Throws kCorruptData for scales or codes that are not numbers.
// Fills `quantized`, scheme.activations and scheme.input_global_scale; not bias, not hadamard.
LinearWeights read_compressed_linear(const CompressedScheme& scheme, const std::string& module,
                                     int64_t rows, int64_t cols, const FindTensor& find);

// Checks a stored rotation (entries +-1, not normalised) against the block Hadamard matrix. Throws
// kUnsupported when it is another one.
void check_stored_hadamard(const TensorView& stored, int64_t block, const std::string& name);

}  // namespace lathe
