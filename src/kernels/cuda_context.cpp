#include "kernels/cuda_context.h"

#include <cublas_v2.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kernels/linear/gemm_fp8_cublaslt.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

// What NVIDIA recommends for Hopper; given explicitly, so that cuBLAS allocates nothing while a
// graph is being captured.
constexpr int64_t kCublasWorkspaceBytes = int64_t{32} << 20;

}  // namespace

void check_cuda_device(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice || count == 0) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) {
      fail(ErrorCode::kDevice, "this machine has no NVIDIA driver; use --device cpu");
    }
    fail(ErrorCode::kDevice, "no GPU can be used (", cudaGetErrorString(status),
         "; the driver is for CUDA ", driver / 1000, ".", driver % 1000 / 10,
         "); use --device cpu");
  }
  cuda_check(status, "looking for GPUs");
  if (device < 0 || device >= count) {
    fail(ErrorCode::kDevice, "there is no GPU ", device, "; this machine has ", count,
         ", counted from 0");
  }
}

DeviceWorkspace::Block::Block(int64_t num_bytes, CudaStream stream)
    : stream_(stream), size_(num_bytes) {
  if (stream == nullptr) {
    own_ = DeviceBuffer(num_bytes);
    return;
  }
  void* data = nullptr;
  const cudaError_t status = cudaMallocAsync(&data, static_cast<std::size_t>(num_bytes), stream);
  if (status == cudaErrorMemoryAllocation) cudaGetLastError();  // later launches must not report it
  cuda_check(status, "scratch memory of ", num_bytes >> 20, " MiB on the GPU");
  pooled_ = static_cast<std::byte*>(data);
}

DeviceWorkspace::Block::Block(Block&& other) noexcept
    : own_(std::move(other.own_)),
      pooled_(std::exchange(other.pooled_, nullptr)),
      stream_(other.stream_),
      size_(std::exchange(other.size_, 0)) {}

DeviceWorkspace::Block& DeviceWorkspace::Block::operator=(Block&& other) noexcept {
  if (this == &other) return *this;
  release();
  own_ = std::move(other.own_);
  pooled_ = std::exchange(other.pooled_, nullptr);
  stream_ = other.stream_;
  size_ = std::exchange(other.size_, 0);
  return *this;
}

void DeviceWorkspace::Block::release() noexcept {
  if (pooled_ != nullptr) cudaFreeAsync(std::exchange(pooled_, nullptr), stream_);
}

void DeviceWorkspace::release_all() {
  overflow_.clear();
  arena_ = Block();
}

std::byte* DeviceWorkspace::allocate(int64_t num_bytes) {
  LATHE_CHECK(num_bytes >= 0);
  const int64_t padded = (num_bytes + 255) / 256 * 256;
  const int64_t offset = used_;
  used_ += padded;
  high_water_ = std::max(high_water_, used_);
  if (used_ <= arena_.size()) return arena_.data() + offset;
  overflow_.emplace_back(std::max<int64_t>(padded, 256), stream_);
  return overflow_.back().data();
}

void DeviceWorkspace::release_to(int64_t mark) {
  used_ = mark;
  if (used_ > 0 || overflow_.empty()) return;
  release_all();  // cudaFree waits for the kernels that still use the memory
  arena_ = Block(high_water_ + high_water_ / 8, stream_);
  ++generation_;
}

CudaContext::CudaContext(int device) : device_(device) {
  check_cuda_device(device);
  cuda_check(cudaSetDevice(device), "using GPU ", device);
  cudaDeviceProp properties{};
  cuda_check(cudaGetDeviceProperties(&properties, device), "reading what GPU ", device, " is");
  name_ = properties.name;
  num_sms_ = properties.multiProcessorCount;
  if (properties.major != 9) {
    fail(ErrorCode::kDevice, "GPU ", device, " is an ", name_, " (compute capability ",
         properties.major, ".", properties.minor,
         "); lathe's kernels are for Hopper (9.0: H100, H200); use --device cpu");
  }
  cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
  if (cublasCreate(&cublas_) != CUBLAS_STATUS_SUCCESS) {
    cudaStreamDestroy(stream_);
    fail(ErrorCode::kDevice, "cuBLAS could not be started on GPU ", device);
  }
  cublas_workspace_ = DeviceBuffer(kCublasWorkspaceBytes);
  cublasSetStream(cublas_, stream_);
  cublasSetWorkspace(cublas_, cublas_workspace_.data(), kCublasWorkspaceBytes);
  cublasSetMathMode(cublas_, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
}

Fp8Gemm& CudaContext::fp8_gemm() {
  if (fp8_gemm_ == nullptr) fp8_gemm_ = std::make_unique<Fp8Gemm>(*this);
  return *fp8_gemm_;
}

CudaContext::~CudaContext() {
  workspace_.release_all();
  fp8_gemm_ = nullptr;
  cublasDestroy(cublas_);
  cudaStreamDestroy(stream_);
}

void CudaContext::use() const { cuda_check(cudaSetDevice(device_), "using GPU ", device_); }

void CudaContext::synchronize() const {
  cuda_check(cudaStreamSynchronize(stream_), "running on ", name_);
}

}  // namespace lathe
