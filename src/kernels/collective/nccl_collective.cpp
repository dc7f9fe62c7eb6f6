#include "kernels/collective/nccl_collective.h"

#include <dlfcn.h>
#include <nccl.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "base/rank_threads.h"
#include "kernels/cuda_context.h"
#include "tensor/cuda_check.h"
#include "tensor/device_buffer.h"

namespace lathe {
namespace {

// What is used of NCCL. Never closed: it keeps threads.
struct Nccl {
  decltype(&ncclCommInitAll) comm_init_all;
  decltype(&ncclCommDestroy) comm_destroy;
  decltype(&ncclCommAbort) comm_abort;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) recv;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclGetErrorString) error_string;
  decltype(&ncclGetLastError) last_error;
};

Nccl open_nccl() {
  // On the loader's path, or where the toolkit had it at build time.
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
#ifdef LATHE_NCCL_LIBRARY
  if (library == nullptr) library = dlopen(LATHE_NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
#endif
  if (library == nullptr) {
    const char* reason = dlerror();
    fail(ErrorCode::kUnsupported, "--tensor-parallel needs NCCL's libnccl.so.2 (",
         reason != nullptr ? reason : "not found",
         "); install it, or name its directory in LD_LIBRARY_PATH");
  }
  const auto find = [&](const char* name, auto& function) {
    void* symbol = dlsym(library, name);
    if (symbol == nullptr) {
      fail(ErrorCode::kUnsupported, "libnccl.so.2 has no ", name, "; install NCCL 2.18 or newer");
    }
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
  Nccl nccl{};
  find("ncclCommInitAll", nccl.comm_init_all);
  find("ncclCommDestroy", nccl.comm_destroy);
  find("ncclCommAbort", nccl.comm_abort);
  find("ncclAllReduce", nccl.all_reduce);
  find("ncclSend", nccl.send);
  find("ncclRecv", nccl.recv);
  find("ncclGroupStart", nccl.group_start);
  find("ncclGroupEnd", nccl.group_end);
  find("ncclGetErrorString", nccl.error_string);
  find("ncclGetLastError", nccl.last_error);
  return nccl;
}

const Nccl& nccl() {
  static const Nccl opened = open_nccl();  // throws again at the next call when it could not
  return opened;
}

void check(ncclResult_t result, const char* what) {
  if (result == ncclSuccess) return;
  const char* last = nccl().last_error(nullptr);
  const bool has_last = last != nullptr && *last != '\0';
  fail(ErrorCode::kDevice, "NCCL, ", what, ": ", nccl().error_string(result), has_last ? ": " : "",
       has_last ? last : "");
}

// What the ranks share.
struct Clique {
  explicit Clique(int size)
      : rendezvous(size),
        comms(static_cast<std::size_t>(size)),
        mutexes(static_cast<std::size_t>(size)) {}
  Rendezvous rendezvous;
  std::vector<ncclComm_t> comms;
  // Held while a rank enqueues: a communicator is not aborted under a call, nor used behind that.
  std::vector<std::mutex> mutexes;
  std::atomic<bool> aborted{false};
};

ncclDataType_t data_type(DType dtype) {
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    fail(ErrorCode::kInternal, "a sum of ", dtype_name(dtype), " numbers over GPUs");
  }
  return dtype == DType::kF32 ? ncclFloat32 : ncclBfloat16;
}

class NcclCollective final : public Collective {
 public:
  NcclCollective(int rank, std::shared_ptr<Clique> clique)
      : rank_(rank), clique_(std::move(clique)) {}
  ~NcclCollective() override {
    if (!clique_->aborted) nccl().comm_destroy(comm());
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(clique_->comms.size()); }

  void all_reduce_sum(void* values, int64_t count, DType dtype, CudaStream stream) override {
    if (count == 0) return;
    enqueue("sum over the GPUs", [&] {
      return nccl().all_reduce(values, values, static_cast<std::size_t>(count), data_type(dtype),
                               ncclSum, comm(), stream);
    });
  }
  void send(const float* values, int64_t count, CudaStream stream) override {
    if (count == 0) return;
    enqueue("sending to the first GPU", [&] {
      return nccl().send(values, static_cast<std::size_t>(count), ncclFloat32, 0, comm(), stream);
    });
  }
  void receive(std::span<const Part> parts, CudaStream stream) override {
    enqueue("receiving from the other GPUs", [&] {
      ncclResult_t result = nccl().group_start();
      for (std::size_t i = 0; i < parts.size() && result == ncclSuccess; ++i) {
        if (parts[i].count == 0) continue;
        result = nccl().recv(parts[i].values, static_cast<std::size_t>(parts[i].count), ncclFloat32,
                             static_cast<int>(i) + 1, comm(), stream);
      }
      const ncclResult_t end = nccl().group_end();
      return result == ncclSuccess ? end : result;
    });
  }

  bool agree(bool mine) override { return clique_->rendezvous.wait(mine); }

  void abort() noexcept override {
    if (clique_->aborted.exchange(true)) return;
    clique_->rendezvous.abort();
    // Kernels that wait for the failed rank end, so that their streams can be waited for.
    for (std::size_t i = 0; i < clique_->comms.size(); ++i) {
      const std::lock_guard lock(clique_->mutexes[i]);
      nccl().comm_abort(clique_->comms[i]);
    }
  }

 private:
  ncclComm_t comm() const { return clique_->comms[static_cast<std::size_t>(rank_)]; }

  template <typename Call>
  void enqueue(const char* what, const Call& call) {
    const std::lock_guard lock(clique_->mutexes[static_cast<std::size_t>(rank_)]);
    if (clique_->aborted) fail(ErrorCode::kCanceled, "another rank has failed");
    check(call(), what);
  }

  int rank_;
  std::shared_ptr<Clique> clique_;
};

// One sum and one part from each, started for all ranks by this thread: connections are made now,
// while all GPUs are known to be there, and not inside a step.
void try_out(std::vector<std::unique_ptr<Collective>>& collectives, int first_device) {
  constexpr int64_t kCount = 1024;
  std::vector<DeviceBuffer> buffers;
  const std::vector<float> ones(kCount, 1.0f);
  const auto use = [&](std::size_t rank) {
    const int device = first_device + static_cast<int>(rank);
    cuda_check(cudaSetDevice(device), "using GPU ", device);
  };
  for (std::size_t rank = 0; rank < collectives.size(); ++rank) {
    use(rank);
    buffers.push_back(DeviceBuffer::from_host(ones.data(), kCount * 4));
  }
  check(nccl().group_start(), "starting");
  for (std::size_t rank = 0; rank < collectives.size(); ++rank) {
    use(rank);
    collectives[rank]->all_reduce_sum(buffers[rank].data(), kCount, DType::kF32, nullptr);
  }
  check(nccl().group_end(), "a first sum");
  use(0);
  std::vector<DeviceBuffer> received;
  std::vector<Collective::Part> parts;
  for (std::size_t rank = 1; rank < collectives.size(); ++rank) {
    received.push_back(DeviceBuffer::from_host(ones.data(), kCount * 4));
    parts.push_back({received.back().as<float>(), kCount});
  }
  check(nccl().group_start(), "starting");
  for (std::size_t rank = 0; rank < collectives.size(); ++rank) {
    use(rank);
    if (rank == 0) {
      collectives[rank]->receive(parts, nullptr);
    } else {
      collectives[rank]->send(buffers[rank].as<float>(), kCount, nullptr);
    }
  }
  check(nccl().group_end(), "a first exchange");
  use(0);
  const auto expected = static_cast<float>(collectives.size());
  for (const DeviceBuffer& part : received) {
    std::vector<float> sums(kCount);
    part.to_host(sums.data(), kCount * 4);
    for (const float sum : sums) {
      if (sum == expected) continue;
      fail(ErrorCode::kDevice, "NCCL added ", collectives.size(), " ones over the GPUs to ", sum);
    }
  }
  for (std::size_t rank = 0; rank < collectives.size(); ++rank) {
    use(rank);
    cuda_check(cudaDeviceSynchronize(), "waiting for GPU ", first_device + static_cast<int>(rank));
    buffers[rank] = DeviceBuffer();
  }
  use(0);
}

}  // namespace

std::vector<std::unique_ptr<Collective>> make_nccl_collectives(int first_device, int size) {
  setenv("NCCL_NVLS_ENABLE", "0", 1);
  // Registering buffers of a captured graph would have to happen on all ranks at once.
  setenv("NCCL_GRAPH_REGISTER", "0", 1);
  setenv("NCCL_RUNTIME_CONNECT", "0", 1);  // all connections now
  // Steps end before the next begins, so launches of graphs and others never overlap.
  setenv("NCCL_GRAPH_MIXING_SUPPORT", "0", 1);
  setenv("CUDA_MODULE_LOADING", "EAGER", 0);
  std::vector<int> devices;
  for (int rank = 0; rank < size; ++rank) {
    devices.push_back(first_device + rank);
    check_cuda_device(devices.back());
  }
  const auto clique = std::make_shared<Clique>(size);
  check(nccl().comm_init_all(clique->comms.data(), size, devices.data()), "connecting the GPUs");
  std::vector<std::unique_ptr<Collective>> collectives;
  for (int rank = 0; rank < size; ++rank) {
    collectives.push_back(std::make_unique<NcclCollective>(rank, clique));
  }
  try_out(collectives, first_device);
  return collectives;
}

}  // namespace lathe
