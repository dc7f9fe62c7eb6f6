#include "tensor/device_buffer.h"

#include <utility>

#include "tensor/copy_to_device.h"
#include "tensor/cuda_check.h"

namespace lathe {

DeviceBuffer::DeviceBuffer(int64_t num_bytes) {
  if (num_bytes < 0) fail(ErrorCode::kInvalidArgument, "a device buffer of ", num_bytes, " bytes");
  if (num_bytes == 0) return;
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<std::size_t>(num_bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // this error does not stick; later launches must not report it
    std::size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    fail(ErrorCode::kOutOfMemory, "the GPU has no room for ", num_bytes >> 20, " MiB more (",
         free_bytes >> 20, " of ", total_bytes >> 20, " MiB free)");
  }
  cuda_check(status, "allocating ", num_bytes, " bytes on the GPU");
  data_ = static_cast<std::byte*>(data);
  size_ = num_bytes;
}

int64_t free_device_bytes(int device) {
  int before = 0;
  cuda_check(cudaGetDevice(&before), "asking which GPU is in use");
  cuda_check(cudaSetDevice(device), "using GPU ", device);
  std::size_t free_bytes = 0, total_bytes = 0;
  cuda_check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free memory of GPU ",
             device);
  cuda_check(cudaSetDevice(before), "using GPU ", before);
  return static_cast<int64_t>(free_bytes);
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  if (this == &other) return *this;
  if (data_ != nullptr) cudaFree(data_);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

void DeviceBuffer::reserve(int64_t num_bytes) {
  if (num_bytes <= size_) return;
  *this = DeviceBuffer();  // cudaFree waits for the kernels that still use the memory
  *this = DeviceBuffer(num_bytes);
}

DeviceBuffer DeviceBuffer::from_host(const void* data, int64_t num_bytes) {
  DeviceBuffer buffer(num_bytes);
  copy_to_device(buffer.data(), data, num_bytes);
  return buffer;
}

void DeviceBuffer::to_host(void* data, int64_t num_bytes, CudaStream stream) const {
  cuda_check(cudaStreamSynchronize(stream), "waiting for the GPU");
  if (num_bytes == 0) return;
  cuda_check(cudaMemcpy(data, data_, static_cast<std::size_t>(num_bytes), cudaMemcpyDeviceToHost),
             "copying ", num_bytes, " bytes from the GPU");
}

}  // namespace lathe
