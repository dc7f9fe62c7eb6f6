// A checkpoint seen through another one: everything as the source has it, for classes that change
// what little they override.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "formats/checkpoint.h"

namespace lathe {

class CheckpointView : public Checkpoint {
 public:
  // The source must outlive the view.
  explicit CheckpointView(const Checkpoint& source) : source_(source) {}

  const std::string& path() const override { return source_.path(); }
  const ModelConfig& config() const override { return source_.config(); }
  bool is_gguf() const override { return source_.is_gguf(); }
  DType weight_dtype() const override { return source_.weight_dtype(); }
  std::string decoder_prefix() const override { return source_.decoder_prefix(); }
  bool has_tensor(const std::string& name) const override { return source_.has_tensor(name); }
  std::vector<std::string> tensor_names() const override { return source_.tensor_names(); }
  Shape tensor_shape(const std::string& name) const override { return source_.tensor_shape(name); }
  Tensor load(const std::string& name, DType dtype) const override {
    return source_.load(name, dtype);
  }
  LinearWeights load_linear(const std::string& module, DType dense_dtype) const override {
    return source_.load_linear(module, dense_dtype);
  }
  void release_pages() const override { source_.release_pages(); }
  std::optional<std::string> auxiliary_file(const std::string& name) const override {
    return source_.auxiliary_file(name);
  }

 protected:
  const Checkpoint& source_;
};

}  // namespace lathe
