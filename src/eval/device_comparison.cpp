#include "eval/device_comparison.h"

#include "tensor/copy_to_device.h"
#include "tensor/cuda_check.h"

namespace lathe {

void DeviceComparison::keep(const LogitStream& reference) {
  const int64_t num_bytes =
      reference.num_rows() * reference.vocab_size() * static_cast<int64_t>(sizeof(float));
  kept_rows_.reserve(num_bytes);
  cuda_check(cudaMemcpy(kept_rows_.data(), reference.device_rows(),
                        static_cast<std::size_t>(num_bytes), cudaMemcpyDeviceToDevice),
             "copying logits");
  // Within the device the copy above returns early, and the model's next step is on another stream.
  cuda_check(cudaStreamSynchronize(nullptr), "copying logits");
  kept_stream_ = &reference;
}

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
  const float* reference_rows = nullptr;
  if (reference != nullptr) {
    reference_rows = reference == kept_stream_ ? kept_rows_.as<float>() : reference->device_rows();
  }
  compare_logits_cuda({.reference = reference_rows,
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
