#include "cli/linear_speed_weight.h"

#include "base/rng.h"
#include "quant/encode.h"

namespace lathe {

std::vector<float> repeated_normal(int64_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> pool(10007);
  for (float& value : pool) value = static_cast<float>(rng.normal());
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = pool[i % pool.size()];
  return values;
}

RandomLinear make_random_linear(const std::string& name, const LinearShape& shape) {
  RandomLinear weight;
  const auto slash = name.find('/');
  const std::string format = name.substr(0, slash);
  const std::string activations = slash == std::string::npos ? "" : name.substr(slash + 1);
  const auto w = repeated_normal(shape.n * shape.k, 1);
  if (format == "bf16" || format == "f16" || format == "f32") {
    const TensorView view{
        DType::kF32, {shape.n, shape.k}, reinterpret_cast<const std::byte*>(w.data())};
    weight.dense = convert(view, format == "bf16"  ? DType::kBF16
                                 : format == "f16" ? DType::kF16
                                                   : DType::kF32);
  } else {
    weight.quantized = quantize_absmax(weight_format_from_name(format), w.data(), shape.n, shape.k);
  }
  if (activations == "f32") {
    weight.compute = ComputeType::kF32;
  } else if (!activations.empty()) {
    weight.scheme.activations = activation_format_from_name(activations);
  }
  return weight;
}

}  // namespace lathe
