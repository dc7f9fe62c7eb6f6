// Owning, aligned, uninitialised host memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace lathe {

class Buffer {
 public:
  Buffer() = default;
  // 64-byte aligned; blocks of 2 MiB and more are page-aligned with huge-page advice. Throws
  // kOutOfMemory with the size; kInvalidArgument when negative.
  explicit Buffer(int64_t num_bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

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
  Buffer clone() const;
  // Grows to at least num_bytes, losing the content when it has to move; never shrinks.
  void reserve(int64_t num_bytes);

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace lathe
