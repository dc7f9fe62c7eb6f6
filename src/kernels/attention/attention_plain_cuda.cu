// Attention in plain fp32 arithmetic: a block of four warps per row and query head, each warp an
// online softmax over every fourth token, its lanes the dimensions. Nothing is shared between
// heads; its use is to be right.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/attention/attention_cuda_kernels.h"
#include "tensor/cuda_launch.cuh"
#include "tensor/cuda_numbers.cuh"

namespace lathe {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 256;
constexpr int kDims = kMaxHeadDim / 32;  // per lane

template <typename Kv>
constexpr KvCudaElement element_of() {
  return sizeof(Kv) == 4   ? KvCudaElement::kF32
         : sizeof(Kv) == 2 ? KvCudaElement::kBF16
                           : KvCudaElement::kE4M3;
}

template <typename T, typename Kv>
__global__ void __launch_bounds__(kWarps * 32)
    attention_plain_kernel(AttentionCudaArgs args, CudaBatch batch, KvCudaLayer layer,
                           bool short_runs_only) {
  __shared__ float sums[kWarps][kMaxHeadDim];
  __shared__ float largest[kWarps], totals[kWarps];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t row = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int head_dim = static_cast<int>(args.head_dim);
  const int sequence = batch.row_sequence[row];
  if (sequence < 0) return;
  if (short_runs_only && batch.query_begin[sequence + 1] - batch.query_begin[sequence] >
                             static_cast<int>(kAttentionDecodeRows)) {
    return;
  }
  const int position = batch.positions[row];
  const int64_t kv_head = head / (args.num_heads / args.num_kv_heads);
  const int32_t* table = batch.block_tables + sequence * batch.table_stride;
  const int begin = args.sliding_window > 0 && args.sliding_window <= position
                        ? position - static_cast<int>(args.sliding_window) + 1
                        : 0;

  float q[kDims], sum[kDims] = {};
#pragma unroll
  for (int i = 0; i < kDims; ++i) {
    const int dim = lane + 32 * i;
    q[i] = dim < head_dim ? to_float(static_cast<const T*>(
                                args.q)[row * args.q_stride + head * args.head_dim + dim])
                          : 0;
  }
  float max_score = -INFINITY, total = 0;
  for (int t = begin + warp; t <= position; t += kWarps) {
    const int64_t block = table[t / kBlockSize];
    const int token = t % static_cast<int>(kBlockSize);
    const int64_t base = (block * args.num_kv_heads + kv_head) * kBlockSize * head_dim;
    const Kv* keys = static_cast<const Kv*>(layer.keys) + base;
    const Kv* values = static_cast<const Kv*>(layer.values) + base;
    float score = 0;
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const int dim = lane + 32 * i;
      if (dim < head_dim) {
        score = fmaf(q[i], to_float(keys[kv_cuda_offset(element_of<Kv>(), head_dim, token, dim)]),
                     score);
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      score += __shfl_xor_sync(0xffffffffu, score, offset);
    }
    score *= args.scale * layer.key_scale;
    if (args.softcap > 0) score = args.softcap * tanhf(score / args.softcap);
    const float previous = max_score;
    max_score = fmaxf(previous, score);
    const float shrink = expf(previous - max_score);
    const float p = expf(score - max_score);
    total = fmaf(total, shrink, p);
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const int dim = lane + 32 * i;
      if (dim >= head_dim) continue;
      const float v = to_float(values[kv_cuda_offset(element_of<Kv>(), head_dim, token, dim)]);
      sum[i] = fmaf(sum[i], shrink, p * v);
    }
  }
#pragma unroll
  for (int i = 0; i < kDims; ++i) sums[warp][lane + 32 * i] = sum[i];
  if (lane == 0) largest[warp] = max_score, totals[warp] = total;
  __syncthreads();

  max_score = -INFINITY, total = 0;
  for (int w = 0; w < kWarps; ++w) max_score = fmaxf(max_score, largest[w]);
  for (int w = 0; w < kWarps; ++w) total += totals[w] * expf(largest[w] - max_score);
  for (int dim = static_cast<int>(threadIdx.x); dim < head_dim; dim += kWarps * 32) {
    float x = 0;
    for (int w = 0; w < kWarps; ++w) x += sums[w][dim] * expf(largest[w] - max_score);
    store(static_cast<T*>(args.out) + (row * args.num_heads + head) * head_dim + dim,
          x / total * layer.value_scale);
  }
}

template <typename T>
auto kernel_for(KvCudaElement element) {
  switch (element) {
    case KvCudaElement::kF32:
      return attention_plain_kernel<T, float>;
    case KvCudaElement::kBF16:
      return attention_plain_kernel<T, __nv_bfloat16>;
    case KvCudaElement::kE4M3:
    case KvCudaElement::kHiggs4:  // attention_codes_plain_cuda()
      break;
  }
  return attention_plain_kernel<T, __nv_fp8_e4m3>;
}

}  // namespace

void attention_plain_cuda(const AttentionCudaArgs& args, const CudaBatch& batch,
                          const KvCudaLayer& layer, bool short_runs_only, CudaStream stream) {
  if (batch.num_rows == 0) return;
  if (kv_cuda_is_coded(layer.element)) {
    attention_codes_plain_cuda(args, batch, layer, short_runs_only, stream);
    return;
  }
  const dim3 grid(static_cast<unsigned>(batch.num_rows), static_cast<unsigned>(args.num_heads));
  launch_dependent("attention_plain",
                   args.element == CudaElement::kF32 ? kernel_for<float>(layer.element)
                                                     : kernel_for<__nv_bfloat16>(layer.element),
                   grid, dim3(kWarps * 32), 0, stream, 1, args, batch, layer, short_runs_only);
}

}  // namespace lathe
