// A GGUF file seen through Hugging Face's tensor names, dequantized on load. Use
// Checkpoint::open(); file() gives the metadata (vocabulary, chat template).
#pragma once
#include <map>
#include <string>

#include "formats/checkpoint.h"
#include "formats/gguf.h"

namespace lathe {

class GgufCheckpoint final : public Checkpoint {
 public:
  explicit GgufCheckpoint(const std::string& path);

  const GgufFile& file() const { return file_; }
  const std::string& path() const override { return file_.path(); }
  const ModelConfig& config() const override { return config_; }
  bool is_gguf() const override { return true; }
  DType weight_dtype() const override;
  bool has_tensor(const std::string& hf_name) const override;
  std::vector<std::string> tensor_names() const override;
  Shape tensor_shape(const std::string& hf_name) const override;
  Tensor load(const std::string& hf_name, DType dtype) const override;
  LinearWeights load_linear(const std::string& module, DType dense_dtype) const override;
  void release_pages() const override { file_.release_pages(); }
  // What the metadata say, as config.json, generation_config.json, tokenizer_config.json and
  // chat_template.jinja.
  std::optional<std::string> auxiliary_file(const std::string& name) const override;

 private:
  // Whole rows of a stored tensor and what to undo on the way out.
  struct Part {
    const GgufTensor* tensor = nullptr;
    int64_t row_begin = 0;  // counted over all dimensions but the last
    Shape shape;            // of the part
    int64_t interleaved_heads =
        0;                   // > 0: rows of each head come as pairs (0, d/2), (1, d/2 + 1) ...
    bool minus_one = false;  // Gemma's norms
    float scale = 1;         // NVFP4's scale of the tensor
  };
  void map_tensors();
  void add(const std::string& hf_name, Part part);
  void check_against_config() const;
  const Part& part(const std::string& hf_name) const;
  // Scale of an NVFP4 tensor (or of one expert's matrix in it).
  float tensor_scale(const GgufTensor& tensor, int64_t expert) const;

  GgufFile file_;
  ModelConfig config_;
  std::map<std::string, Part> parts_;
};

}  // namespace lathe
