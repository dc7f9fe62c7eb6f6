// Attention of long runs of rows in plain fp32 arithmetic, where the tensor-core version does not
// apply: fp32 queries or an fp32 cache (exact comparisons, calibration), odd head sizes. A block
// has kQueries rows of one sequence and one query head, and walks over the keys and values they see
// in tiles of kTokens that pass through shared memory once for all rows; a thread has 4 x 4 scores
// of a tile, and 4 rows x D / 16 dimensions of the result.
//
// Tiles of tokens lie at multiples of kTokens, and tokens a row does not see add exact zeros: so a
// row's bits do not depend on how a prompt is cut into runs. Source: Dao, "FlashAttention-2"
// (2023).
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/attention/attention_cuda_kernels.h"
#include "tensor/cuda_launch.cuh"
#include "tensor/cuda_numbers.cuh"

namespace lathe {
namespace {

constexpr int kQueries = 64;
constexpr int kTokens = 64;
constexpr int kThreads = 256;  // 16 x 16: thread (x, y) has rows 4 y + i and tokens x + 16 j
constexpr int kWeightStride = kQueries + 4;

// Rows in shared memory are 16 bytes longer than D: eight threads that read 16 bytes of a column
// each then hit all 32 banks.
template <int D>
struct Shape {
  static constexpr int kStride = D + 4;
  static constexpr int kColumns = D / 16;  // of the result, per thread and row
  static constexpr int kSharedFloats = (kQueries + kTokens) * kStride + kTokens * kWeightStride;
};

__device__ float4 load4(const float* at) { return *reinterpret_cast<const float4*>(at); }

// The largest value, and the sum, of the 16 threads that share their rows.
__device__ float max_of_row(float x) {
  for (int offset = 8; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  }
  return x;
}
__device__ float sum_of_row(float x) {
  for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Tokens [first_token, + kTokens) of one KV head into `tile` [kTokens][kStride]; zeros outside
// [seen_begin, seen_end) and beyond head_dim.
template <int D, typename Kv>
__device__ void load_tile(const Kv* cache, const int32_t* table, const AttentionCudaArgs& args,
                          int kv_head, int first_token, int seen_begin, int seen_end, float* tile) {
  constexpr KvCudaElement kElement = sizeof(Kv) == 4   ? KvCudaElement::kF32
                                     : sizeof(Kv) == 2 ? KvCudaElement::kBF16
                                                       : KvCudaElement::kE4M3;
  constexpr int kBlock = static_cast<int>(kBlockSize);
  const int head_dim = static_cast<int>(args.head_dim);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int t = warp; t < kTokens; t += kThreads / 32) {
    const int token = first_token + t;
    const bool seen = token >= seen_begin && token < seen_end;
    const int64_t block = seen ? table[token / kBlock] : 0;
    const Kv* head = cache + (block * args.num_kv_heads + kv_head) * kBlock * head_dim;
#pragma unroll
    for (int dim = lane; dim < D; dim += 32) {
      tile[t * Shape<D>::kStride + dim] =
          seen && dim < head_dim
              ? to_float(head[kv_cuda_offset(kElement, head_dim, token % kBlock, dim)])
              : 0;
    }
  }
}

template <int D>
__device__ void load_tile(KvCudaElement element, const void* cache, const int32_t* table,
                          const AttentionCudaArgs& args, int kv_head, int first_token,
                          int seen_begin, int seen_end, float* tile) {
  if (element == KvCudaElement::kF32) {
    load_tile<D>(static_cast<const float*>(cache), table, args, kv_head, first_token, seen_begin,
                 seen_end, tile);
  } else if (element == KvCudaElement::kBF16) {
    load_tile<D>(static_cast<const __nv_bfloat16*>(cache), table, args, kv_head, first_token,
                 seen_begin, seen_end, tile);
  } else {
    load_tile<D>(static_cast<const __nv_fp8_e4m3*>(cache), table, args, kv_head, first_token,
                 seen_begin, seen_end, tile);
  }
}

// scores[i][j] = q[4 y + i] . k[x + 16 j]
template <int D>
__device__ void multiply_keys(const float* queries, const float* keys, float (&scores)[4][4]) {
  constexpr int kStride = Shape<D>::kStride;
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[i][j] = 0;
  }
#pragma unroll 4
  for (int dim = 0; dim < D; dim += 4) {
    float4 q[4], k[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) q[i] = load4(queries + (4 * y + i) * kStride + dim);
#pragma unroll
    for (int j = 0; j < 4; ++j) k[j] = load4(keys + (x + 16 * j) * kStride + dim);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float sum = scores[i][j];
        sum = fmaf(q[i].x, k[j].x, sum);
        sum = fmaf(q[i].y, k[j].y, sum);
        sum = fmaf(q[i].z, k[j].z, sum);
        scores[i][j] = fmaf(q[i].w, k[j].w, sum);
      }
    }
  }
}

// sums[i][4 c + e] += sum over tokens of weights[token][4 y + i] * v[token][64 c + 4 x + e]
template <int D>
__device__ void add_values(const float* weights, const float* values,
                           float (&sums)[4][Shape<D>::kColumns]) {
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll 4
  for (int token = 0; token < kTokens; ++token) {
    const float4 weight = load4(weights + token * kWeightStride + 4 * y);
    const float p[4] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
    for (int c = 0; c < D / 64; ++c) {
      const float4 v = load4(values + token * Shape<D>::kStride + 64 * c + 4 * x);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i][4 * c] = fmaf(p[i], v.x, sums[i][4 * c]);
        sums[i][4 * c + 1] = fmaf(p[i], v.y, sums[i][4 * c + 1]);
        sums[i][4 * c + 2] = fmaf(p[i], v.z, sums[i][4 * c + 2]);
        sums[i][4 * c + 3] = fmaf(p[i], v.w, sums[i][4 * c + 3]);
      }
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads)
    attention_tiles_kernel(AttentionCudaArgs args, CudaBatch batch, KvCudaLayer layer) {
  extern __shared__ float4 shared_memory[];
  constexpr int kStride = Shape<D>::kStride;
  float* queries = reinterpret_cast<float*>(shared_memory);  // [kQueries][kStride]
  float* tile = queries + kQueries * kStride;  // [kTokens][kStride]: keys, then values
  float* weights = tile + kTokens * kStride;   // [kTokens][kWeightStride]
  wait_for_previous_kernel();
  allow_next_kernel();

  const int head = static_cast<int>(blockIdx.x);
  const int sequence = static_cast<int>(blockIdx.z);
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  const int head_dim = static_cast<int>(args.head_dim);
  const int kv_head = head / static_cast<int>(args.num_heads / args.num_kv_heads);
  const int window = static_cast<int>(args.sliding_window);
  const int run_begin = batch.query_begin[sequence];
  const int run_rows = batch.query_begin[sequence + 1] - run_begin;
  if (run_rows <= static_cast<int>(kAttentionDecodeRows)) return;
  // Those that see the most start first.
  const int query_tile = (run_rows + kQueries - 1) / kQueries - 1 - static_cast<int>(blockIdx.y);
  if (query_tile < 0) return;
  const int first_row = query_tile * kQueries;  // of the run
  const int num_rows = min(kQueries, run_rows - first_row);
  const int first_position = batch.positions[run_begin] + first_row;
  const auto first_seen = [&](int position) {
    return window > 0 && window <= position ? position - window + 1 : 0;
  };
  const int seen_begin = first_seen(first_position);
  const int seen_end = first_position + num_rows;
  const int32_t* table = batch.block_tables + sequence * batch.table_stride;

  for (int i = static_cast<int>(threadIdx.x); i < kQueries * D; i += kThreads) {
    const int row = i / D, dim = i % D;
    float q = 0;
    if (row < num_rows && dim < head_dim) {
      const int64_t at =
          (run_begin + first_row + row) * args.q_stride + int64_t{head} * head_dim + dim;
      q = args.element == CudaElement::kF32
              ? static_cast<const float*>(args.q)[at]
              : __bfloat162float(static_cast<const __nv_bfloat16*>(args.q)[at]);
    }
    queries[row * kStride + dim] = q;
  }

  float largest[4], totals[4] = {};
  float sums[4][Shape<D>::kColumns] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) largest[i] = -INFINITY;
  for (int first_token = seen_begin / kTokens * kTokens; first_token < seen_end;
       first_token += kTokens) {
    __syncthreads();  // the values of the tile before have been used
    load_tile<D>(layer.element, layer.keys, table, args, kv_head, first_token, seen_begin, seen_end,
                 tile);
    __syncthreads();
    float p[4][4];
    multiply_keys<D>(queries, tile, p);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 4 * y + i;
      const int position = row < num_rows ? first_position + row : -1;
      const int begin = first_seen(position);
      float top = largest[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = first_token + x + 16 * j;
        float score = p[i][j] * (args.scale * layer.key_scale);
        if (args.softcap > 0) score = args.softcap * tanhf(score / args.softcap);
        p[i][j] = token >= begin && token <= position ? score : -INFINITY;
        top = fmaxf(top, p[i][j]);
      }
      top = max_of_row(top);
      // A row that has not seen anything yet: every weight is zero, and nothing is there to shrink.
      const float offset = top == -INFINITY ? 0 : top;
      const float shrink = expf(largest[i] - offset);
      float total = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) total += p[i][j] = expf(p[i][j] - offset);
      totals[i] = fmaf(totals[i], shrink, sum_of_row(total));
      largest[i] = top;
#pragma unroll
      for (int c = 0; c < Shape<D>::kColumns; ++c) sums[i][c] *= shrink;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      *reinterpret_cast<float4*>(weights + (x + 16 * j) * kWeightStride + 4 * y) =
          make_float4(p[0][j], p[1][j], p[2][j], p[3][j]);
    }
    __syncthreads();  // the keys have been used, the weights are there
    load_tile<D>(layer.element, layer.values, table, args, kv_head, first_token, seen_begin,
                 seen_end, tile);
    __syncthreads();
    add_values<D>(weights, tile, sums);
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 4 * y + i;
    if (row >= num_rows) continue;
    const int64_t at = ((run_begin + first_row + row) * args.num_heads + head) * head_dim;
#pragma unroll
    for (int c = 0; c < Shape<D>::kColumns; ++c) {
      const int dim = c / 4 * 64 + 4 * x + c % 4;
      if (dim >= head_dim) continue;
      const float result = sums[i][c] / totals[i] * layer.value_scale;
      if (args.element == CudaElement::kF32) {
        static_cast<float*>(args.out)[at + dim] = result;
      } else {
        static_cast<__nv_bfloat16*>(args.out)[at + dim] = __float2bfloat16_rn(result);
      }
    }
  }
}

template <int D>
void launch(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
            CudaStream stream) {
  constexpr int kSharedBytes = Shape<D>::kSharedFloats * 4;
  const auto kernel = attention_tiles_kernel<D>;
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "shared memory of attention_tiles");
  const dim3 blocks(static_cast<unsigned>(args.num_heads),
                    static_cast<unsigned>((batch.max_rows_per_sequence + kQueries - 1) / kQueries),
                    static_cast<unsigned>(batch.num_sequences));
  launch_dependent("attention_tiles", kernel, blocks, dim3(kThreads), kSharedBytes, stream, 1, args,
                   batch, layer);
}

}  // namespace

void attention_tiles_cuda(const AttentionCudaArgs& args, const CudaBatch& batch,
                          const KvCudaLayer& layer, CudaStream stream) {
  if (args.head_dim <= 64) return launch<64>(args, batch, layer, stream);
  if (args.head_dim <= 128) return launch<128>(args, batch, layer, stream);
  launch<256>(args, batch, layer, stream);
}

}  // namespace lathe
