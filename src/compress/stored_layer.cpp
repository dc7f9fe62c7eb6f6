#include "compress/stored_layer.h"

#include <cstring>
#include <set>
#include <span>
#include <utility>

#include "base/error.h"
#include "formats/hf_names.h"
#include "formats/model_tensors.h"
#include "quant/hadamard.h"

namespace lathe {
namespace {

// Decoded and rotated back: an ordinary weight, in fp32 so that nothing is rounded twice.
Tensor decoded_weight(const LinearWeights& weights) {
  const QuantizedMatrix& matrix = *weights.quantized;
  Tensor w(DType::kF32, {matrix.rows, matrix.cols});
  dequantize_rows(matrix, 0, matrix.rows, w.as<float>());
  hadamard_rows(w.as<float>(), matrix.rows, matrix.cols, weights.scheme.hadamard);
  return w;
}

// Parts one below the other. All have the same dtype and row size.
Tensor stack_rows(std::vector<Tensor> parts) {
  if (parts.size() == 1) return std::move(parts[0]);
  Shape shape = parts[0].shape();
  for (std::size_t i = 1; i < parts.size(); ++i) shape[0] += parts[i].dim(0);
  Tensor stacked(parts[0].dtype(), shape);
  auto* to = stacked.as<std::byte>();
  for (const Tensor& part : parts) {
    std::memcpy(to, part.data(), static_cast<std::size_t>(part.num_bytes()));
    to += part.num_bytes();
  }
  return stacked;
}

QuantizedMatrix stack_rows(std::span<const LayerLinear> parts) {
  const QuantizedMatrix& first = *parts[0].weights.quantized;
  int64_t rows = 0;
  for (const LayerLinear& part : parts) rows += part.slot.n;
  QuantizedMatrix stacked = make_quantized_matrix(first.format, rows, first.cols);
  stacked.global_scale = first.global_scale;  // the same in all: check_expressible()
  auto* codes = stacked.codes.as<uint8_t>();
  auto* scales = stacked.scales.as<uint8_t>();
  for (const LayerLinear& part : parts) {
    const QuantizedMatrix& matrix = *part.weights.quantized;
    std::memcpy(codes, matrix.codes.data(), static_cast<std::size_t>(matrix.codes.size()));
    std::memcpy(scales, matrix.scales.data(), static_cast<std::size_t>(matrix.scales.size()));
    codes += matrix.codes.size();
    scales += matrix.scales.size();
  }
  return stacked;
}

// The biases of linears that are one in the file; empty where they have none.
Tensor stacked_bias(std::span<const LayerLinear> parts) {
  std::vector<Tensor> biases;
  for (const LayerLinear& part : parts) {
    if (!part.weights.bias.empty()) biases.push_back(part.weights.bias.clone());
  }
  if (biases.empty()) return {};
  if (biases.size() != parts.size()) {
    fail(ErrorCode::kUnsupported, "'", parts[0].slot.module,
         "' and the linear layers stored with it: some have a bias, some have none");
  }
  return stack_rows(std::move(biases));
}

}  // namespace

void StoredTensors::add(const std::string& name, Tensor tensor) {
  tensors.push_back(std::move(tensor));
  dense.push_back({name, tensors.back().view()});
}

Tensor stored_gain(const Tensor& gain, const ModelConfig& config, DType store_dtype) {
  Tensor stored = gain.clone();
  if (config.norm_plus_one) {
    for (int64_t j = 0; j < stored.num_elements(); ++j) stored.as<float>()[j] -= 1.0f;
  }
  return convert(stored.view(), store_dtype);
}

StoredTensors stored_layer(const QuantizedLayer& layer, const Checkpoint& source, bool decoded,
                           DType store_dtype) {
  const ModelConfig& config = source.config();
  const auto stored_name = [&](const std::string& name) {
    return lathe::stored_name(name, config.architecture, source.decoder_prefix());
  };
  StoredTensors stored;
  std::set<std::string> written;  // names that the source has
  const std::vector<LayerLinear>& linears = layer.weights.linears;
  for (std::size_t begin = 0; begin < linears.size();) {
    const std::string module = stored_name(linears[begin].slot.module);
    std::size_t end = begin;
    std::vector<Tensor> weights;
    std::vector<QuantizedLinear> parts;
    for (; end < linears.size() && stored_name(linears[end].slot.module) == module; ++end) {
      const LayerLinear& linear = linears[end];
      written.insert(linear.slot.module + ".weight");
      written.insert(linear.slot.module + ".bias");
      if (decoded) weights.push_back(decoded_weight(linear.weights));
      parts.push_back({linear.slot.module, &*linear.weights.quantized, linear.weights.scheme});
    }
    const std::span group = std::span(linears).subspan(begin, end - begin);
    if (decoded) {
      stored.add(module + ".weight", stack_rows(std::move(weights)));
    } else if (parts.size() == 1) {
      stored.linears.push_back({module, parts[0].weight, parts[0].scheme});
    } else {
      check_expressible(parts);
      stored.matrices.push_back(stack_rows(group));
      stored.linears.push_back({module, &stored.matrices.back(), parts[0].scheme});
    }
    const Tensor bias = stacked_bias(group);
    if (!bias.empty()) stored.add(module + ".bias", convert(bias.view(), store_dtype));
    begin = end;
  }
  const std::string prefix = layer_prefix(layer.weights.layer);
  if (layer.gains_changed) {
    const auto add = [&](const std::string& name, Tensor tensor) {
      written.insert(prefix + name);
      stored.add(stored_name(prefix + name), std::move(tensor));
    };
    add("input_layernorm.weight", stored_gain(layer.weights.input_norm, config, store_dtype));
    add(config.sandwich_norms ? "pre_feedforward_layernorm.weight"
                              : "post_attention_layernorm.weight",
        stored_gain(layer.weights.mlp_norm, config, store_dtype));
    if (!layer.weights.router.empty()) {
      add("mlp.gate.weight", convert(layer.weights.router.view(), store_dtype));
    }
  }
  for (const std::string& name : source.tensor_names()) {
    if (!name.starts_with(prefix) || written.contains(name)) continue;
    stored.add(stored_name(name), source.load(name, store_dtype));
  }
  return stored;
}

}  // namespace lathe
