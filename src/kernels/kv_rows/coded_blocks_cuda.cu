#include "kernels/kv_rows/coded_blocks_cuda.h"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = static_cast<int>(kBlockSize);

__global__ void layer_tables_kernel(const int32_t* entries, int64_t count, int64_t num_rebuilt,
                                    int64_t live_per_layer, int32_t* tables) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t layer = blockIdx.y;
  const int64_t entry = entries[i];
  const int64_t id = entry < num_rebuilt ? entry : entry + layer * live_per_layer;
  tables[layer * count + i] = static_cast<int32_t>(id);
}

// blockIdx.x, + gridDim.x, ...: pairs; y: KV heads; z: keys or values.
template <typename T>
__global__ void copy_tokens_kernel(CopyTokensCudaArgs args) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int head_dim = static_cast<int>(args.head_dim);
  const int64_t head = blockIdx.y;
  T* plane = static_cast<T*>(blockIdx.z == 0 ? args.layer.keys : args.layer.values);
  const auto head_at = [&](int64_t block) {
    return plane + (block * args.num_heads + head) * kBlock * head_dim;
  };
  const int count = *args.count;
  for (int pair = static_cast<int>(blockIdx.x); pair < count; pair += static_cast<int>(gridDim.x)) {
    const T* from = head_at(args.first_block + args.from[pair]);
    T* to = head_at(args.to[pair]);
    for (int i = static_cast<int>(threadIdx.x); i < args.tokens[pair] * head_dim; i += kThreads) {
      const int at = kv_cuda_offset(args.layer.element, head_dim, i / head_dim, i % head_dim);
      to[at] = from[at];
    }
  }
}

}  // namespace

void layer_tables_cuda(const int32_t* entries, int64_t count, int64_t num_layers,
                       int64_t num_rebuilt, int64_t live_per_layer, int32_t* tables,
                       CudaStream stream) {
  if (count == 0) return;
  const dim3 grid(static_cast<unsigned>((count + kThreads - 1) / kThreads),
                  static_cast<unsigned>(num_layers));
  launch_dependent("layer_tables", layer_tables_kernel, grid, dim3(kThreads), 0, stream, 1, entries,
                   count, num_rebuilt, live_per_layer, tables);
}

void copy_tokens_cuda(const CopyTokensCudaArgs& args, CudaStream stream) {
  if (kv_cuda_is_coded(args.layer.element)) {
    fail(ErrorCode::kInvalidArgument, "copying tokens on the GPU: codes of a block are no numbers");
  }
  constexpr unsigned kPairs = 8;  // at once: one for each sequence of a usual step
  const dim3 grid(kPairs, static_cast<unsigned>(args.num_heads), 2);
  const int64_t size = kv_cuda_element_size(args.layer.element);
  launch_dependent("copy_tokens",
                   size == 4   ? copy_tokens_kernel<uint32_t>
                   : size == 2 ? copy_tokens_kernel<uint16_t>
                               : copy_tokens_kernel<uint8_t>,
                   grid, dim3(kThreads), 0, stream, 1, args);
}

}  // namespace lathe
