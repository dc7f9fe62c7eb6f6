// A model on disk, whatever its file format, seen through Hugging Face's tensor names: a directory
// (safetensors, one file or shards, dense or compressed-tensors) or a GGUF file. Memory-mapped;
// nothing is read before it is asked for. Fused and family-specific tensors appear under the common
// names (model_tensors.h): Phi-3's q/k/v and gate/up apart, every expert of a MoE layer as
// "model.layers.L.mlp.experts.E.{gate,up,down}_proj", its router as "model.layers.L.mlp.gate".
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "formats/model_config.h"
#include "quant/weight_format.h"
#include "tensor/tensor.h"

namespace lathe {

// One linear layer as stored. Exactly one of `dense` and `quantized` is filled.
struct LinearWeights {
  Tensor dense;  // [N, K] in the asked dtype
  std::optional<QuantizedMatrix> quantized;
  Tensor bias;  // [N] f32, or empty
  LinearScheme scheme;
};

class Checkpoint {
 public:
  // Opens a directory or a .gguf file; checks headers, offsets, shapes against the config. Throws
  // an Error that names the file and the tensor.
  static std::unique_ptr<Checkpoint> open(const std::string& path);
  virtual ~Checkpoint() = default;

  virtual const std::string& path() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual bool is_gguf() const = 0;
  // dtype of the dense weights as stored: kF32, kF16, kBF16 (GGUF quantized types count as kF32).
  virtual DType weight_dtype() const = 0;

  // What the stored names of the decoder's tensors begin with instead of "model.": multimodal
  // models have "language_model.model." or "model.language_model.".
  virtual std::string decoder_prefix() const { return "model."; }

  virtual bool has_tensor(const std::string& hf_name) const = 0;
  virtual std::vector<std::string> tensor_names() const = 0;
  virtual Shape tensor_shape(const std::string& hf_name) const = 0;
  // Loads a dense tensor, converted to `dtype` (kF32, kF16 or kBF16). GGUF: dequantized, with the
  // conversions of the GGUF writer undone (interleaved Q/K rows of Llama, 1 + weight of Gemma's
  // norms). Throws kNotFound; kCorruptData for a value that is not finite.
  virtual Tensor load(const std::string& hf_name, DType dtype) const = 0;
  // Loads a linear layer by its module name without ".weight", for example
  // "model.layers.0.self_attn.q_proj": dense or quantized, with bias and scheme. "lm_head" of a
  // model with tied embeddings gives the embedding; has_tensor() and tensor_names() do not know it.
  virtual LinearWeights load_linear(const std::string& module, DType dense_dtype) const = 0;
  // Hint that the pages read so far will not be needed again soon (streaming keeps memory low).
  virtual void release_pages() const = 0;

  // A text file beside the weights (tokenizer.json, ...), nullopt where there is none. A GGUF file
  // gives config.json, generation_config.json, tokenizer_config.json and chat_template.jinja as its
  // metadata say; its vocabulary is in GgufCheckpoint::file() and text/ makes a tokenizer of it.
  virtual std::optional<std::string> auxiliary_file(const std::string& name) const = 0;
};

}  // namespace lathe
