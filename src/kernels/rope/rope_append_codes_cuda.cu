// Norm, rotation and a cache of codes: a warp for each row and head, the head in shared memory.
#include <cuda_bf16.h>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/kv_encode_cuda.cuh"
#include "kernels/attention/kv_rotate_cuda.cuh"
#include "tensor/cuda_launch.cuh"
#include "tensor/cuda_numbers.cuh"

namespace lathe {
namespace {

constexpr int kWarps = 8;
constexpr int kMaxHeadDim = 256;

// RMSNorm with a gain, less an offset (null: without either), then the rotation by position, on one
// head in shared memory.
__device__ void norm_and_rope(float* head, const float* gain, const float* offset,
                              const RopeAppendArgs& args, int64_t row, int lane) {
  const int head_dim = static_cast<int>(args.head_dim);
  if (gain != nullptr) {
    float sum_sq = 0;
    for (int dim = lane; dim < head_dim; dim += 32) sum_sq += head[dim] * head[dim];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      sum_sq += __shfl_xor_sync(0xffffffffu, sum_sq, offset);
    }
    const float scale = 1 / sqrtf(sum_sq / static_cast<float>(head_dim) + args.eps);
    for (int dim = lane; dim < head_dim; dim += 32) head[dim] *= scale * gain[dim];
    __syncwarp();
  }
  if (offset != nullptr) {
    for (int dim = lane; dim < head_dim; dim += 32) head[dim] -= offset[dim];
    __syncwarp();
  }
  const int half = static_cast<int>(args.rotary_dim) / 2;
  rope_head(head, args.cos + row * half, args.sin + row * half, half, lane);
}

// KeyOffsetCuda::products of one query, turned by its position.
__device__ void store_products(const float* q, const float* offset, int head_dim, int rotary_dim,
                               float* out, int lane) {
  float rest = 0;  // of dims that do not turn
  for (int dim = rotary_dim + lane; dim < head_dim; dim += 32) rest += q[dim] * offset[dim];
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) rest += __shfl_xor_sync(0xffffffffu, rest, mask);
  const int pairs = rotary_dim / 2;
  for (int j = lane; j < head_dim / 2; j += 32) {
    float c = j == pairs ? rest : 0, s = 0;
    if (j < pairs) {
      c = q[j] * offset[j] + q[j + pairs] * offset[j + pairs];
      s = q[j + pairs] * offset[j] - q[j] * offset[j + pairs];
    }
    out[j] = c, out[head_dim / 2 + j] = s;
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarps * 32)
    rope_append_codes_kernel(RopeAppendArgs args, CudaBatch batch, KvCudaLayer layer) {
  __shared__ float heads[kWarps][kMaxHeadDim];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int num_heads = static_cast<int>(args.num_heads);
  const int num_kv_heads = static_cast<int>(args.num_kv_heads);
  const int head_dim = static_cast<int>(args.head_dim);
  const int num_slots = num_heads + 2 * num_kv_heads;
  const int64_t slot_idx = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  const int64_t row = slot_idx / num_slots;
  if (row >= batch.num_rows) return;
  const int slot = static_cast<int>(slot_idx % num_slots);
  const int sequence = batch.row_sequence[row];
  if (sequence < 0) return;
  const bool is_q = slot < num_heads;
  const bool is_v = slot >= num_heads + num_kv_heads;
  T* x = static_cast<T*>(args.qkv) + row * args.stride + static_cast<int64_t>(slot) * head_dim;
  float* head = heads[warp];
  const float* offset = nullptr;
  if (args.key_offset != nullptr && !is_v) {
    offset =
        args.key_offset + (is_q ? slot / (num_heads / num_kv_heads) : slot - num_heads) * head_dim;
  }
  for (int dim = lane; dim < head_dim; dim += 32) head[dim] = to_float(x[dim]);
  __syncwarp();
  if (!is_v) {
    norm_and_rope(head, is_q ? args.q_norm : args.k_norm, is_q ? nullptr : offset, args, row, lane);
  }
  if (is_q && offset != nullptr && args.offset_products != nullptr) {
    store_products(head, offset, head_dim, static_cast<int>(args.rotary_dim),
                   args.offset_products + (row * num_heads + slot) * head_dim, lane);
  }
  rotate_head(head, head_dim, lane);
  if (is_q) {
    for (int dim = lane; dim < head_dim; dim += 32) store(x + dim, head[dim]);
    return;
  }
  const int position = batch.positions[row];
  const auto head_of = [&](int64_t block) {
    const int64_t at = block * num_kv_heads + (slot - num_heads - (is_v ? num_kv_heads : 0));
    return static_cast<uint8_t*>(is_v ? layer.values : layer.keys) +
           at * kv_cuda_head_bytes(layer.element, head_dim);
  };
  if (batch.sink_blocks != nullptr && position < static_cast<int>(kLiveSinks)) {
    store_sink(head, head_dim, position, head_of(batch.sink_blocks[sequence]), lane);
  }
  const int64_t block = batch.block_tables[sequence * batch.table_stride + position / kBlockSize];
  encode_head(head, head_dim, is_v, position % static_cast<int>(kBlockSize), *layer.grid,
              head_of(block), lane);
}

}  // namespace

void rope_append_codes_cuda(const RopeAppendArgs& args, const CudaBatch& batch,
                            const KvCudaLayer& layer, CudaStream stream) {
  if (args.head_dim % 8 != 0 || layer.grid == nullptr) {
    fail(ErrorCode::kInvalidArgument, "rope_append on the GPU: codes of head_dim ", args.head_dim,
         " (multiples of 8), or without their grid");
  }
  if (args.key_offset != nullptr && args.num_heads % args.num_kv_heads != 0) {
    fail(ErrorCode::kInvalidArgument, "rope_append on the GPU: an offset of the keys of ",
         args.num_heads, ":", args.num_kv_heads, " heads");
  }
  const int64_t num_slots = args.num_heads + 2 * args.num_kv_heads;
  const dim3 blocks(static_cast<unsigned>((batch.num_rows * num_slots + kWarps - 1) / kWarps));
  launch_dependent("rope_append_codes",
                   args.element == CudaElement::kF32 ? rope_append_codes_kernel<float>
                                                     : rope_append_codes_kernel<__nv_bfloat16>,
                   blocks, dim3(kWarps * 32), 0, stream, 1, args, batch, layer);
}

}  // namespace lathe
