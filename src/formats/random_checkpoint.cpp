#include "formats/random_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/mmap_file.h"
#include "base/rng.h"
#include "formats/model_tensors.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

// A matrix is tiled from so many random numbers, or as many as the largest one has: enough that no
// two rows of a tile are alike.
constexpr int64_t kPool = int64_t{1} << 20;

class RandomCheckpoint final : public Checkpoint {
 public:
  RandomCheckpoint(std::string path, ModelConfig config, const RandomWeights& weights)
      : path_(std::move(path)),
        config_(std::move(config)),
        weights_(weights),
        tensors_(model_tensors(config_)),
        pool_(static_cast<std::size_t>(
            std::min(kPool, config_.vocab_size * config_.hidden_size +
                                4 * config_.hidden_size * config_.intermediate_size))) {
    Rng rng(weights.seed);
    for (float& value : pool_) value = static_cast<float>(rng.normal());
    bytes_.resize(static_cast<std::size_t>(kPool));
    for (uint8_t& byte : bytes_) byte = static_cast<uint8_t>(rng.next_u64());
  }

  const std::string& path() const override { return path_; }
  const ModelConfig& config() const override { return config_; }
  bool is_gguf() const override { return false; }
  DType weight_dtype() const override { return DType::kBF16; }
  bool has_tensor(const std::string& name) const override {
    return std::any_of(tensors_.plain.begin(), tensors_.plain.end(),
                       [&](const PlainTensor& tensor) { return tensor.name == name; });
  }
  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> names;
    for (const PlainTensor& tensor : tensors_.plain) names.push_back(tensor.name);
    return names;
  }
  Shape tensor_shape(const std::string& name) const override { return plain(name).shape; }

  // Norms are ones (zeros where the model adds one), matrices normal with the usual deviation 0.02.
  Tensor load(const std::string& name, DType dtype) const override {
    const Shape& shape = plain(name).shape;
    if (shape.size() > 1) return dense(shape, dtype);
    Tensor ones(DType::kF32, shape);
    std::fill_n(ones.as<float>(), ones.num_elements(), config_.norm_plus_one ? 0.0f : 1.0f);
    return convert(ones.view(), dtype);
  }

  LinearWeights load_linear(const std::string& module, DType dense_dtype) const override {
    const LinearModule linear = find_linear(module);
    LinearWeights loaded;
    const bool is_quantized =
        weights_.format && module.find("model.layers.") == 0 && !module.ends_with(".mlp.gate");
    if (is_quantized) {
      loaded.quantized = quantized(linear.rows, linear.cols);
      loaded.scheme = weights_.scheme;
    } else {
      loaded.dense = dense({linear.rows, linear.cols}, dense_dtype);
    }
    if (linear.has_bias) {
      loaded.bias = Tensor(DType::kF32, {linear.rows});
      std::fill_n(loaded.bias.as<float>(), linear.rows, 0.0f);
    }
    return loaded;
  }

  void release_pages() const override {}
  std::optional<std::string> auxiliary_file(const std::string&) const override {
    return std::nullopt;
  }

 private:
  const PlainTensor& plain(const std::string& name) const {
    for (const PlainTensor& tensor : tensors_.plain) {
      if (tensor.name == name) return tensor;
    }
    fail(ErrorCode::kNotFound, path_, ": no tensor '", name, "'");
  }
  LinearModule find_linear(const std::string& module) const {
    if (module == "lm_head") return {module, config_.vocab_size, config_.hidden_size, false};
    for (const LinearModule& linear : tensors_.linears) {
      if (linear.name == module) return linear;
    }
    fail(ErrorCode::kNotFound, path_, ": no linear layer '", module, "'");
  }

  Tensor dense(const Shape& shape, DType dtype) const {
    Tensor tensor(dtype, shape);
    const int64_t bytes = tensor.num_bytes();
    const int64_t tile = std::min(bytes, std::ssize(pool_) * dtype_size(dtype));
    for (int64_t i = 0; i < tile / dtype_size(dtype); ++i) {
      const float value = 0.02f * pool_[static_cast<std::size_t>(i)];
      if (dtype == DType::kF32) {
        tensor.as<float>()[i] = value;
      } else {
        tensor.as<uint16_t>()[i] =
            dtype == DType::kBF16 ? bf16_from_float(value) : f16_from_float(value);
      }
    }
    for (int64_t done = tile; done < bytes; done += tile) {
      std::memcpy(tensor.data() + done, tensor.data(),
                  static_cast<std::size_t>(std::min(tile, bytes - done)));
    }
    return tensor;
  }

  // Random codes under scales that give about the same deviation as dense weights.
  QuantizedMatrix quantized(int64_t rows, int64_t cols) const {
    QuantizedMatrix matrix = make_quantized_matrix(*weights_.format, rows, cols);
    auto* codes = matrix.codes.as<uint8_t>();
    for (int64_t done = 0; done < matrix.codes.size(); done += kPool) {
      std::memcpy(codes + done, bytes_.data(),
                  static_cast<std::size_t>(std::min(kPool, matrix.codes.size() - done)));
    }
    if (matrix.format.element == ElementType::kE4M3) {  // 0x7f and 0xff are NaN
      for (int64_t i = 0; i < matrix.codes.size(); ++i) codes[i] &= 0xbf;
    }
    const int64_t groups = rows * matrix.num_groups();
    switch (matrix.format.scale) {
      case ScaleType::kE8M0:
        std::memset(matrix.scales.data(), 127 - 7, static_cast<std::size_t>(groups));
        break;
      case ScaleType::kE4M3:  // 1 .. 1.875, over a global scale
        for (int64_t i = 0; i < groups; ++i) {
          matrix.scales.as<uint8_t>()[i] = static_cast<uint8_t>(0x38 + i % 8);
        }
        matrix.global_scale = 192;
        break;
      case ScaleType::kBF16:
        std::fill_n(matrix.scales.as<uint16_t>(), groups, bf16_from_float(0.004f));
        break;
      case ScaleType::kF32:
        std::fill_n(matrix.scales.as<float>(), groups, 0.01f);
        break;
      case ScaleType::kF16:
      case ScaleType::kLogLinear8:
        fail(ErrorCode::kUnsupported, "random weights in ", weight_format_name(matrix.format));
    }
    return matrix;
  }

  std::string path_;
  ModelConfig config_;
  RandomWeights weights_;
  ModelTensors tensors_;
  std::vector<float> pool_;
  std::vector<uint8_t> bytes_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_random_checkpoint(const std::string& directory,
                                                   const RandomWeights& weights) {
  const std::string file = directory + "/config.json";
  const MmapFile text(file);
  ModelConfig config = parse_hf_config(
      std::string(reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()), file);
  return std::make_unique<RandomCheckpoint>(directory, std::move(config), weights);
}

}  // namespace lathe
