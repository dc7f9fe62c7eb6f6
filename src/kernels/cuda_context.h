// A GPU as the kernels of one model use it: its stream, the cuBLAS handle and scratch memory.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tensor/cuda_stream.h"
#include "tensor/device_buffer.h"

struct cublasContext;

namespace lathe {

class Fp8Gemm;

// A stack of device memory in the manner of Workspace: allocations live until their Scope ends.
// Kernels on the context's one stream run in order, so memory may be given out again at once.
class DeviceWorkspace {
 public:
  class Scope {
   public:
    explicit Scope(DeviceWorkspace& workspace) : workspace_(workspace), mark_(workspace.used_) {}
    ~Scope() { workspace_.release_to(mark_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    DeviceWorkspace& workspace_;
    int64_t mark_;
  };

  // 256-byte aligned, uninitialised.
  std::byte* allocate(int64_t num_bytes);
  template <typename T>
  T* allocate_as(int64_t count) {
    return reinterpret_cast<T*>(allocate(count * static_cast<int64_t>(sizeof(T))));
  }
  // Changes when the memory has moved: what remembers addresses (a CUDA graph) is void then.
  int64_t generation() const { return generation_; }
  // From now on memory is taken and given back in the order of `stream`, without a wait for the
  // device: while the stream waits for another GPU, a wait for it could keep that GPU from what it
  // is waited for. release_all() must then come before the stream goes.
  void use_stream_order(CudaStream stream) { stream_ = stream; }
  void release_all();

 private:
  // Memory of the device, from the stream's pool or, without one, from cudaMalloc().
  class Block {
   public:
    Block() = default;
    Block(int64_t num_bytes, CudaStream stream);
    ~Block() { release(); }
    Block(Block&& other) noexcept;
    Block& operator=(Block&& other) noexcept;
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    std::byte* data() { return pooled_ != nullptr ? pooled_ : own_.data(); }
    int64_t size() const { return size_; }

   private:
    void release() noexcept;
    DeviceBuffer own_;
    std::byte* pooled_ = nullptr;
    CudaStream stream_ = nullptr;
    int64_t size_ = 0;
  };
  void release_to(int64_t mark);
  CudaStream stream_ = nullptr;
  Block arena_;
  std::vector<Block> overflow_;  // extra blocks while the arena is too small
  int64_t used_ = 0;
  int64_t high_water_ = 0;
  int64_t generation_ = 0;
};

// Throws kDevice when there is no driver or no such GPU.
void check_cuda_device(int device);

class CudaContext {
 public:
  // Makes `device` current for the calling thread. Throws kDevice when there is no driver, no such
  // GPU, or one that is older than Hopper (compute capability 9.0).
  explicit CudaContext(int device);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  int device() const { return device_; }
  int num_sms() const { return num_sms_; }
  const std::string& name() const { return name_; }  // "NVIDIA H200"
  CudaStream stream() const { return stream_; }
  DeviceWorkspace& workspace() { return workspace_; }
  // Sums in fp32; fp32 operands are not rounded to TF32.
  cublasContext* cublas() const { return cublas_; }
  Fp8Gemm& fp8_gemm();  // linear/gemm_fp8_cublaslt.h, made when first asked for
  // Makes the device current for this thread; a model may be run from another one than loaded it.
  void use() const;
  // Waits; throws kDevice when a kernel has failed.
  void synchronize() const;

 private:
  int device_;
  int num_sms_ = 0;
  std::string name_;
  CudaStream stream_ = nullptr;
  cublasContext* cublas_ = nullptr;
  DeviceBuffer cublas_workspace_;
  DeviceWorkspace workspace_;
  std::unique_ptr<Fp8Gemm> fp8_gemm_;
};

}  // namespace lathe
