#include "formats/requantized_checkpoint.h"

#include "base/error.h"
#include "formats/checkpoint_view.h"
#include "quant/encode.h"

namespace lathe {
namespace {

class RequantizedCheckpoint final : public CheckpointView {
 public:
  RequantizedCheckpoint(const Checkpoint& source, const WeightFormat& format)
      : CheckpointView(source), format_(format) {}

  LinearWeights load_linear(const std::string& module, DType dense_dtype) const override {
    const bool is_layer = module.rfind("model.layers.", 0) == 0 && !module.ends_with(".mlp.gate");
    if (!is_layer) return source_.load_linear(module, dense_dtype);
    LinearWeights weights = source_.load_linear(module, DType::kF32);
    if (weights.quantized) {
      const QuantizedMatrix& matrix = *weights.quantized;
      if (bits_per_weight(matrix.format) <= bits_per_weight(format_) ||
          matrix.cols % format_.group_size != 0) {
        return weights;
      }
      std::vector<float> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
      dequantize_rows(matrix, 0, matrix.rows, values.data());
      weights.quantized = quantize_absmax(format_, values.data(), matrix.rows, matrix.cols);
    } else {
      const Shape& shape = weights.dense.shape();
      if (shape[1] % format_.group_size != 0) {
        return source_.load_linear(module, dense_dtype);
      }
      weights.quantized = quantize_absmax(format_, weights.dense.as<float>(), shape[0], shape[1]);
      weights.dense = Tensor();
    }
    weights.scheme.activations = ActivationFormat::kNone;
    return weights;
  }

 private:
  WeightFormat format_;
};

}  // namespace

std::unique_ptr<Checkpoint> requantized_checkpoint(const Checkpoint& source,
                                                   const WeightFormat& format) {
  auto copy = std::make_unique<RequantizedCheckpoint>(source, format);
  const LinearWeights first = source.load_linear("model.layers.0.self_attn.q_proj", DType::kBF16);
  const double bits = first.quantized ? bits_per_weight(first.quantized->format)
                                      : 8.0 * static_cast<double>(dtype_size(first.dense.dtype()));
  if (bits <= bits_per_weight(format)) {
    fail(ErrorCode::kInvalidArgument, source.path(), ": its weights have ", bits,
         " bits already; a copy in ", weight_format_name(format), " (", bits_per_weight(format),
         " bits) would be no faster");
  }
  return copy;
}

}  // namespace lathe
