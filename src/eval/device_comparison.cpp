#include "eval/device_comparison.h"

#include "tensor/copy_to_device.h"

namespace lathe {

std::span<const LogitComparison> DeviceComparison::compare(const LogitStream* reference,
                                                           const LogitStream& stream,
                                                           int64_t common) {
  const int64_t num_rows = stream.num_rows();
  targets_.clear();
  for (int64_t i = 0; i < num_rows; ++i) targets_.push_back(stream.target(i));
  results_.resize(static_cast<std::size_t>(num_rows));
  const auto target_bytes = num_rows * static_cast<int64_t>(sizeof(int32_t));
  const auto result_bytes = num_rows * static_cast<int64_t>(sizeof(LogitComparison));
  device_targets_.reserve(target_bytes);
  device_results_.reserve(result_bytes);
  copy_to_device(device_targets_.data(), targets_.data(), target_bytes);
  compare_logits_cuda({.reference = reference != nullptr ? reference->device_rows() : nullptr,
                       .reference_vocab = reference != nullptr ? reference->vocab_size() : 0,
                       .model = stream.device_rows(),
                       .model_vocab = stream.vocab_size(),
                       .common = common,
                       .targets = device_targets_.as<int32_t>(),
                       .num_rows = num_rows,
                       .out = device_results_.as<LogitComparison>()},
                      nullptr);
  device_results_.to_host(results_.data(), result_bytes);
  return results_;
}

}  // namespace lathe
