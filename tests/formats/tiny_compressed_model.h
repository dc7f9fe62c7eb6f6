// A Llama of two layers with random quantized weights, written by CompressedTensorsWriter: small
// enough to be read back by every reader at hand.
#pragma once
#include <map>
#include <string>

#include "quant/weight_format.h"

namespace lathe {

struct TinyCompressedModel {
  std::map<std::string, QuantizedMatrix> linears;  // by module
  LinearScheme scheme;
};

// Writes it into `directory`, which must not hold a model. `hadamard`: 0 or a block size, of which
// 128 does not divide every layer: those take 64.
TinyCompressedModel write_tiny_compressed_model(const std::string& directory,
                                                const std::string& format,
                                                ActivationFormat activations, int64_t hadamard);

// The block size that a layer with this many inputs takes.
int64_t tiny_hadamard(int64_t hadamard, int64_t cols);

}  // namespace lathe
