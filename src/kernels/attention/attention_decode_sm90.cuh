// Attention of short runs of rows (up to kAttentionDecodeRows) over long contexts: reading the
// cache is what it costs, so every byte is read once for all queries that see it.
//
//   block (x, y, z) = parts of the context x, x + gridDim.x, ...; KV head and group of queries y;
//   sequence z. The queries of a KV head are (row, head of the group) pairs, 16 * kTiles a block.
//   A part (attention_splits.h) is dealt to the 4 warps by blocks of the cache, warp w takes block
//   b where b % 4 = w. Each warp is on its own: it copies its blocks into its own slots of shared
//   memory, multiplies (mma.sync, queries as the 16 rows), keeps its own running softmax. The four
//   results merge through shared memory into a partial result per query, the partial results
//   through the workspace, in order, by the block that finishes last.
//
// Everything that a query's result depends on (parts, blocks of a warp, order of merging) follows
// from its position. Tokens it does not see add exact zeros: so its bits do not depend on the
// batch.
//
// E4M3 keys and values become f16, which holds them exactly, and q too is f16 there.
// Sources: Dao et al., "Flash-Decoding" (2023); Milakov and Gimelshein, "Online normalizer" (2018).
#pragma once
#include <algorithm>
#include <climits>

#include "kernels/attention/attention_cuda_kernels.h"
#include "kernels/attention/attention_splits.h"
#include "kernels/attention/sm90_memory.cuh"
#include "tensor/cuda_launch.cuh"

namespace lathe::sm90 {
namespace decode {

constexpr int kWarps = 4;
constexpr int kBlock = static_cast<int>(kBlockSize);
constexpr float kLog2E = 1.4426950408889634f;

// What the host decides for a launch.
struct Plan {
  int num_splits = 0;         // parts that a tile may touch: stride of the partial results
  int num_queries = 0;        // per sequence and KV head: stride of the partial results
  int tile_queries = 0;       // of a block
  int merge_rows = 0;         // queries per block that can exist: room to merge the warps' results
  bool merges_apart = false;  // by merge_kernel
  int32_t* counters = nullptr;   // [num_sequences, num_kv_heads * tiles], zero between launches
  float2* statistics = nullptr;  // [num_sequences, num_kv_heads, num_queries, num_splits]: largest
                                 // score * log2 e, sum of 2^(score - largest)
  float* sums = nullptr;         // the same and [head_dim]: sum of 2^(score - largest) * v
};

template <int D, bool kE4M3, int kTiles>
struct Shape {
  static constexpr KvCudaElement kElement = kE4M3 ? KvCudaElement::kE4M3 : KvCudaElement::kBF16;
  static constexpr int kSize = kE4M3 ? 1 : 2;
  static constexpr int kRowBytes = kv_cuda_row_bytes(kElement, D);
  static constexpr int kUnitsPerRow = kRowBytes / 16;
  static constexpr int kColumnGroups = D * kSize / kRowBytes;
  static constexpr int kHeadBytes = kBlock * D * kSize;  // keys or values of one head of a block
  // Stages of keys and values per warp. 16 KiB of them in flight per warp hide the latency of
  // memory with 12 warps on a multiprocessor; E4M3 gets by with fewer bytes, as 16 warps fit then.
  static constexpr int kStages = kE4M3 && kTiles == 1           ? (D <= 64 ? 2 : 1)
                                 : 16384 / (2 * kHeadBytes) < 1 ? 1
                                                                : 16384 / (2 * kHeadBytes);
  static constexpr int kRingBytes = kWarps * kStages * 2 * kHeadBytes;
  static constexpr int kQueries = 16 * kTiles;
  static constexpr int kQueryPitch = D * 2 + 16;  // bytes; the padding spreads rows over the banks
  static constexpr int kQueryBytes = kQueries * kQueryPitch;
  static constexpr bool kQueriesInRegisters = D * kTiles <= 128 && !(kE4M3 && D > 64);
  static constexpr int kMergePitch = D + 8;  // floats
  static constexpr int kBarrierBytes = kWarps * kStages * 2 * 8;
  static constexpr int kBlocksPerSm =  // by registers
      kTiles == 1 && D <= 128 ? (kE4M3 ? 4 : 3) : 2;

  static constexpr int merge_bytes(int rows) { return kWarps * rows * (kMergePitch * 4 + 8); }
  // With one tile there is space for merging beside the ring, and the copies run on into the next
  // part meanwhile; with two tiles merging uses the ring, between two parts.
  static constexpr bool kMergesInRing = kTiles > 1;
  static constexpr int ring_bytes(int rows) {
    return kMergesInRing && merge_bytes(rows) > kRingBytes ? merge_bytes(rows) : kRingBytes;
  }
  // Ring, barriers, then queries and merging, which share space when the queries are in registers.
  static constexpr int tail_merge_offset() { return kQueriesInRegisters ? 0 : kQueryBytes; }
  static constexpr int shared_bytes(int rows) {
    const int merge_end = kMergesInRing ? 0 : tail_merge_offset() + merge_bytes(rows);
    return ring_bytes(rows) + kBarrierBytes + (merge_end > kQueryBytes ? merge_end : kQueryBytes);
  }
};

// Addresses of the 16-byte units of a token's row in one head of a block: row_address() holds what
// depends on the token, and, as rows are aligned to their size, an exclusive or adds the unit.
template <typename S>
__device__ inline uint32_t row_address(uint32_t head, int token) {
  const int permutation = S::kRowBytes == 128  ? token & 7
                          : S::kRowBytes == 64 ? token >> 1 & 3
                                               : token >> 2 & 1;
  return head + static_cast<uint32_t>(token * S::kRowBytes + (permutation << 4));
}
template <typename S>
__device__ inline uint32_t unit_address(uint32_t row, int unit) {
  return (row ^ static_cast<uint32_t>(unit % S::kUnitsPerRow << 4)) +
         static_cast<uint32_t>(unit / S::kUnitsPerRow * kBlock * S::kRowBytes);
}

template <int D, bool kE4M3, int kTiles>
class Worker {
  using S = Shape<D, kE4M3, kTiles>;

 public:
  __device__ Worker(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
                    const Plan& plan, char* shared)
      : args_(args), batch_(batch), layer_(layer), plan_(plan), shared_(shared) {}

  __device__ void run();

 private:
  __device__ int first_seen(int position) const {
    const int window = static_cast<int>(args_.sliding_window);
    return window > 0 && window <= position ? position - window + 1 : 0;
  }
  __device__ int position_of(int query) const { return first_position_ + query / group_; }

  // This warp's blocks within a part: [first_block, end_block) in steps of kWarps.
  __device__ int first_block(int split) const {
    const int lowest = max(split_begin(split), seen_begin_) / kBlock;
    return lowest + ((warp_ - lowest) & (kWarps - 1));
  }
  __device__ int end_block(int split) const {
    return min(split_begin(split + 1) / kBlock, (seen_end_ + kBlock - 1) / kBlock);
  }
  // The block to copy next, in the order in which they are used; next_split_ < 0 at the end.
  __device__ void settle_next() {
    while (next_split_ >= split_begin_ && next_block_ >= end_block(next_split_)) {
      next_split_ = S::kMergesInRing ? -1 : next_split_ - static_cast<int>(gridDim.x);
      if (next_split_ >= split_begin_) next_block_ = first_block(next_split_);
    }
    if (next_split_ >= split_begin_) next_id_ = table_[next_block_];
  }
  // Fills the slots from a part's first blocks on; those behind `limit` are left for another call.
  __device__ void start_copies(int limit) {
    while (started_ < S::kStages && has_next() && next_block_ < limit) {
      const int stage = (used_ + started_) % S::kStages;
      copy(next_id_, stage, false);
      copy(next_id_, stage, true);
      ++started_;
      advance_next();
    }
  }
  __device__ void start_part(int split) {
    next_split_ = split;
    next_block_ = first_block(split);
    started_ = 0;
    settle_next();
  }
  __device__ void advance_next() {
    next_block_ += kWarps;
    settle_next();
  }
  __device__ bool has_next() const { return next_split_ >= split_begin_; }

  __device__ uint32_t slot(int stage, bool is_value) const {
    return ring_ + static_cast<uint32_t>((stage * 2 + (is_value ? 1 : 0)) * S::kHeadBytes);
  }
  __device__ uint32_t barrier(int stage, bool is_value) const {
    return barriers_ + static_cast<uint32_t>((stage * 2 + (is_value ? 1 : 0)) * 8);
  }
  __device__ void copy(int64_t id, int stage, bool is_value) const {
    if (lane_ != 0) return;
    const char* from = static_cast<const char*>(is_value ? layer_.values : layer_.keys) +
                       (id * args_.num_kv_heads + kv_head_) * S::kHeadBytes;
    barrier_expect(barrier(stage, is_value), S::kHeadBytes);
    bulk_copy(slot(stage, is_value), from, S::kHeadBytes, barrier(stage, is_value));
  }

  __device__ bool locate();
  __device__ void load_queries();
  __device__ void read_query_tile(int tile, int step, uint32_t (&a)[4]) const;
  __device__ void attend_block(int block);
  __device__ void score(uint32_t keys);
  __device__ void softmax(int block);
  __device__ void clear_unseen(int block, uint32_t values) const;
  __device__ void add_values(uint32_t values);
  __device__ void merge_warps(int split);
  __device__ void merge_splits();
  __device__ __nv_bfloat16* out_of(int query) const;
  __device__ int64_t partial_idx(int query, int split) const {
    return ((static_cast<int64_t>(sequence_) * args_.num_kv_heads + kv_head_) * plan_.num_queries +
            query) *
               plan_.num_splits +
           (split - split_begin_);
  }

  const AttentionCudaArgs& args_;
  const CudaBatch& batch_;
  const KvCudaLayer& layer_;
  const Plan& plan_;
  char* const shared_;

  int lane_, warp_;
  int sequence_, kv_head_, tile_idx_, group_;
  int first_row_, first_position_, num_queries_;
  int query_begin_, query_count_;    // of this block, among the sequence's for this KV head
  int seen_begin_, seen_end_;        // positions that some query of this block sees
  int all_see_begin_, all_see_end_;  // positions that all of them see
  int split_begin_, split_end_;
  const int32_t* table_;
  uint32_t ring_, barriers_;
  char* tail_;   // queries
  char* merge_;  // the warps' results

  int next_split_ = -1, next_block_, started_ = 0;
  int64_t next_id_ = 0;
  int used_ = 0;  // blocks this warp has begun: stage and parity of its slots

  uint32_t q_[S::kQueriesInRegisters ? kTiles : 1][S::kQueriesInRegisters ? D / 16 : 1][4];
  float s_[kTiles][kBlock / 8][4];
  float o_[kTiles][D / 8][4];
  float largest_[kTiles][2], total_[kTiles][2];
  int see_last_[kTiles][2];
};

// False: nothing to do for this block of the grid.
template <int D, bool kE4M3, int kTiles>
__device__ bool Worker<D, kE4M3, kTiles>::locate() {
  lane_ = static_cast<int>(threadIdx.x) % 32;
  warp_ = static_cast<int>(threadIdx.x) / 32;
  sequence_ = static_cast<int>(blockIdx.z);
  const int num_kv_heads = static_cast<int>(args_.num_kv_heads);
  kv_head_ = static_cast<int>(blockIdx.y) % num_kv_heads;
  tile_idx_ = static_cast<int>(blockIdx.y) / num_kv_heads;
  group_ = static_cast<int>(args_.num_heads) / num_kv_heads;
  // One row per sequence is the common case: then the position need not wait for query_begin.
  const int likely_position =
      batch_.positions[min(static_cast<int64_t>(sequence_), batch_.num_rows - 1)];
  first_row_ = batch_.query_begin[sequence_];
  const int rows = batch_.query_begin[sequence_ + 1] - first_row_;
  num_queries_ = rows * group_;
  query_begin_ = tile_idx_ * S::kQueries;
  if (rows < 1 || rows > static_cast<int>(kAttentionDecodeRows)) return false;
  if (query_begin_ >= num_queries_) return false;
  query_count_ = min(S::kQueries, num_queries_ - query_begin_);
  first_position_ = first_row_ == sequence_ ? likely_position : batch_.positions[first_row_];
  const int lowest = position_of(query_begin_);
  const int highest = position_of(query_begin_ + query_count_ - 1);
  seen_begin_ = first_seen(lowest), seen_end_ = highest + 1;
  all_see_begin_ = first_seen(highest), all_see_end_ = lowest + 1;
  split_begin_ = split_of(seen_begin_), split_end_ = split_of(highest) + 1;
  table_ = batch_.block_tables + sequence_ * batch_.table_stride;
  return static_cast<int>(blockIdx.x) < split_end_ - split_begin_;
}

template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::run() {
  if (!args_.follows_rope_append) {
    wait_for_previous_kernel();
    allow_next_kernel();
  }
  if (!locate()) {
    if (args_.follows_rope_append) wait_for_previous_kernel();
    return;
  }

  ring_ = shared_address(shared_) + static_cast<uint32_t>(warp_ * S::kStages * 2 * S::kHeadBytes);
  char* const ring_end = shared_ + S::ring_bytes(plan_.merge_rows);
  barriers_ = shared_address(ring_end) + static_cast<uint32_t>(warp_ * S::kStages * 2 * 8);
  tail_ = ring_end + S::kBarrierBytes;
  merge_ = S::kMergesInRing ? shared_ : tail_ + S::tail_merge_offset();
  if (lane_ == 0) {
    for (int i = 0; i < 2 * S::kStages; ++i) barrier_init(barriers_ + 8u * i, 1);
    barrier_init_fence();
  }
  __syncwarp();
  // Parts from the last on: the late ones are the longest.
  const int first_split = split_end_ - 1 - static_cast<int>(blockIdx.x);
  start_part(first_split);
  if (args_.follows_rope_append) {
    start_copies(first_position_ / kBlock);  // blocks that this step's rows are not in
    wait_for_previous_kernel();
    allow_next_kernel();
  }
  start_copies(INT_MAX);
  load_queries();

  for (int split = first_split; split >= split_begin_; split -= static_cast<int>(gridDim.x)) {
    if (S::kMergesInRing && split != first_split) {
      start_part(split);
      start_copies(INT_MAX);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) largest_[tile][i] = -INFINITY, total_[tile][i] = 0;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o_[tile][j][i] = 0;
      }
    }
    const int end = end_block(split);
    for (int block = first_block(split); block < end; block += kWarps) attend_block(block);
    merge_warps(split);
  }
  merge_splits();
}

template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::load_queries() {
  const int heads_begin = kv_head_ * group_;
  constexpr int kUnits = D / 8;  // of 8 elements
  for (int i = static_cast<int>(threadIdx.x); i < S::kQueries * kUnits; i += kWarps * 32) {
    const int query = i / kUnits, unit = i % kUnits;
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (query < query_count_) {
      const int in_sequence = query_begin_ + query;
      const int64_t row = first_row_ + in_sequence / group_;
      const int head = heads_begin + in_sequence % group_;
      bits = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(args_.q) +
                                             row * args_.q_stride + head * D + unit * 8);
      if constexpr (kE4M3) {
        uint32_t* word = &bits.x;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          word[w] =
              pack<true>(__uint_as_float(word[w] << 16), __uint_as_float(word[w] & 0xffff0000u));
        }
      }
    }
    *reinterpret_cast<uint4*>(tail_ + query * S::kQueryPitch + unit * 16) = bits;
  }
  __syncthreads();
  if constexpr (S::kQueriesInRegisters) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        // Not through read_query_tile's result: the array's indices must be constants.
        read_query_tile(tile, step, q_[tile][step]);
      }
    }
    __syncthreads();  // merging reuses the space
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = tile * 16 + i * 8 + lane_ / 4;
      see_last_[tile][i] = position_of(query_begin_ + (query < query_count_ ? query : 0));
    }
  }
}

// The 16 queries x 16 dims that one product takes. For E4M3 the dims of a lane are 4 neighbours,
// as that is what ldmatrix gives it of the keys (score()): a sum over dims may take any order.
template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::read_query_tile(int tile, int step,
                                                          uint32_t (&a)[4]) const {
  if constexpr (kE4M3) {
    const char* row = tail_ + (tile * 16 + lane_ / 4) * S::kQueryPitch + step * 32 + lane_ % 4 * 8;
    const uint2 low = *reinterpret_cast<const uint2*>(row);
    const uint2 high = *reinterpret_cast<const uint2*>(row + 8 * S::kQueryPitch);
    a[0] = low.x, a[1] = high.x, a[2] = low.y, a[3] = high.y;
  } else {
    load_matrices(a, shared_address(tail_ + (tile * 16 + lane_ % 16) * S::kQueryPitch + step * 32 +
                                    lane_ / 16 * 16));
  }
}

// s = q k^T of 32 tokens.
template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::score(uint32_t keys) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s_[tile][j][i] = 0;
    }
  }
  // E4M3: 32 tokens, one unit. bf16: 16 tokens, two neighbouring units.
  const uint32_t row =
      kE4M3 ? row_address<S>(keys, lane_)
            : unit_address<S>(row_address<S>(keys, lane_ / 16 * 8 + lane_ % 8), lane_ / 8 % 2);
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t k[kBlock / 8][2];  // per 8 tokens
    if constexpr (kE4M3) {
      uint32_t r[4];
      load_matrices(r, unit_address<S>(row, step));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        k[j][0] = f16_from_e4m3(r[j] & 0xffffu), k[j][1] = f16_from_e4m3(r[j] >> 16);
      }
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t r[4];
        load_matrices(r, unit_address<S>(row, 2 * step) + half * 16 * S::kRowBytes);
        k[2 * half][0] = r[0], k[2 * half][1] = r[1];
        k[2 * half + 1][0] = r[2], k[2 * half + 1][1] = r[3];
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if constexpr (S::kQueriesInRegisters) {
#pragma unroll
        for (int j = 0; j < kBlock / 8; ++j) {
          multiply<kE4M3>(s_[tile][j], q_[tile][step], k[j][0], k[j][1]);
        }
      } else {
        uint32_t a[4];
        read_query_tile(tile, step, a);
#pragma unroll
        for (int j = 0; j < kBlock / 8; ++j) multiply<kE4M3>(s_[tile][j], a, k[j][0], k[j][1]);
      }
    }
  }
}

// Scores to weights 2^(score log2 e - largest) in s_, with the earlier sums scaled to the new
// largest.
template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::softmax(int block) {
  const int block_begin = block * kBlock;
  const bool all_seen = block_begin >= all_see_begin_ && block_begin + kBlock <= all_see_end_;
  const float scale = args_.scale * layer_.key_scale;
  const bool capped = args_.softcap > 0;
  const float log2_scale = (capped ? 1.0f : scale) * kLog2E;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (capped) {
      const float inner = scale / args_.softcap;
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s_[tile][j][i] = args_.softcap * tanh_fast(s_[tile][j][i] * inner);
        }
      }
    }
    if (!all_seen) {
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int t = block_begin + j * 8 + lane_ % 4 * 2 + i % 2;
          const int last = see_last_[tile][i / 2];
          const bool seen = t >= first_seen(last) && t <= last;
          s_[tile][j][i] = seen ? s_[tile][j][i] : -INFINITY;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // the lane's two rows
      float highest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
        highest = fmaxf(highest, fmaxf(s_[tile][j][2 * half], s_[tile][j][2 * half + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
      const float previous = largest_[tile][half];
      const float largest = fmaxf(previous, highest * log2_scale);
      const float base = largest == -INFINITY ? 0 : largest;  // nothing seen so far: weights 0
      const float shrink = exp2_fast(previous - base);
      largest_[tile][half] = largest;
      float total = total_[tile][half] * shrink;
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s_[tile][j][i] = exp2_fast(fmaf(s_[tile][j][i], log2_scale, -base));
          total += s_[tile][j][i];
        }
      }
      total_[tile][half] = total;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        o_[tile][j][2 * half] *= shrink;
        o_[tile][j][2 * half + 1] *= shrink;
      }
    }
  }
}

// A weight of zero does not silence a NaN: values that no query of this block sees become zero.
template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::clear_unseen(int block, uint32_t values) const {
  const int block_begin = block * kBlock;
  if (block_begin >= seen_begin_ && block_begin + kBlock <= seen_end_) return;
  const int t = block_begin + lane_;
  if (t < seen_begin_ || t >= seen_end_) {
#pragma unroll
    for (int unit = 0; unit < D * S::kSize / 16; ++unit) {
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(
                       unit_address<S>(row_address<S>(values, lane_), unit)),
                   "r"(0)
                   : "memory");
    }
  }
  fence_async_proxy();
  __syncwarp();
}

// o += weights * values of 32 tokens.
template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::add_values(uint32_t values) {
  const uint32_t row =
      unit_address<S>(row_address<S>(values, lane_ / 8 % 2 * 8 + lane_ % 8), lane_ / 16);
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // 16 tokens
    const uint32_t half_row = row + half * 16 * S::kRowBytes;
    uint32_t weights[kTiles][4];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = s_[tile][2 * half + i / 2] + i % 2 * 2;
        weights[tile][i] = pack<kE4M3>(pair[0], pair[1]);
      }
    }

#pragma unroll
    for (int j = 0; j < D / 16; j += kE4M3 ? 2 : 1) {
      uint32_t r[4];
      if constexpr (kE4M3) {
        // Units j and j + 1 of 16 dims; a register holds dims 2n, 2n + 1 of two tokens. Products
        // take the even dims, then the odd ones.
        load_matrices_transposed(r, unit_address<S>(half_row, j));
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const uint32_t low = __byte_perm(r[2 * u], 0, 0x3120);
          const uint32_t high = __byte_perm(r[2 * u + 1], 0, 0x3120);
          const uint32_t even0 = f16_from_e4m3(low & 0xffffu), odd0 = f16_from_e4m3(low >> 16);
          const uint32_t even1 = f16_from_e4m3(high & 0xffffu), odd1 = f16_from_e4m3(high >> 16);
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            multiply<true>(o_[tile][2 * (j + u)], weights[tile], even0, even1);
            multiply<true>(o_[tile][2 * (j + u) + 1], weights[tile], odd0, odd1);
          }
        }
      } else {
        load_matrices_transposed(r, unit_address<S>(half_row, 2 * j));
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          multiply<false>(o_[tile][2 * j], weights[tile], r[0], r[1]);
          multiply<false>(o_[tile][2 * j + 1], weights[tile], r[2], r[3]);
        }
      }
    }
  }
}

template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::attend_block(int block) {
  const int stage = used_ % S::kStages;
  const uint32_t parity = static_cast<uint32_t>(used_ / S::kStages & 1);
  ++used_;
  barrier_wait(barrier(stage, false), parity);
  score(slot(stage, false));
  __syncwarp();  // all lanes have read the slot
  const bool more = has_next();
  const int64_t id = next_id_;
  if (more) {
    copy(id, stage, false);
    advance_next();
  }
  softmax(block);
  barrier_wait(barrier(stage, true), parity);
  clear_unseen(block, slot(stage, true));
  add_values(slot(stage, true));
  __syncwarp();
  if (more) copy(id, stage, true);
}

template <int D, bool kE4M3, int kTiles>
__device__ __nv_bfloat16* Worker<D, kE4M3, kTiles>::out_of(int query) const {
  const int64_t row = first_row_ + query / group_;
  const int head = kv_head_ * group_ + query % group_;
  return static_cast<__nv_bfloat16*>(args_.out) + (row * args_.num_heads + head) * D;
}

// The warps' results for one part, to the workspace, or to the output where a query sees this part
// only.
template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::merge_warps(int split) {
  const int rows = plan_.merge_rows;
  float* sums = reinterpret_cast<float*>(merge_);   // [kWarps][rows][kMergePitch]
  if constexpr (S::kMergesInRing) __syncthreads();  // all warps are done with their slots
  float2* statistics = reinterpret_cast<float2*>(sums + kWarps * rows * S::kMergePitch);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = tile * 16 + half * 8 + lane_ / 4;
      float total = total_[tile][half];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      if (query >= query_count_) continue;
      if (lane_ % 4 == 0) {
        statistics[warp_ * rows + query] = make_float2(largest_[tile][half], total);
      }
      float* sum = sums + (warp_ * rows + query) * S::kMergePitch;
      if constexpr (kE4M3) {
#pragma unroll
        for (int j = 0; j < D / 16; ++j) {
          const float* even = o_[tile][2 * j] + 2 * half;
          const float* odd = o_[tile][2 * j + 1] + 2 * half;
          *reinterpret_cast<float4*>(sum + j * 16 + lane_ % 4 * 4) =
              make_float4(even[0], odd[0], even[1], odd[1]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
          *reinterpret_cast<float2*>(sum + j * 8 + lane_ % 4 * 2) =
              make_float2(o_[tile][j][2 * half], o_[tile][j][2 * half + 1]);
        }
      }
    }
  }
  __syncthreads();
  constexpr int kQuads = D / 4;
  for (int i = static_cast<int>(threadIdx.x); i < query_count_ * kQuads; i += kWarps * 32) {
    const int query = i / kQuads, dim = i % kQuads * 4;
    const int position = position_of(query_begin_ + query);
    const int first = split_of(first_seen(position)), last = split_of(position);
    if (split < first || split > last) continue;
    float largest = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, statistics[w * rows + query].x);
    float total = 0;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float2 part = statistics[w * rows + query];
      const float weight = exp2_fast(part.x - largest);
      const float4 v =
          *reinterpret_cast<const float4*>(sums + (w * rows + query) * S::kMergePitch + dim);
      total += part.y * weight;
      sum.x += v.x * weight, sum.y += v.y * weight;
      sum.z += v.z * weight, sum.w += v.w * weight;
    }
    if (first == last) {
      const float scale = layer_.value_scale / total;
      *reinterpret_cast<uint2*>(out_of(query_begin_ + query) + dim) = make_uint2(
          pack<false>(sum.x * scale, sum.y * scale), pack<false>(sum.z * scale, sum.w * scale));
    } else {
      const int64_t at = partial_idx(query_begin_ + query, split);
      *reinterpret_cast<float4*>(plan_.sums + at * D + dim) = sum;
      if (dim == 0) plan_.statistics[at] = make_float2(largest, total);
    }
  }
  if constexpr (S::kMergesInRing) fence_async_proxy();
  __syncthreads();  // the space is used again by the next part
}

// Adds up the parts of one query, in order, by one warp. statistics and sums: of its first part.
template <int D>
__device__ void merge_query(const float2* statistics, const float* sums, int count,
                            float value_scale, __nv_bfloat16* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float2 nothing = make_float2(-INFINITY, 0);
  const float2 first = lane < count ? __ldcg(statistics + lane) : nothing;
  float largest = first.x;
  for (int i = lane + 32; i < count; i += 32) largest = fmaxf(largest, __ldcg(statistics + i).x);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  }
  constexpr int kQuads = D / 4;  // float4s of a result; a lane has kQuads / 32 of them
  constexpr int kPerLane = (kQuads + 31) / 32;
  constexpr int kAhead = kPerLane == 1 ? 8 : 4;  // loads in flight
  float4 sum[kPerLane] = {};
  float total = 0;
  for (int base = 0; base < count; base += 32) {
    float2 part = base == 0 ? first : nothing;
    if (base > 0 && base + lane < count) part = __ldcg(statistics + base + lane);
    const float weight = exp2_fast(part.x - largest);
    total += part.y * weight;
    const int here = min(32, count - base);
    for (int i = 0; i < here; i += kAhead) {
      float4 v[kAhead][kPerLane];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
#pragma unroll
        for (int p = 0; p < kPerLane; ++p) {
          const int quad = lane + 32 * p;
          v[a][p] = make_float4(0, 0, 0, 0);
          if (i + a < here && quad < kQuads) {
            v[a][p] = __ldcg(
                reinterpret_cast<const float4*>(sums + static_cast<int64_t>(base + i + a) * D) +
                quad);
          }
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const float w = __shfl_sync(0xffffffffu, weight, (i + a) & 31);
#pragma unroll
        for (int p = 0; p < kPerLane; ++p) {
          sum[p].x = fmaf(v[a][p].x, w, sum[p].x), sum[p].y = fmaf(v[a][p].y, w, sum[p].y);
          sum[p].z = fmaf(v[a][p].z, w, sum[p].z), sum[p].w = fmaf(v[a][p].w, w, sum[p].w);
        }
      }
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    total += __shfl_xor_sync(0xffffffffu, total, offset);
  }
  const float scale = value_scale / total;
#pragma unroll
  for (int p = 0; p < kPerLane; ++p) {
    const int quad = lane + 32 * p;
    if (quad >= kQuads) continue;
    *reinterpret_cast<uint2*>(out + quad * 4) =
        make_uint2(pack<false>(sum[p].x * scale, sum[p].y * scale),
                   pack<false>(sum[p].z * scale, sum[p].w * scale));
  }
}

// Merging by the block that finishes last, or is the only one.
template <int D, bool kE4M3, int kTiles>
__device__ void Worker<D, kE4M3, kTiles>::merge_splits() {
  const int parts = split_end_ - split_begin_;
  if (parts == 1 || plan_.merges_apart) return;
  if (gridDim.x > 1) {
    bool is_last = false;
    if (threadIdx.x == 0) {
      const int arrivals = min(static_cast<int>(gridDim.x), parts);
      int32_t* counter =
          plan_.counters + (static_cast<int64_t>(sequence_) * gridDim.y + blockIdx.y);
      __threadfence();
      is_last = atomicAdd(counter, 1) == arrivals - 1;
      if (is_last) *counter = 0;
      __threadfence();
    }
    if (__syncthreads_or(is_last) == 0) return;
  }
  for (int query = query_begin_ + warp_; query < query_begin_ + query_count_; query += kWarps) {
    const int position = position_of(query);
    const int first = split_of(first_seen(position));
    const int count = split_of(position) + 1 - first;
    if (count == 1) continue;
    const int64_t at = partial_idx(query, first);
    merge_query<D>(plan_.statistics + at, plan_.sums + at * D, count, layer_.value_scale,
                   out_of(query));
  }
}

// Merging for many queries: a warp for each.
template <int D>
__global__ void __launch_bounds__(kWarps * 32)
    merge_kernel(const __grid_constant__ AttentionCudaArgs args,
                 const __grid_constant__ CudaBatch batch, float value_scale,
                 const __grid_constant__ Plan plan) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int sequence = static_cast<int>(blockIdx.z), kv_head = static_cast<int>(blockIdx.y);
  const int query = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int group = static_cast<int>(args.num_heads / args.num_kv_heads);
  const int first_row = batch.query_begin[sequence];
  const int rows = batch.query_begin[sequence + 1] - first_row;
  if (rows > static_cast<int>(kAttentionDecodeRows) || query >= rows * group) return;
  // The parts are counted from the first that its block's queries see, 16 or 32 of them.
  const int window = static_cast<int>(args.sliding_window);
  const auto first_part = [&](int q) {
    const int position = batch.positions[first_row] + q / group;
    return split_of(window > 0 && window <= position ? position - window + 1 : 0);
  };
  const int position = batch.positions[first_row] + query / group;
  const int first = first_part(query);
  const int count = split_of(position) + 1 - first;
  if (count == 1) return;
  const int64_t at =
      ((static_cast<int64_t>(sequence) * args.num_kv_heads + kv_head) * plan.num_queries + query) *
          plan.num_splits +
      first - first_part(query / plan.tile_queries * plan.tile_queries);
  merge_query<D>(
      plan.statistics + at, plan.sums + at * D, count, value_scale,
      static_cast<__nv_bfloat16*>(args.out) +
          ((first_row + query / group) * args.num_heads + kv_head * group + query % group) * D);
}

template <int D, bool kE4M3, int kTiles>
__global__ void __launch_bounds__(kWarps * 32, Shape<D, kE4M3, kTiles>::kBlocksPerSm)
    decode_kernel(const __grid_constant__ AttentionCudaArgs args,
                  const __grid_constant__ CudaBatch batch,
                  const __grid_constant__ KvCudaLayer layer, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(128) char shared[];
  Worker<D, kE4M3, kTiles>(args, batch, layer, plan, shared).run();
}

template <int D, bool kE4M3, int kTiles>
void launch(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
            const DecodeGrid& grid, CudaStream stream) {
  using S = Shape<D, kE4M3, kTiles>;
  const Plan plan{.num_splits = static_cast<int>(grid.num_splits),
                  .num_queries = static_cast<int>(grid.num_queries),
                  .tile_queries = S::kQueries,
                  .merge_rows = static_cast<int>(std::min<int64_t>(S::kQueries, grid.num_queries)),
                  .merges_apart = decode_merges_apart(grid),
                  .counters = static_cast<int32_t*>(args.workspace),
                  .statistics = reinterpret_cast<float2*>(static_cast<char*>(args.workspace) +
                                                          kDecodeCounterBytes),
                  .sums = reinterpret_cast<float*>(static_cast<char*>(args.workspace) +
                                                   kDecodeCounterBytes + grid.statistics_bytes)};
  const int64_t tiles = (grid.num_queries + S::kQueries - 1) / S::kQueries;
  const int64_t pairs = args.num_kv_heads * tiles * batch.num_sequences;
  const int shared_bytes = S::shared_bytes(plan.merge_rows);
  const auto kernel = decode_kernel<D, kE4M3, kTiles>;
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
      "shared memory of attention_decode");
  const dim3 blocks(
      static_cast<unsigned>(decode_blocks_per_pair(pairs, batch.max_context, grid.num_splits)),
      static_cast<unsigned>(args.num_kv_heads * tiles), static_cast<unsigned>(batch.num_sequences));
  launch_dependent("attention_decode", kernel, blocks, dim3(kWarps * 32), shared_bytes, stream, 1,
                   args, batch, layer, plan);
  if (!plan.merges_apart) return;
  const dim3 merge_blocks(static_cast<unsigned>((grid.num_queries + kWarps - 1) / kWarps),
                          static_cast<unsigned>(args.num_kv_heads),
                          static_cast<unsigned>(batch.num_sequences));
  launch_dependent("attention_merge", merge_kernel<D>, merge_blocks, dim3(kWarps * 32), 0, stream,
                   1, args, batch, layer.value_scale, plan);
}

// Two tiles a block when there are more than 16 queries: the keys and values of a block are then
// read from memory half as often. A query's bits are the same.
template <bool kE4M3>
void launch_any(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
                const DecodeGrid& grid, CudaStream stream) {
  const bool wide = grid.num_queries > 16;
  switch (args.head_dim) {
    case 64:
      return (wide ? launch<64, kE4M3, 2> : launch<64, kE4M3, 1>)(args, batch, layer, grid, stream);
    case 96:
      return (wide ? launch<96, kE4M3, 2> : launch<96, kE4M3, 1>)(args, batch, layer, grid, stream);
    case 128:
      return (wide ? launch<128, kE4M3, 2> : launch<128, kE4M3, 1>)(args, batch, layer, grid,
                                                                    stream);
    case 256:
      return launch<256, kE4M3, 1>(args, batch, layer, grid, stream);
  }
  fail(ErrorCode::kInternal, "attention_decode: head_dim ", args.head_dim);
}

}  // namespace decode
}  // namespace lathe::sm90
