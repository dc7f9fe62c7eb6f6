// Attention over a cache of codes in plain fp32 arithmetic, and long runs of rows, whose keys and
// values become numbers first.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/attention/attention_cuda_kernels.h"
#include "kernels/attention/kv_codes_cuda.h"
#include "kernels/attention/kv_rotate_cuda.cuh"
#include "tensor/cuda_launch.cuh"
#include "tensor/cuda_numbers.cuh"

namespace lathe {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 256;
constexpr int kSlots = kMaxHeadDim / 2 / 32;  // per lane
constexpr int kBlock = static_cast<int>(kBlockSize);

// One token of one head, keys or values: its codes or its exact row.
struct Token {
  const uint8_t* head;
  int head_dim;
  int token;  // in the block
  bool is_value, is_exact;

  __device__ float scale() const {
    if (is_exact) return 1;
    return __bfloat162float(
        *reinterpret_cast<const __nv_bfloat16*>(head + code_scale_offset(head_dim, token)));
  }
  // Dims slot and slot + head_dim / 2, without the scale.
  __device__ float2 pair(int slot, const KvCudaGrid& grid) const {
    if (is_exact) {
      const auto* row = reinterpret_cast<const __nv_bfloat16*>(head + sink_offset(head_dim, token));
      return {__bfloat162float(row[slot]), __bfloat162float(row[slot + head_dim / 2])};
    }
    const int code = head[is_value ? value_code_offset(head_dim, token, slot)
                                   : key_code_offset(head_dim, token, slot)];
    return {static_cast<float>(grid.first[code]), static_cast<float>(grid.second[code])};
  }
};

// The token of a sequence at a position, of a KV head.
__device__ Token find_token(const KvCudaLayer& layer, const CudaBatch& batch, int sequence,
                            int position, bool is_value, int kv_head, int num_kv_heads,
                            int head_dim) {
  const bool is_exact = position < static_cast<int>(kLiveSinks) && batch.sink_blocks != nullptr;
  const int64_t block = is_exact
                            ? batch.sink_blocks[sequence]
                            : batch.block_tables[sequence * batch.table_stride + position / kBlock];
  const auto* plane = static_cast<const uint8_t*>(is_value ? layer.values : layer.keys);
  return {plane + (block * num_kv_heads + kv_head) * kv_cuda_head_bytes(layer.element, head_dim),
          head_dim, position % kBlock, is_value, is_exact};
}

// cos and sin, with RoPE's attention factor, of pair j of heads at position p.
__device__ float2 angle_at(const KeyOffsetCuda& key, int head_dim, int j, int p) {
  const int half = head_dim / 2;
  const float* start = key.block_starts + static_cast<int64_t>(p / kBlock) * head_dim + j;
  const float* inside = key.in_block + j * kBlock + p % kBlock;
  const float c = inside[0], s = inside[half * kBlock];
  return {start[0] * c - start[half] * s, start[half] * c + start[0] * s};
}

// A block of four warps per row and query head, each an online softmax over every fourth token, its
// lanes the slots.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32)
    attention_codes_plain_kernel(AttentionCudaArgs args, CudaBatch batch, KvCudaLayer layer,
                                 bool short_runs_only) {
  __shared__ float sums[kWarps][kMaxHeadDim];
  __shared__ float largest[kWarps], totals[kWarps];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t row = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int head_dim = static_cast<int>(args.head_dim), half = head_dim / 2;
  const int sequence = batch.row_sequence[row];
  if (sequence < 0) return;
  if (short_runs_only && batch.query_begin[sequence + 1] - batch.query_begin[sequence] >
                             static_cast<int>(kAttentionDecodeRows)) {
    return;
  }
  const int position = batch.positions[row];
  const int num_kv_heads = static_cast<int>(args.num_kv_heads);
  const int kv_head = head / static_cast<int>(args.num_heads / args.num_kv_heads);
  const int window = static_cast<int>(args.sliding_window);
  const int begin = window > 0 && window <= position ? position - window + 1 : 0;
  const KvCudaGrid& grid = *layer.grid;

  const T* q = static_cast<const T*>(args.q) + row * args.q_stride + head * args.head_dim;
  float q_first[kSlots], q_second[kSlots], sum_first[kSlots] = {}, sum_second[kSlots] = {};
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int slot = lane + 32 * i;
    q_first[i] = slot < half ? to_float(q[slot]) : 0;
    q_second[i] = slot < half ? to_float(q[slot + half]) : 0;
  }
  const KeyOffsetCuda& key = args.key_offset;
  float cosines[kSlots] = {}, sines[kSlots] = {};
  if (key.offset != nullptr) {
    const float* products = key.products + (row * args.num_heads + head) * args.head_dim;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int slot = lane + 32 * i;
      if (slot < half) cosines[i] = products[slot], sines[i] = products[half + slot];
    }
  }
  float max_score = -INFINITY, total = 0;
  for (int t = begin + warp; t <= position; t += kWarps) {
    const Token k = find_token(layer, batch, sequence, t, false, kv_head, num_kv_heads, head_dim);
    const Token v = find_token(layer, batch, sequence, t, true, kv_head, num_kv_heads, head_dim);
    float score = 0;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int slot = lane + 32 * i;
      if (slot >= half) continue;
      const float2 pair = k.pair(slot, grid);
      score = fmaf(q_first[i], pair.x, score);
      score = fmaf(q_second[i], pair.y, score);
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      score += __shfl_xor_sync(0xffffffffu, score, offset);
    }
    score *= args.scale * k.scale();
    if (key.offset != nullptr) {
      float of_offset = 0;
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        const int slot = lane + 32 * i;
        if (slot >= half) continue;
        const float2 angle = angle_at(key, head_dim, slot, t);
        of_offset = fmaf(cosines[i], angle.x, fmaf(sines[i], angle.y, of_offset));
      }
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
        of_offset += __shfl_xor_sync(0xffffffffu, of_offset, offset);
      }
      score = fmaf(of_offset, args.scale, score);
    }
    if (args.softcap > 0) score = args.softcap * tanhf(score / args.softcap);
    const float previous = max_score;
    max_score = fmaxf(previous, score);
    const float shrink = expf(previous - max_score);
    const float p = expf(score - max_score);
    total = fmaf(total, shrink, p);
    const float weight = p * v.scale();
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int slot = lane + 32 * i;
      if (slot >= half) continue;
      const float2 pair = v.pair(slot, grid);
      sum_first[i] = fmaf(sum_first[i], shrink, weight * pair.x);
      sum_second[i] = fmaf(sum_second[i], shrink, weight * pair.y);
    }
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int slot = lane + 32 * i;
    if (slot >= half) continue;
    sums[warp][slot] = sum_first[i];
    sums[warp][slot + half] = sum_second[i];
  }
  if (lane == 0) largest[warp] = max_score, totals[warp] = total;
  __syncthreads();
  if (warp > 0) return;

  max_score = -INFINITY, total = 0;
  for (int w = 0; w < kWarps; ++w) max_score = fmaxf(max_score, largest[w]);
  for (int w = 0; w < kWarps; ++w) total += totals[w] * expf(largest[w] - max_score);
  for (int dim = lane; dim < head_dim; dim += 32) {
    float x = 0;
    for (int w = 0; w < kWarps; ++w) x += sums[w][dim] * expf(largest[w] - max_score);
    sums[0][dim] = x / total;
  }
  rotate_head(sums[0], head_dim, lane);
  T* out = static_cast<T*>(args.out) + (row * args.num_heads + head) * head_dim;
  for (int dim = lane; dim < head_dim; dim += 32) store(out + dim, sums[0][dim]);
}

// --- long runs ----------------------------------------------------------------------------------

// Where a sequence's keys and values lie as numbers: an ordinary cache of so many blocks.
struct Unpacked {
  KvCudaLayer layer;
  int32_t* table = nullptr;  // [num_blocks]: 0, 1, 2, ...
  int64_t num_blocks = 0;
};

int64_t plane_bytes(const AttentionCudaArgs& args, int64_t num_blocks) {
  const int64_t size = args.element == CudaElement::kF32 ? 4 : 2;
  return (num_blocks * kBlockSize * args.num_kv_heads * args.head_dim * size + 255) / 256 * 256;
}

// The blocks that the rows of `sequence` see. One head of one block, keys or values, by each block
// of the grid.
template <typename T>
__global__ void __launch_bounds__(256)
    unpack_kernel(CudaBatch batch, KvCudaLayer layer, Unpacked to, int num_kv_heads, int head_dim,
                  int window, int sequence, KeyOffsetCuda key) {
  __shared__ float offsets[8][kMaxHeadDim];
  constexpr KvCudaElement kElement = sizeof(T) == 4 ? KvCudaElement::kF32 : KvCudaElement::kBF16;
  wait_for_previous_kernel();
  allow_next_kernel();
  const int block = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const bool is_value = blockIdx.z == 1;
  const int first_row = batch.query_begin[sequence];
  const int rows = batch.query_begin[sequence + 1] - first_row;
  if (rows <= static_cast<int>(kAttentionDecodeRows)) return;
  if (kv_head == 0 && !is_value && threadIdx.x == 0) to.table[block] = block;
  const int first_position = batch.positions[first_row];
  const int begin = window > 0 && window <= first_position ? first_position - window + 1 : 0;
  if (block < begin / kBlock || block * kBlock >= first_position + rows) return;
  T* out = static_cast<T*>(is_value ? to.layer.values : to.layer.keys) +
           (static_cast<int64_t>(block) * num_kv_heads + kv_head) * kBlock * head_dim;
  const int half = head_dim / 2;
  const KvCudaGrid& grid = *layer.grid;
  // Exact rows are at the beginning, if there are any.
  const Token begin_token =
      find_token(layer, batch, sequence, block * kBlock, is_value, kv_head, num_kv_heads, head_dim);
  const Token end_token = find_token(layer, batch, sequence, block * kBlock + kBlock - 1, is_value,
                                     kv_head, num_kv_heads, head_dim);
  const auto unpack = [&](int token, int slot, float first, float second) {
    Token from = token < static_cast<int>(kLiveSinks) ? begin_token : end_token;
    from.token = token;
    const float2 pair = from.pair(slot, grid);
    const float scale = from.scale();
    store(out + kv_cuda_offset(kElement, head_dim, token, slot), pair.x * scale + first);
    store(out + kv_cuda_offset(kElement, head_dim, token, slot + half), pair.y * scale + second);
  };
  if (is_value || key.offset == nullptr) {
    for (int i = static_cast<int>(threadIdx.x); i < kBlock * half; i += 256) {
      unpack(i / half, i % half, 0, 0);
    }
    return;
  }
  // A token at a time: its offset, turned by its position, then as queries are.
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int rotary_dim = static_cast<int>(key.rotary_dim), pairs = rotary_dim / 2;
  const float* offset = key.offset + kv_head * head_dim;
  float* x = offsets[warp];
  for (int token = warp; token < kBlock; token += 8) {
    for (int j = lane; j < pairs; j += 32) {
      const float2 angle = angle_at(key, head_dim, j, block * kBlock + token);
      x[j] = offset[j] * angle.x - offset[j + pairs] * angle.y;
      x[j + pairs] = offset[j + pairs] * angle.x + offset[j] * angle.y;
    }
    for (int dim = rotary_dim + lane; dim < head_dim; dim += 32) x[dim] = offset[dim];
    __syncwarp();
    rotate_head(x, head_dim, lane);
    for (int slot = lane; slot < half; slot += 32) unpack(token, slot, x[slot], x[slot + half]);
    __syncwarp();
  }
}

// out, of the rows of one sequence, times the Hadamard matrix: a warp for each row and head.
template <typename T>
__global__ void __launch_bounds__(256)
    rotate_rows_kernel(CudaBatch batch, T* out, int num_heads, int head_dim, int sequence) {
  __shared__ float heads[8][kMaxHeadDim];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = batch.query_begin[sequence];
  const int rows = batch.query_begin[sequence + 1] - first_row;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 8 + warp;
  if (rows <= static_cast<int>(kAttentionDecodeRows) ||
      i >= static_cast<int64_t>(rows) * num_heads) {
    return;
  }
  T* head = out + (static_cast<int64_t>(first_row) * num_heads + i) * head_dim;
  for (int dim = lane; dim < head_dim; dim += 32) heads[warp][dim] = to_float(head[dim]);
  rotate_head(heads[warp], head_dim, lane);
  for (int dim = lane; dim < head_dim; dim += 32) store(head + dim, heads[warp][dim]);
}

template <typename T>
void attend_long_run(const AttentionCudaArgs& args, const CudaBatch& batch,
                     const KvCudaLayer& layer, const Unpacked& to, int sequence,
                     CudaStream stream) {
  const int num_kv_heads = static_cast<int>(args.num_kv_heads);
  const int head_dim = static_cast<int>(args.head_dim);
  launch_dependent(
      "attention_unpack", unpack_kernel<T>,
      dim3(static_cast<unsigned>(to.num_blocks), static_cast<unsigned>(num_kv_heads), 2), dim3(256),
      0, stream, 1, batch, layer, to, num_kv_heads, head_dim, static_cast<int>(args.sliding_window),
      sequence, args.key_offset);
  CudaBatch alone = batch;
  alone.query_begin = batch.query_begin + sequence;
  alone.block_tables = to.table;
  alone.table_stride = to.num_blocks;
  alone.num_sequences = 1;
  alone.only_long_runs = true;
  AttentionCudaArgs rotated = args;
  rotated.follows_rope_append = false;
  rotated.key_offset = {};
  if (has_fast_attention(args, to.layer.element)) {
    attention_prefill_bf16_sm90(rotated, alone, to.layer, stream);
  } else {
    attention_tiles_cuda(rotated, alone, to.layer, stream);
  }
  const int64_t heads = batch.max_rows_per_sequence * args.num_heads;
  launch_dependent("attention_rotate", rotate_rows_kernel<T>,
                   dim3(static_cast<unsigned>((heads + 7) / 8)), dim3(256), 0, stream, 1, batch,
                   static_cast<T*>(args.out), static_cast<int>(args.num_heads), head_dim, sequence);
}

}  // namespace

void attention_codes_plain_cuda(const AttentionCudaArgs& args, const CudaBatch& batch,
                                const KvCudaLayer& layer, bool short_runs_only, CudaStream stream) {
  if (batch.num_rows == 0) return;
  const dim3 grid(static_cast<unsigned>(batch.num_rows), static_cast<unsigned>(args.num_heads));
  launch_dependent("attention_codes_plain",
                   args.element == CudaElement::kF32 ? attention_codes_plain_kernel<float>
                                                     : attention_codes_plain_kernel<__nv_bfloat16>,
                   grid, dim3(kWarps * 32), 0, stream, 1, args, batch, layer, short_runs_only);
}

int64_t prefill_codes_bytes(const AttentionCudaArgs& args, const CudaBatch& batch) {
  if (batch.max_rows_per_sequence <= kAttentionDecodeRows) return 0;
  const int64_t num_blocks = (batch.max_context + kBlockSize - 1) / kBlockSize;
  return 2 * plane_bytes(args, num_blocks) + (num_blocks * 4 + 255) / 256 * 256;
}

void attention_prefill_codes_cuda(const AttentionCudaArgs& args, const CudaBatch& batch,
                                  const KvCudaLayer& layer, CudaStream stream) {
  const DecodeGrid grid = decode_grid(args, batch, true);
  Unpacked to;
  to.num_blocks = (batch.max_context + kBlockSize - 1) / kBlockSize;
  char* memory = static_cast<char*>(args.workspace) + kDecodeCounterBytes + grid.statistics_bytes +
                 (grid.sums_bytes + 255) / 256 * 256;
  const int64_t bytes = plane_bytes(args, to.num_blocks);
  const bool exact = args.element == CudaElement::kF32;
  to.layer = {.element = exact ? KvCudaElement::kF32 : KvCudaElement::kBF16,
              .keys = memory,
              .values = memory + bytes};
  to.table = reinterpret_cast<int32_t*>(memory + 2 * bytes);
  const int64_t count = batch.long_runs != nullptr ? batch.num_long_runs : batch.num_sequences;
  for (int64_t i = 0; i < count; ++i) {
    const int sequence = batch.long_runs != nullptr ? batch.long_runs[i] : static_cast<int>(i);
    (exact ? attend_long_run<float> : attend_long_run<__nv_bfloat16>)(args, batch, layer, to,
                                                                      sequence, stream);
  }
}

}  // namespace lathe
