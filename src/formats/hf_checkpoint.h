// A Hugging Face directory: config.json, safetensors (one file or shards), dense or with
// compressed-tensors quantization. Use Checkpoint::open().
#pragma once
#include <map>
#include <memory>
#include <string>

#include "formats/checkpoint.h"
#include "formats/compressed_tensors_config.h"
#include "formats/compressed_tensors_reader.h"
#include "formats/model_tensors.h"
#include "formats/safetensors.h"

namespace lathe {

class HfCheckpoint final : public Checkpoint {
 public:
  // Throws what Checkpoint::open throws.
  explicit HfCheckpoint(const std::string& directory);

  const std::string& path() const override { return directory_; }
  const ModelConfig& config() const override { return config_; }
  bool is_gguf() const override { return false; }
  DType weight_dtype() const override;
  std::string decoder_prefix() const override;
  bool has_tensor(const std::string& hf_name) const override;
  std::vector<std::string> tensor_names() const override;
  Shape tensor_shape(const std::string& hf_name) const override;
  Tensor load(const std::string& hf_name, DType dtype) const override;
  LinearWeights load_linear(const std::string& module, DType dense_dtype) const override;
  void release_pages() const override { files_.release_pages(); }
  std::optional<std::string> auxiliary_file(const std::string& name) const override;

 private:
  const TensorView* find(const std::string& hf_name) const;
  const TensorView& view(const std::string& hf_name) const;
  // The scheme of a module that is stored quantized.
  const CompressedScheme& scheme_of(const std::string& module) const;
  int64_t hadamard_of(const std::string& module) const;
  void check_against_config();

  std::string directory_;
  ModelConfig config_;
  SafetensorsSet files_;
  std::map<std::string, TensorView> tensors_;  // by common name (hf_names.h)
  std::map<std::string, LinearModule> linears_;
  std::optional<CompressedTensorsConfig> quantization_;
  FindTensor find_;
};

}  // namespace lathe
