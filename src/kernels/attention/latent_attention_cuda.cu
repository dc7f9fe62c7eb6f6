// One block of 8 warps for a part of one sequence and KV head. U z is what tensor cores do; the
// residual's butterflies and the weighted sums are plain fp32 arithmetic, which bounds it: with
// four query heads a number of a key costs 4 multiply-adds and a look-up.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/attention/latent_attention_cuda.h"
#include "kernels/attention/sm90_memory.cuh"
#include "kernels/kv_rows/kv_row_codes_cuda.cuh"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTokens = static_cast<int>(kBlockSize);
constexpr int kMaxSharedBytes = 220 * 1024;
constexpr int kKeyPadding = 4;     // floats behind a key, so that rows begin in other banks
constexpr int kLatentPadding = 8;  // bf16 behind a z, likewise

struct Plan {
  int num_splits = 0;    // parts of a sequence
  int split_blocks = 0;  // coded blocks in each
  int columns = 0;       // sums of a query: z, the keys' residual, the values' own
  int part_floats = 0;   // largest score, sum of weights, columns
};

// Where a block's arrays begin in shared memory, in floats.
struct Layout {
  int q, keys, heads, weights, key_scales, value_scales, largest, total, factor, sums, z, end;
};
__host__ __device__ inline Layout layout_of(int group, int head_dim, int num_kv_heads,
                                            int rank_stride, int columns) {
  Layout at;
  int next = 0;
  const auto take = [&next](int floats) {
    const int begin = next;
    next += (floats + 3) / 4 * 4;
    return begin;
  };
  at.q = take(group * head_dim);
  at.keys = take(kTokens * (head_dim + kKeyPadding));
  at.heads = take(kWarps * head_dim);
  at.weights = take(group * kTokens);
  at.key_scales = take(kTokens * num_kv_heads);
  at.value_scales = take(kTokens);
  at.largest = take(group);
  at.total = take(group);
  at.factor = take(group);
  at.sums = take(group * columns);
  at.z = take(kTokens * (rank_stride + kLatentPadding) / 2);
  at.end = next;
  return at;
}

__device__ inline float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int offset = 16; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  }
  return x;
}

// NaN scores stay NaN: fmaxf() drops them, the exponential does not.
__device__ inline float weight_of(float score, float largest) {
  return score == -INFINITY ? 0 : expf(score - largest);
}

// kGroup: query heads for each KV head, rounded up to a power of two.
template <int kGroup>
__global__ void __launch_bounds__(kThreads)
    latent_parts_kernel(LatentAttentionCudaArgs args, Plan plan) {
  extern __shared__ float shared[];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int head_dim = args.key.head_dim, num_kv_heads = args.key.num_heads;
  const int group = static_cast<int>(args.num_heads) / num_kv_heads;
  const int rank = args.latent.rank, rank_stride = static_cast<int>(args.rank_stride);
  const int width = num_kv_heads * head_dim;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int split = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int64_t sequence = blockIdx.z;
  const int num_tokens = min(args.num_tokens[sequence], static_cast<int32_t>(args.max_tokens));
  const int begin_block = split * plan.split_blocks;
  const int end_block = min(begin_block + plan.split_blocks, (num_tokens + kTokens - 1) / kTokens);

  const Layout at = layout_of(kGroup, head_dim, num_kv_heads, rank_stride, plan.columns);
  float* const keys = shared + at.keys;
  float* const weights = shared + at.weights;
  float* const sums = shared + at.sums;
  auto* const z = reinterpret_cast<__nv_bfloat16*>(shared + at.z);
  const int z_stride = rank_stride + kLatentPadding, key_stride = head_dim + kKeyPadding;
  KvCodesCuda latent_codes = args.latent_codes, key_codes = args.key_codes,
              value_codes = args.value_codes;
  latent_codes.blocks = key_codes.blocks = value_codes.blocks =
      args.blocks + sequence * args.table_stride;

  for (int i = static_cast<int>(threadIdx.x); i < kGroup * plan.columns; i += kThreads) sums[i] = 0;
  for (int i = static_cast<int>(threadIdx.x); i < kGroup * head_dim; i += kThreads) {
    const int query = i / head_dim;
    const auto* q = static_cast<const __nv_bfloat16*>(args.q) + sequence * args.q_stride +
                    (kv_head * group + query) * head_dim;
    shared[at.q + i] = query < group ? __bfloat162float(q[i % head_dim]) : 0;
  }
  if (threadIdx.x < kGroup) {
    shared[at.largest + threadIdx.x] = -INFINITY;
    shared[at.total + threadIdx.x] = 0;
  }

  for (int block = begin_block; block < end_block; ++block) {
    const int64_t first = static_cast<int64_t>(block) * kTokens;
    const auto is_seen = [&](int t) {
      return first + t >= args.num_sinks && first + t < num_tokens;
    };
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * rank_stride; i += kThreads) {
      const int t = i / rank_stride, j = i % rank_stride;
      float unit = 0;
      if (j < rank) {
        const int code = unpack_code(codes_of_row(latent_codes, first + t), j, args.latent.bits);
        unit = args.latent.bits == 4
                   ? args.latent.points[code]
                   : static_cast<float>(static_cast<int8_t>(static_cast<uint8_t>(code)));
        unit = product_rn(unit, args.latent.step[j]);
      }
      z[t * z_stride + j] = __float2bfloat16_rn(unit);
    }
    // Scales of what is not seen are zero, so that no NaN of theirs gets into the sums.
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * (num_kv_heads + 1); i += kThreads) {
      const int t = i % kTokens, head = i / kTokens;
      const bool is_value = head == num_kv_heads;
      const KvRowsCudaFormat& format = is_value ? args.value : args.key;
      const HeadCodes codes = is_value ? head_codes(format, value_codes, first + t, kv_head)
                                       : head_codes(format, key_codes, first + t, head);
      const float scale =
          is_seen(t) ? scale_value(format.scale, load_bytes(codes.scale, scale_bytes(format.scale)))
                     : 0;
      shared[is_value ? at.value_scales + t : at.key_scales + t * num_kv_heads + head] = scale;
    }
    __syncthreads();

    // U z + u: tokens are rows, the head's numbers columns; a warp takes 8 of these.
    const auto* u = static_cast<const __nv_bfloat16*>(args.key_weight);
    const int row = lane / 4, pair = lane % 4 * 2;
    for (int n = warp; n < head_dim / 8; n += kWarps) {
      float tile[2][4] = {};
      const int64_t out = kv_head * head_dim + n * 8;
      for (int k = 0; k < rank_stride; k += 16) {
        const __nv_bfloat16* w = u + (out + row) * rank_stride + k + pair;
        const uint32_t b0 = *reinterpret_cast<const uint32_t*>(w);
        const uint32_t b1 = *reinterpret_cast<const uint32_t*>(w + 8);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const __nv_bfloat16* x = z + (m * 16 + row) * z_stride + k + pair;
          const uint32_t a[4] = {*reinterpret_cast<const uint32_t*>(x),
                                 *reinterpret_cast<const uint32_t*>(x + 8 * z_stride),
                                 *reinterpret_cast<const uint32_t*>(x + 8),
                                 *reinterpret_cast<const uint32_t*>(x + 8 * z_stride + 8)};
          sm90::multiply<false>(tile[m], a, b0, b1);
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int t = m * 16 + row + i / 2 * 8, j = pair + i % 2;
          const float bias = args.key.bias == nullptr ? 0 : args.key.bias[out + j];
          keys[t * key_stride + n * 8 + j] = tile[m][i] + bias;
        }
      }
    }
    __syncthreads();

    // The residual, RoPE, and scores: a warp for each token.
    for (int t = warp; t < kTokens; t += kWarps) {
      if (!is_seen(t)) {
        if (lane < kGroup) weights[lane * kTokens + t] = -INFINITY;
        continue;
      }
      float* key = keys + t * key_stride;
      float* residual = shared + at.heads + warp * head_dim;
      const float* sigma =
          args.key.sigma == nullptr ? nullptr : args.key.sigma + kv_head * head_dim;
      decode_row_head(args.key, head_codes(args.key, key_codes, first + t, kv_head), sigma,
                      residual, lane);
      for (int j = lane; j < head_dim; j += 32) key[j] += residual[j];
      __syncwarp();
      const int half = static_cast<int>(args.rotary_dim) / 2;
      rope_head(key, args.cos + (first + t) * half, args.sin + (first + t) * half, half, lane);
      for (int query = 0; query < group; ++query) {
        float dot = 0;
        for (int j = lane; j < head_dim; j += 32) {
          dot = fmaf(shared[at.q + query * head_dim + j], key[j], dot);
        }
        dot = warp_sum(dot);
        if (lane == 0) weights[query * kTokens + t] = dot * args.scale;
      }
      if (lane >= group && lane < kGroup) weights[lane * kTokens + t] = 0;
      __syncwarp();
    }
    __syncthreads();

    for (int query = warp; query < kGroup; query += kWarps) {
      const float score = weights[query * kTokens + lane];
      const float before = shared[at.largest + query];
      const float largest = fmaxf(before, warp_max(score));
      const float p = weight_of(score, largest);
      const float total = warp_sum(p);
      __syncwarp();
      weights[query * kTokens + lane] = p;
      if (lane == 0) {
        const float factor = weight_of(before, largest);
        shared[at.factor + query] = factor;
        shared[at.largest + query] = largest;
        shared[at.total + query] = shared[at.total + query] * factor + total;
      }
    }
    __syncthreads();

    // Weighted sums: a thread for each column.
    for (int c = static_cast<int>(threadIdx.x); c < plan.columns; c += kThreads) {
      const bool is_z = c < rank, is_value = c >= rank + width;
      const KvRowsCudaFormat& format = is_value ? args.value : args.key;
      const int head = is_value ? kv_head : (c - rank) / head_dim;
      const int dim = is_value ? c - rank - width : (c - rank) % head_dim;
      float sum[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        sum[i] = sums[i * plan.columns + c] * shared[at.factor + i];
      }
      for (int t = 0; t < kTokens; ++t) {
        float number;
        if (is_z) {
          number = __bfloat162float(z[t * z_stride + c]);
        } else {
          const HeadCodes codes =
              head_codes(format, is_value ? value_codes : key_codes, first + t, head);
          const int code = unpack_code(codes.packed, dim / format.grid_dim, format.code_bits);
          number = format.points[code * format.grid_dim + dim % format.grid_dim] *
                   shared[is_value ? at.value_scales + t : at.key_scales + t * num_kv_heads + head];
        }
#pragma unroll
        for (int i = 0; i < kGroup; ++i) sum[i] = fmaf(weights[i * kTokens + t], number, sum[i]);
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) sums[i * plan.columns + c] = sum[i];
    }
  }

  __syncthreads();
  for (int query = 0; query < group; ++query) {
    const int64_t head = sequence * args.num_heads + kv_head * group + query;
    float* part = args.workspace + (head * plan.num_splits + split) * plan.part_floats;
    for (int c = static_cast<int>(threadIdx.x); c < plan.columns; c += kThreads) {
      part[2 + c] = sums[query * plan.columns + c];
    }
    if (threadIdx.x == 0) {
      part[0] = shared[at.largest + query];
      part[1] = shared[at.total + query];
    }
  }
}

// One block for each query head of each sequence: the parts' sums as one, the grid vectors turned,
// and the values' predictor.
__global__ void __launch_bounds__(kThreads)
    latent_merge_kernel(LatentAttentionCudaArgs args, Plan plan) {
  extern __shared__ float shared[];  // [columns]
  wait_for_previous_kernel();
  allow_next_kernel();
  const int head_dim = args.key.head_dim, num_kv_heads = args.key.num_heads;
  const int group = static_cast<int>(args.num_heads) / num_kv_heads;
  const int rank = args.latent.rank, width = num_kv_heads * head_dim;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t head = static_cast<int64_t>(blockIdx.y) * args.num_heads + blockIdx.x;
  const int kv_head = static_cast<int>(blockIdx.x) / group;
  const float* parts = args.workspace + head * plan.num_splits * plan.part_floats;

  float largest = -INFINITY, total = 0;
  for (int i = 0; i < plan.num_splits; ++i) largest = fmaxf(largest, parts[i * plan.part_floats]);
  for (int i = 0; i < plan.num_splits; ++i) {
    const float* part = parts + i * plan.part_floats;
    total += part[1] * weight_of(part[0], largest);
  }
  float* out = args.out + head * head_dim;
  if (total == 0) {  // nothing was seen
    for (int j = static_cast<int>(threadIdx.x); j < head_dim; j += kThreads) out[j] = 0;
    if (threadIdx.x == 0) args.log_sum[head] = -INFINITY;
    return;
  }
  for (int c = static_cast<int>(threadIdx.x); c < plan.columns; c += kThreads) {
    float sum = 0;
    for (int i = 0; i < plan.num_splits; ++i) {
      const float* part = parts + i * plan.part_floats;
      if (part[1] != 0) sum = fmaf(part[2 + c], weight_of(part[0], largest), sum);
    }
    shared[c] = sum;
  }
  __syncthreads();
  for (int i = warp; i <= num_kv_heads; i += kWarps) {
    const bool is_value = i == num_kv_heads;
    const KvRowsCudaFormat& format = is_value ? args.value : args.key;
    const float* sigma =
        format.sigma == nullptr ? nullptr : format.sigma + (is_value ? kv_head : i) * head_dim;
    float* x = shared + rank + i * head_dim;  // the values' stand behind all heads of the keys
    transform_head(x, format, lane, [&](int piece) {
      const double product = static_cast<double>(head_dim) * static_cast<double>(piece);
      return static_cast<float>(1 / sqrt(product));
    });
    for (int j = lane; j < head_dim && sigma != nullptr; j += 32) x[j] *= sigma[j];
  }
  __syncthreads();
  const auto* key_weight = static_cast<const __nv_bfloat16*>(args.value_key_weight);
  for (int j = warp; j < head_dim; j += kWarps) {
    const int64_t column = kv_head * head_dim + j;
    float sum = 0;
    for (int r = lane; r < rank; r += 32) {
      sum = fmaf(args.absorbed_latent[column * rank + r], shared[r], sum);
    }
    for (int i = lane; i < width && key_weight != nullptr; i += 32) {
      sum = fmaf(__bfloat162float(key_weight[column * width + i]), shared[rank + i], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      out[j] = (sum + args.absorbed_bias[column] * total + shared[rank + width + j]) / total;
    }
  }
  if (threadIdx.x == 0) args.log_sum[head] = largest + logf(total);
}

Plan plan_of(const LatentAttentionCudaArgs& a) {
  const int64_t num_kv_heads = a.key.num_heads, head_dim = a.key.head_dim;
  if (num_kv_heads < 1 || head_dim < 8 || head_dim > 256 || head_dim % 8 != 0 ||
      a.value.num_heads != a.key.num_heads || a.value.head_dim != a.key.head_dim ||
      a.num_heads < 1 || a.num_heads % num_kv_heads != 0 || a.num_heads / num_kv_heads > 16 ||
      a.latent.rank < 1 || a.rank_stride < a.latent.rank || a.rank_stride % 16 != 0 ||
      (a.latent.bits != 4 && a.latent.bits != 8) || a.rotary_dim < 0 || a.rotary_dim > head_dim ||
      a.rotary_dim % 2 != 0 || a.num_sequences < 0 || a.num_sequences > 65535 || a.max_tokens < 0 ||
      a.max_tokens > int64_t{1} << 30) {
    fail(ErrorCode::kInvalidArgument, "latent attention on the GPU: ", a.num_heads,
         " query heads on ", num_kv_heads, " of ", head_dim, ", rank ", a.latent.rank,
         " in rows of ", a.rank_stride, ", ", a.num_sequences, " sequences of up to ", a.max_tokens,
         " tokens");
  }
  // Four blocks for each of some 132 multiprocessors; the sums of a part are as large as the codes
  // of a few tokens, so parts may be short.
  constexpr int64_t kBlocks = 528;
  const int64_t pairs = std::max<int64_t>(1, a.num_sequences * num_kv_heads);
  const int64_t blocks = std::max<int64_t>(1, (a.max_tokens + kTokens - 1) / kTokens);
  const int64_t splits = std::clamp<int64_t>((kBlocks + pairs - 1) / pairs, 1, blocks);
  Plan plan;
  plan.split_blocks = static_cast<int>((blocks + splits - 1) / splits);
  plan.num_splits = static_cast<int>((blocks + plan.split_blocks - 1) / plan.split_blocks);
  plan.columns = static_cast<int>(a.latent.rank + (num_kv_heads + 1) * head_dim);
  plan.part_floats = plan.columns + 2;
  return plan;
}

template <int kGroup>
void launch_parts(const LatentAttentionCudaArgs& args, const Plan& plan, CudaStream stream) {
  const Layout at = layout_of(kGroup, args.key.head_dim, args.key.num_heads,
                              static_cast<int>(args.rank_stride), plan.columns);
  const int bytes = at.end * 4;
  if (bytes > kMaxSharedBytes) {
    fail(ErrorCode::kUnsupported, "latent attention on the GPU: the sums of ", kGroup,
         " query heads take ", bytes, " bytes of shared memory, more than ", kMaxSharedBytes);
  }
  cuda_check(cudaFuncSetAttribute(latent_parts_kernel<kGroup>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "asking for shared memory");
  const dim3 grid(static_cast<unsigned>(plan.num_splits), static_cast<unsigned>(args.key.num_heads),
                  static_cast<unsigned>(args.num_sequences));
  launch_dependent("latent_parts", latent_parts_kernel<kGroup>, grid, dim3(kThreads), bytes, stream,
                   1, args, plan);
}

}  // namespace

int64_t latent_attention_workspace_floats(const LatentAttentionCudaArgs& args) {
  const Plan plan = plan_of(args);
  return args.num_sequences * args.num_heads * plan.num_splits * plan.part_floats;
}

void latent_attention_cuda(const LatentAttentionCudaArgs& args, CudaStream stream) {
  const Plan plan = plan_of(args);
  if (args.num_sequences == 0) return;
  const int64_t group = args.num_heads / args.key.num_heads;
  if (group == 1) {
    launch_parts<1>(args, plan, stream);
  } else if (group == 2) {
    launch_parts<2>(args, plan, stream);
  } else if (group <= 4) {
    launch_parts<4>(args, plan, stream);
  } else if (group <= 8) {
    launch_parts<8>(args, plan, stream);
  } else {
    launch_parts<16>(args, plan, stream);
  }
  const dim3 grid(static_cast<unsigned>(args.num_heads), static_cast<unsigned>(args.num_sequences));
  launch_dependent("latent_merge", latent_merge_kernel, grid, dim3(kThreads), plan.columns * 4,
                   stream, 1, args, plan);
}

}  // namespace lathe
