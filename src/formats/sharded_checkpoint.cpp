#include "formats/sharded_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "formats/checkpoint_view.h"
#include "quant/weight_slice.h"

namespace lathe {
namespace {

// Every rank but the last has a multiple of so many rows of the output head, which kernels like.
constexpr int64_t kVocabularyUnit = 16;

struct Range {
  int64_t begin;
  int64_t end;
};

Tensor slice(const Tensor& tensor, const Range& rows, const Range& cols) {
  const int64_t element = dtype_size(tensor.dtype());
  const int64_t row_bytes = tensor.num_elements() / tensor.dim(0) * element;
  const int64_t part_bytes = (cols.end - cols.begin) * element;
  Shape shape = tensor.shape();
  shape.front() = rows.end - rows.begin;
  if (shape.size() > 1) shape.back() = cols.end - cols.begin;
  Tensor part(tensor.dtype(), std::move(shape));
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    std::memcpy(part.data() + (row - rows.begin) * part_bytes,
                tensor.data() + row * row_bytes + cols.begin * element,
                static_cast<std::size_t>(part_bytes));
  }
  return part;
}

LinearWeights slice_outputs(LinearWeights weights, const Range& rows) {
  if (weights.quantized) {
    weights.quantized = slice_rows(*weights.quantized, rows.begin, rows.end);
  } else {
    weights.dense = slice(weights.dense, rows, {0, weights.dense.dim(1)});
  }
  if (!weights.bias.empty()) weights.bias = slice(weights.bias, rows, {0, 1});
  return weights;
}

// The input features that belong together: those of a scale's group, of a rotated block, of a
// group of quantized activations.
int64_t input_unit(const LinearWeights& weights) {
  const int64_t group = weights.quantized ? weights.quantized->format.group_size : 1;
  int64_t unit = std::max({group, weights.scheme.hadamard, int64_t{1}});
  switch (weights.scheme.activations) {
    case ActivationFormat::kNone:
    case ActivationFormat::kFp8:
      return unit;
    case ActivationFormat::kInt8:
      return std::max(unit, group == 16 ? int64_t{16} : int64_t{32});
    case ActivationFormat::kNvfp4:
      return std::max(unit, int64_t{16});
    case ActivationFormat::kMxfp4:
    case ActivationFormat::kMxfp8:
      return std::max(unit, int64_t{32});
  }
  return unit;
}

class ShardedCheckpoint final : public CheckpointView {
 public:
  ShardedCheckpoint(const Checkpoint& source, const Shard& shard)
      : CheckpointView(source), shard_(shard), config_(shard_config(source.config(), shard.size)) {}

  const ModelConfig& config() const override { return config_; }

  LinearWeights load_linear(const std::string& module, DType dense_dtype) const override {
    LinearWeights whole = source_.load_linear(module, dense_dtype);
    const std::string_view name = std::string_view(module).substr(module.rfind('.') + 1);
    if (name == "q_proj") return slice_outputs(std::move(whole), part_of(config_.q_size()));
    if (name == "k_proj" || name == "v_proj") return slice_outputs(std::move(whole), kv_rows());
    if (name == "gate_proj" || name == "up_proj") {
      return slice_outputs(std::move(whole), part_of(mlp_size(module)));
    }
    if (name == "o_proj") {
      return slice_inputs(module, std::move(whole), part_of(config_.q_size()));
    }
    if (name == "down_proj") {
      return slice_inputs(module, std::move(whole), part_of(mlp_size(module)));
    }
    if (name == "lm_head") {
      const VocabularyRange range = vocabulary_range(config_.vocab_size, shard_);
      return slice_outputs(std::move(whole), {range.begin, range.end});
    }
    return whole;
  }

 private:
  Range part_of(int64_t size) const { return {shard_.rank * size, (shard_.rank + 1) * size}; }
  int64_t mlp_size(const std::string& module) const {
    return module.find(".experts.") != std::string::npos ? config_.moe_intermediate_size
                                                         : config_.intermediate_size;
  }
  Range kv_rows() const {
    const int64_t heads = source_.config().num_kv_heads;
    // The first of the rank's; the same for neighbours where they share one.
    const int64_t head = shard_.rank * heads / shard_.size;
    return {head * config_.head_dim, (head + config_.num_kv_heads) * config_.head_dim};
  }

  LinearWeights slice_inputs(const std::string& module, LinearWeights weights,
                             const Range& cols) const {
    const int64_t size = cols.end - cols.begin;
    const int64_t unit = input_unit(weights);
    if (size % unit != 0) {
      fail(ErrorCode::kUnsupported, module, " over ", shard_.size, " ranks: the ", size,
           " input features of each would cut ",
           weights.scheme.hadamard == unit ? "a rotated block" : "a group", " of ", unit,
           "; take fewer ranks (--tensor-parallel), or quantize with smaller ones");
    }
    if (weights.quantized) {
      weights.quantized = slice_columns(*weights.quantized, cols.begin, cols.end);
    } else {
      weights.dense = slice(weights.dense, {0, weights.dense.dim(0)}, cols);
    }
    if (shard_.rank != 0) weights.bias = Tensor();
    return weights;
  }

  Shard shard_;
  ModelConfig config_;
};

}  // namespace

ModelConfig shard_config(const ModelConfig& config, int size) {
  ModelConfig part = config;
  // The numbers of ranks that every size allows.
  const auto splits = [&](int64_t n) {
    const bool kv = config.num_kv_heads % n == 0 || n % config.num_kv_heads == 0;
    const bool experts = config.num_experts == 0 || config.moe_intermediate_size % n == 0;
    return config.num_heads % n == 0 && kv && config.intermediate_size % n == 0 && experts &&
           config.vocab_size >= n * kVocabularyUnit;
  };
  if (size < 1 || !splits(size)) {
    std::string able = "1";
    for (int64_t n = 2; n <= std::min<int64_t>(config.num_heads, 64); ++n) {
      if (splits(n)) able += str(", ", n);
    }
    fail(ErrorCode::kUnsupported, config.num_heads, " heads, ", config.num_kv_heads,
         " KV heads and an MLP of ",
         config.num_experts > 0 ? config.moe_intermediate_size : config.intermediate_size,
         " cannot be split over ", size, " ranks; --tensor-parallel can be ", able);
  }
  part.num_heads /= size;
  part.num_kv_heads = std::max<int64_t>(part.num_kv_heads / size, 1);
  part.intermediate_size /= size;
  part.moe_intermediate_size /= size;
  return part;
}

VocabularyRange vocabulary_range(int64_t vocab_size, const Shard& shard) {
  const auto boundary = [&](int64_t rank) {
    if (rank == shard.size) return vocab_size;
    return vocab_size * rank / shard.size / kVocabularyUnit * kVocabularyUnit;
  };
  return {boundary(shard.rank), boundary(shard.rank + 1)};
}

std::unique_ptr<Checkpoint> sharded_checkpoint(const Checkpoint& source, const Shard& shard) {
  return std::make_unique<ShardedCheckpoint>(source, shard);
}

}  // namespace lathe
