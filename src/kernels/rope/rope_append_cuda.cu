// Norm, rotation and the cache, each number rounded once to where it goes. Bound by launch latency
// for few rows, by memory for many.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "kernels/attention/attention_cuda_kernels.h"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

constexpr int kWarps = 8;
constexpr int kMaxHeadDim = 256;
constexpr int kMaxPairs = kMaxHeadDim / 2 / 32;  // of neighbouring elements, per lane

template <typename T>
__device__ float2 load_pair(const T* x) {
  if constexpr (sizeof(T) == 4) {
    return *reinterpret_cast<const float2*>(x);
  } else {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(x));
  }
}

template <typename T>
__device__ void store_pair(T* y, float2 v) {
  if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<float2*>(y) = v;
  } else {
    *reinterpret_cast<__nv_bfloat162*>(y) = __float22bfloat162_rn(v);
  }
}

__device__ void store_cached(const KvCudaLayer& layer, void* base, int64_t head, int head_dim,
                             int token, int dim, float scale, float2 v) {
  const int64_t offset =
      head * kBlockSize * head_dim + kv_cuda_offset(layer.element, head_dim, token, dim);
  switch (layer.element) {
    case KvCudaElement::kF32:
      store_pair(static_cast<float*>(base) + offset, v);
      return;
    case KvCudaElement::kBF16:
      store_pair(static_cast<__nv_bfloat16*>(base) + offset, v);
      return;
    case KvCudaElement::kE4M3:
      *reinterpret_cast<__nv_fp8x2_storage_t*>(static_cast<uint8_t*>(base) + offset) =
          __nv_cvt_float2_to_fp8x2(make_float2(v.x / scale, v.y / scale), __NV_SATFINITE,
                                   __NV_E4M3);
      return;
    case KvCudaElement::kHiggs4:  // rope_append_codes_cuda()
      return;
  }
}

// Any sizes: one warp per row and head, the head's numbers in registers for the norm and in shared
// memory for the rotation, whose pairs lie half a rotary_dim apart.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32)
    rope_append_kernel(RopeAppendArgs args, CudaBatch batch, KvCudaLayer layer) {
  __shared__ float heads[kWarps][kMaxHeadDim];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int num_heads = static_cast<int>(args.num_heads);
  const int num_kv_heads = static_cast<int>(args.num_kv_heads);
  const int head_dim = static_cast<int>(args.head_dim);
  const int half = static_cast<int>(args.rotary_dim) / 2;
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
  float2 pairs[kMaxPairs];
  float sum_sq = 0;
#pragma unroll
  for (int i = 0; i < kMaxPairs; ++i) {
    const int dim = 2 * (lane + 32 * i);
    pairs[i] = dim < head_dim ? load_pair(x + dim) : make_float2(0, 0);
    sum_sq += pairs[i].x * pairs[i].x + pairs[i].y * pairs[i].y;
  }
  const float* gain = is_q ? args.q_norm : args.k_norm;
  if (!is_v && gain != nullptr) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      sum_sq += __shfl_xor_sync(0xffffffffu, sum_sq, offset);
    }
    const float scale = 1 / sqrtf(sum_sq / static_cast<float>(head_dim) + args.eps);
#pragma unroll
    for (int i = 0; i < kMaxPairs; ++i) {
      const int dim = 2 * (lane + 32 * i);
      if (dim >= head_dim) continue;
      pairs[i].x *= scale * gain[dim];
      pairs[i].y *= scale * gain[dim + 1];
    }
  }
  if (!is_v) {
    float* head = heads[warp];
#pragma unroll
    for (int i = 0; i < kMaxPairs; ++i) {
      const int dim = 2 * (lane + 32 * i);
      if (dim < head_dim) *reinterpret_cast<float2*>(head + dim) = pairs[i];
    }
    __syncwarp();
    const float* cos = args.cos + row * half;
    const float* sin = args.sin + row * half;
    const auto rotated = [&](int j) {
      if (j < half) return head[j] * cos[j] - head[j + half] * sin[j];
      if (j < 2 * half) return head[j] * cos[j - half] + head[j - half] * sin[j - half];
      return head[j];
    };
#pragma unroll
    for (int i = 0; i < kMaxPairs; ++i) {
      const int dim = 2 * (lane + 32 * i);
      if (dim < head_dim) pairs[i] = make_float2(rotated(dim), rotated(dim + 1));
    }
  }

  const int position = batch.positions[row];
  int64_t cache_head = 0;
  if (!is_q) {
    const int64_t block = batch.block_tables[sequence * batch.table_stride + position / kBlockSize];
    cache_head = block * num_kv_heads + (slot - num_heads - (is_v ? num_kv_heads : 0));
  }
  const int token = position % static_cast<int>(kBlockSize);
#pragma unroll
  for (int i = 0; i < kMaxPairs; ++i) {
    const int dim = 2 * (lane + 32 * i);
    if (dim >= head_dim) continue;
    if (is_q) {
      store_pair(x + dim, pairs[i]);
    } else {
      store_cached(layer, is_v ? layer.values : layer.keys, cache_head, head_dim, token, dim,
                   is_v ? layer.value_scale : layer.key_scale, pairs[i]);
    }
  }
}

// Eight neighbouring elements as they lie in memory.
template <typename T>
__device__ void load_eight(float (&v)[8], const T* x) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(x + i);
      v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
    }
  } else {
    const uint4 bits = *reinterpret_cast<const uint4*>(x);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = __uint_as_float(words[i] << 16);
      v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
}

__device__ void store_eight(float* y, const float (&v)[8]) {
  *reinterpret_cast<float4*>(y) = make_float4(v[0], v[1], v[2], v[3]);
  *reinterpret_cast<float4*>(y + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

__device__ void store_eight(__nv_bfloat16* y, const float (&v)[8]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
    words[i] = reinterpret_cast<const uint32_t&>(two);
  }
  *reinterpret_cast<uint4*>(y) = make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ void store_eight_cached(const KvCudaLayer& layer, void* base, int64_t head, int head_dim,
                                   int token, int dim, float scale, const float (&v)[8]) {
  const int64_t offset =
      head * kBlockSize * head_dim + kv_cuda_offset(layer.element, head_dim, token, dim);
  if (layer.element == KvCudaElement::kF32) {
    store_eight(static_cast<float*>(base) + offset, v);
  } else if (layer.element == KvCudaElement::kBF16) {
    store_eight(static_cast<__nv_bfloat16*>(base) + offset, v);
  } else {
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t two = __nv_cvt_float2_to_fp8x2(
          make_float2(v[2 * i] / scale, v[2 * i + 1] / scale), __NV_SATFINITE, __NV_E4M3);
      words[i / 2] |= two << 16 * (i % 2);
    }
    *reinterpret_cast<uint2*>(static_cast<uint8_t*>(base) + offset) =
        make_uint2(words[0], words[1]);
  }
}

// The same for heads that are rotated as a whole: a thread has 8 elements of each half, so pairs
// meet in registers and memory is read and written 16 bytes at a time. head_dim / 16, a power of
// two, neighbouring threads share a head.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32)
    rope_append_whole_kernel(RopeAppendArgs args, CudaBatch batch, KvCudaLayer layer) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int num_heads = static_cast<int>(args.num_heads);
  const int num_kv_heads = static_cast<int>(args.num_kv_heads);
  const int head_dim = static_cast<int>(args.head_dim);
  const int half = head_dim / 2, threads_per_head = head_dim / 16;
  const int num_slots = num_heads + 2 * num_kv_heads;
  const int64_t row = blockIdx.x;
  const int slot = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) / threads_per_head;
  const int dim = static_cast<int>(threadIdx.x) % threads_per_head * 8;
  const int sequence = batch.row_sequence[row];
  if (sequence < 0) return;
  const bool exists = slot < num_slots;
  const bool is_q = slot < num_heads;
  const bool is_v = slot >= num_heads + num_kv_heads;
  const int position = batch.positions[row];
  T* x =
      static_cast<T*>(args.qkv) + row * args.stride + static_cast<int64_t>(slot) * head_dim + dim;

  float first[8] = {}, second[8] = {};
  if (exists) {
    load_eight(first, x);
    load_eight(second, x + half);
  }
  if (args.q_norm != nullptr || args.k_norm != nullptr) {
    float sum_sq = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum_sq += first[i] * first[i] + second[i] * second[i];
    for (int offset = threads_per_head / 2; offset > 0; offset /= 2) {
      sum_sq += __shfl_xor_sync(0xffffffffu, sum_sq, offset);
    }
    const float* gain = is_q ? args.q_norm : args.k_norm;
    if (!is_v && gain != nullptr) {
      const float scale = 1 / sqrtf(sum_sq / static_cast<float>(head_dim) + args.eps);
      float gains[8];
      load_eight(gains, gain + dim);
#pragma unroll
      for (int i = 0; i < 8; ++i) first[i] *= scale * gains[i];
      load_eight(gains, gain + half + dim);
#pragma unroll
      for (int i = 0; i < 8; ++i) second[i] *= scale * gains[i];
    }
  }
  if (!exists) return;
  if (!is_v) {
    float cos[8], sin[8];
    load_eight(cos, args.cos + row * half + dim);
    load_eight(sin, args.sin + row * half + dim);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float a = first[i], b = second[i];
      first[i] = a * cos[i] - b * sin[i];
      second[i] = b * cos[i] + a * sin[i];
    }
  }
  if (is_q) {
    store_eight(x, first);
    store_eight(x + half, second);
    return;
  }
  const int64_t block = batch.block_tables[sequence * batch.table_stride + position / kBlockSize];
  const int64_t head = block * num_kv_heads + (slot - num_heads - (is_v ? num_kv_heads : 0));
  const int token = position % static_cast<int>(kBlockSize);
  void* base = is_v ? layer.values : layer.keys;
  const float scale = is_v ? layer.value_scale : layer.key_scale;
  store_eight_cached(layer, base, head, head_dim, token, dim, scale, first);
  store_eight_cached(layer, base, head, head_dim, token, half + dim, scale, second);
}

// The angle is rounded to float, as in the models' training code and in rope_rows(); its sine and
// cosine are taken in double, whose range reduction is exact for any position.
__global__ void rope_tables_kernel(const float* inverse_frequencies, float attention_factor,
                                   int half, const int32_t* positions, int64_t num_rows, float* cos,
                                   float* sin) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= num_rows * half) return;
  const int32_t position = positions[i / half];
  if (position < 0) {
    cos[i] = sin[i] = 0;
    return;
  }
  const float angle = __fmul_rn(static_cast<float>(position), inverse_frequencies[i % half]);
  double s, c;
  sincos(static_cast<double>(angle), &s, &c);
  cos[i] = static_cast<float>(c) * attention_factor;
  sin[i] = static_cast<float>(s) * attention_factor;
}

}  // namespace

void rope_append_cuda(const RopeAppendArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
                      CudaStream stream) {
  if (args.head_dim < 2 || args.head_dim > kMaxHeadDim || args.head_dim % 2 != 0 ||
      args.rotary_dim < 0 || args.rotary_dim > args.head_dim || args.rotary_dim % 2 != 0) {
    fail(ErrorCode::kInvalidArgument, "rope_append on the GPU: head_dim ", args.head_dim,
         " (even numbers up to ", kMaxHeadDim, "), rotary_dim ", args.rotary_dim);
  }
  const int64_t num_slots = args.num_heads + 2 * args.num_kv_heads;
  if (args.num_heads < 1 || args.num_kv_heads < 1 || args.stride % 2 != 0 ||
      args.stride < num_slots * args.head_dim || args.element == CudaElement::kE4M3) {
    fail(ErrorCode::kInvalidArgument, "rope_append on the GPU: ", args.num_heads, ":",
         args.num_kv_heads, " heads, row stride ", args.stride);
  }
  if (batch.num_rows == 0) return;
  if (kv_cuda_is_coded(layer.element)) {
    rope_append_codes_cuda(args, batch, layer, stream);
    return;
  }
  if (args.key_offset != nullptr) {
    fail(ErrorCode::kInvalidArgument, "rope_append on the GPU: a cache that keeps key offsets");
  }
  const bool aligned = args.stride % 8 == 0 && reinterpret_cast<uintptr_t>(args.qkv) % 16 == 0;
  const bool whole = args.rotary_dim == args.head_dim &&
                     (args.head_dim == 64 || args.head_dim == 128 || args.head_dim == 256);
  if (whole && aligned) {
    const int64_t threads = num_slots * args.head_dim / 16;
    const int64_t block = std::min<int64_t>(kWarps * 32, (threads + 31) / 32 * 32);
    const dim3 blocks(static_cast<unsigned>(batch.num_rows),
                      static_cast<unsigned>((threads + block - 1) / block));
    launch_dependent("rope_append",
                     args.element == CudaElement::kF32 ? rope_append_whole_kernel<float>
                                                       : rope_append_whole_kernel<__nv_bfloat16>,
                     blocks, dim3(static_cast<unsigned>(block)), 0, stream, 1, args, batch, layer);
    return;
  }
  const dim3 grid(static_cast<unsigned>((batch.num_rows * num_slots + kWarps - 1) / kWarps));
  launch_dependent("rope_append",
                   args.element == CudaElement::kF32 ? rope_append_kernel<float>
                                                     : rope_append_kernel<__nv_bfloat16>,
                   grid, dim3(kWarps * 32), 0, stream, 1, args, batch, layer);
}

void rope_tables_cuda(const float* inverse_frequencies, float attention_factor, int64_t half,
                      const int32_t* positions, int64_t num_rows, float* cos, float* sin,
                      CudaStream stream) {
  constexpr int64_t kThreads = 128;
  const int64_t count = num_rows * half;
  if (count == 0) return;
  launch_dependent("rope_tables", rope_tables_kernel,
                   dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), dim3(kThreads),
                   0, stream, 1, inverse_frequencies, attention_factor, static_cast<int>(half),
                   positions, num_rows, cos, sin);
}

}  // namespace lathe
