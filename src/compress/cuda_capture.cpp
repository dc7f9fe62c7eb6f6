#include "compress/cuda_capture.h"

#include <cstring>

#include "base/check.h"
#include "kernels/rms_norm/rms_norm.h"
#include "tensor/cuda_check.h"
#include "tensor/float16.h"

namespace lathe {

void CudaCaptureTap::on_projections(const void* qkv, CudaElement element, int64_t stride,
                                    int64_t rows, CudaStream stream) {
  LATHE_CHECK(element == CudaElement::kBF16 || element == CudaElement::kF32);
  const std::size_t size = element == CudaElement::kF32 ? sizeof(float) : sizeof(uint16_t);
  const int64_t width = 2 * config_.kv_size();  // keys, then values
  const auto num_values = static_cast<std::size_t>(rows * width);
  std::vector<std::byte> raw(num_values * size);
  cuda_check(
      cudaMemcpy2DAsync(
          raw.data(), static_cast<std::size_t>(width) * size,
          static_cast<const std::byte*>(qkv) + static_cast<std::size_t>(config_.q_size()) * size,
          static_cast<std::size_t>(stride) * size, static_cast<std::size_t>(width) * size,
          static_cast<std::size_t>(rows), cudaMemcpyDeviceToHost, stream),
      "copying keys and values");
  cuda_check(cudaStreamSynchronize(stream), "copying keys and values");
  std::vector<float> values(num_values);
  if (element == CudaElement::kF32) {
    std::memcpy(values.data(), raw.data(), raw.size());
  } else {
    const auto* bits = reinterpret_cast<const uint16_t*>(raw.data());
    for (std::size_t i = 0; i < num_values; ++i) values[i] = float_from_bf16(bits[i]);
  }
  if (!k_norm_.empty()) {
    rms_norm({.x = values.data(),
              .weight = k_norm_.as<float>(),
              .y = values.data(),
              .num_tokens = rows,
              .num_heads = config_.num_kv_heads,
              .norm_size = config_.head_dim,
              .x_stride = width,
              .y_stride = width,
              .eps = static_cast<float>(config_.rms_norm_eps)},
             exec_);
  }
  on_keys_values_(first_token_, values.data(), values.data() + config_.kv_size(), width, rows);
}

}  // namespace lathe
