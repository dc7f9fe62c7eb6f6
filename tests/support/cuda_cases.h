// What the tests of GPU kernels share: is there a GPU, and arrays on it that start out as NaNs with
// guard bytes behind them.
#pragma once
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tensor/device_buffer.h"
#include "tensor/float16.h"

// At the top of a test: ends it as skipped where no GPU can run the kernels.
#define LATHE_NEEDS_GPU()                                                           \
  do {                                                                              \
    if (!::lathe::has_hopper()) GTEST_SKIP() << "no GPU of compute capability 9.0"; \
  } while (false)

namespace lathe {

inline bool has_hopper() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return false;
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  return major == 9;
}

// 0xff bytes: NaN as fp32, bf16, fp16 and E4M3, -1 as an integer.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(count), buffer_(bytes() + kGuardBytes) { poison(); }
  explicit DeviceArray(const std::vector<T>& content)
      : DeviceArray(static_cast<int64_t>(content.size())) {
    if (content.empty()) return;
    EXPECT_EQ(cudaMemcpy(buffer_.data(), content.data(), content.size() * sizeof(T),
                         cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  void poison() {
    EXPECT_EQ(cudaMemset(buffer_.data(), 0xff, static_cast<std::size_t>(buffer_.size())),
              cudaSuccess);
  }
  T* data() { return buffer_.as<T>(); }
  int64_t size() const { return count_; }
  // Waits for the device. Fails the test when something was written behind the array.
  std::vector<T> host() const {
    std::vector<std::byte> raw(static_cast<std::size_t>(buffer_.size()));
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    buffer_.to_host(raw.data(), buffer_.size());
    EXPECT_TRUE(std::all_of(raw.begin() + bytes(), raw.end(), [](std::byte b) {
      return b == std::byte{0xff};
    })) << "written behind the end";
    std::vector<T> values(static_cast<std::size_t>(count_));
    if (count_ > 0) std::memcpy(values.data(), raw.data(), static_cast<std::size_t>(bytes()));
    return values;
  }

 private:
  static constexpr int64_t kGuardBytes = 256;
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }
  int64_t count_;
  DeviceBuffer buffer_;
};

inline std::vector<uint16_t> to_bf16(const std::vector<float>& values) {
  std::vector<uint16_t> result;
  for (const float value : values) result.push_back(bf16_from_float(value));
  return result;
}

inline std::vector<float> from_bf16(const std::vector<uint16_t>& values) {
  std::vector<float> result;
  for (const uint16_t value : values) result.push_back(float_from_bf16(value));
  return result;
}

}  // namespace lathe
