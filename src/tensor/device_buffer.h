// Owning memory of the current CUDA device. Uninitialised; 256-byte aligned.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tensor/cuda_stream.h"

namespace lathe {

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // Throws kOutOfMemory with the size and what is free.
  explicit DeviceBuffer(int64_t num_bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  int64_t size() const { return size_; }
  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }
  // Grows to at least num_bytes, losing the content when it has to move (after a wait for the
  // device); never shrinks.
  void reserve(int64_t num_bytes);

  // A copy of host memory on the device; done at return.
  static DeviceBuffer from_host(const void* data, int64_t num_bytes);
  // Copies the first num_bytes back; done at return. Waits for `stream` first.
  void to_host(void* data, int64_t num_bytes, CudaStream stream = nullptr) const;

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// Bytes of a GPU that nobody has taken.
int64_t free_device_bytes(int device);

}  // namespace lathe
