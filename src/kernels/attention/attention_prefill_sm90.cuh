// Attention of long runs of rows, more than kAttentionDecodeRows of a sequence: bound by the matrix
// units, so two warpgroups multiply with wgmma while a third brings keys and values.
//
//   block (x, y, z) = KV head x, tile of 128 queries y from the last one on (those see the most,
//   and start first), sequence z. The queries of a KV head are its (row, head of the group) pairs
//   in that order, so a tile's rows lie close together and little of a tile of scores is masked.
//   Warpgroup 0 copies tiles of kTokens keys and values into two stages of shared memory. The
//   layout of the cache is what wgmma reads, so a copy is one piece per block and group of columns;
//   E4M3 tiles are turned into f16 on the way. Warpgroups 1 and 2 have 64 queries each and walk
//   from the last tile to the first:
//     S' = Q K'^T | O += P V   both in flight, softmax of S' while the second one runs
//   and take turns at issuing them, so that one's softmax runs under the other's products.
//
// Tiles of tokens lie at multiples of kTokens, and tokens a query does not see add exact zeros: so
// a query's bits do not depend on how a prompt is cut into runs. Sources: Dao, "FlashAttention-2"
// (2023); Shah et al., "FlashAttention-3" (2024).
#pragma once
#include "kernels/attention/attention_cuda_kernels.h"
#include "kernels/attention/sm90_memory.cuh"
#include "kernels/attention/sm90_wgmma.cuh"
#include "tensor/cuda_launch.cuh"

namespace lathe::sm90 {
namespace prefill {

constexpr int kBlock = static_cast<int>(kBlockSize);
constexpr int kWarpgroup = 128;  // threads
constexpr int kThreads = 3 * kWarpgroup;
constexpr int kQueries = 128;  // of a block
constexpr int kStages = 2;     // of keys, and of values
constexpr float kLog2E = 1.4426950408889634f;

// Named barriers; 0 is __syncthreads().
constexpr int kQueriesBarrier = 1;  // and 2: one warpgroup's queries are in shared memory
constexpr int kTurnBarrier = 3;     // and 4: a warpgroup may issue its products
constexpr int kConvertBarrier = 5;  // warpgroup 0 has read a tile of E4M3 numbers

template <int D, bool kE4M3>
struct Shape {
  static constexpr int kTokens = D > 128 ? 64 : 128;  // of a tile
  // In shared memory, 16-bit elements: [column group][row][kRowBytes], swizzled.
  static constexpr int kRowBytes = kv_cuda_row_bytes(KvCudaElement::kBF16, D);
  static constexpr int kGroups = D * 2 / kRowBytes;
  static constexpr int kTileBytes = kTokens * D * 2;
  static constexpr int kQueryBytes = kQueries * D * 2;
  // In the cache.
  static constexpr KvCudaElement kElement = kE4M3 ? KvCudaElement::kE4M3 : KvCudaElement::kBF16;
  static constexpr int kSize = kE4M3 ? 1 : 2;
  static constexpr int kCacheRowBytes = kv_cuda_row_bytes(kElement, D);
  static constexpr int kCacheGroups = D * kSize / kCacheRowBytes;
  static constexpr int kHeadBytes = kBlock * D * kSize;  // keys or values of one head of a block
  static constexpr int kRawBytes = kTokens * D;          // a tile of E4M3 numbers
  static constexpr int kRawSlots = kE4M3 ? (D > 128 ? 2 : 3) : 0;

  static constexpr int kKeysAt = kQueryBytes;
  static constexpr int kValuesAt = kKeysAt + kStages * kTileBytes;
  static constexpr int kRawAt = kValuesAt + kStages * kTileBytes;
  static constexpr int kBarriersAt = kRawAt + kRawSlots * kRawBytes;
  static constexpr int kSharedBytes = kBarriersAt + 256 + 1024;  // 1024 to align the start

  static constexpr int kValueParts = D > 128 ? 2 : 1;  // products with at most 128 columns
  static constexpr int kPartColumns = D / kValueParts;
};

// Byte offset of 16-byte unit `unit` of row `row` among `rows` rows.
template <int kRowBytes>
__device__ inline int unit_offset(int rows, int row, int unit) {
  constexpr int kUnits = kRowBytes / 16;
  const int permutation = kRowBytes == 128  ? row & 7
                          : kRowBytes == 64 ? row >> 1 & 3
                                            : row >> 2 & 1;
  return (unit / kUnits * rows + row) * kRowBytes + ((unit % kUnits ^ permutation) << 4);
}

// What all threads of a block know about its work.
struct Tile {
  int sequence, kv_head, group;
  int first_row, first_position, num_queries;
  int query_begin;           // among the sequence's for this KV head
  int seen_begin, seen_end;  // positions that some query sees
  int window;

  __device__ int position_of(int query) const {
    return first_position + min(query, num_queries - 1) / group;
  }
  __device__ int first_seen(int position) const {
    return window > 0 && window <= position ? position - window + 1 : 0;
  }
  // False: nothing to do.
  __device__ bool locate(const AttentionCudaArgs& args, const CudaBatch& batch) {
    sequence = static_cast<int>(blockIdx.z);
    kv_head = static_cast<int>(blockIdx.x);
    group = static_cast<int>(args.num_heads / args.num_kv_heads);
    window = static_cast<int>(args.sliding_window);
    first_row = batch.query_begin[sequence];
    const int rows = batch.query_begin[sequence + 1] - first_row;
    if (rows <= static_cast<int>(kAttentionDecodeRows)) return false;
    num_queries = rows * group;
    const int tiles = (num_queries + kQueries - 1) / kQueries;
    const int tile = tiles - 1 - static_cast<int>(blockIdx.y);
    if (tile < 0) return false;
    query_begin = tile * kQueries;
    first_position = batch.positions[first_row];
    seen_begin = first_seen(position_of(query_begin));
    seen_end = position_of(query_begin + kQueries - 1) + 1;
    return true;
  }
};

// Barriers in shared memory, by stage.
struct Barriers {
  uint32_t base;
  __device__ uint32_t full(bool is_value, int stage) const {
    return base + 8u * static_cast<uint32_t>((is_value ? kStages : 0) + stage);
  }
  __device__ uint32_t empty(bool is_value, int stage) const {
    return full(is_value, stage) + 8u * 2 * kStages;
  }
  __device__ uint32_t raw(int slot) const { return base + 8u * (4 * kStages + slot); }
};

// Warpgroup 0.
template <int D, bool kE4M3>
class Producer {
  using S = Shape<D, kE4M3>;

 public:
  __device__ Producer(const AttentionCudaArgs& args, const CudaBatch& batch,
                      const KvCudaLayer& layer, const Tile& tile, char* shared, Barriers barriers)
      : layer_(layer),
        tile_(tile),
        shared_(shared),
        barriers_(barriers),
        num_kv_heads_(args.num_kv_heads),
        table_(batch.block_tables + tile.sequence * batch.table_stride),
        last_((tile.seen_end - 1) / S::kTokens),
        count_(last_ - tile.seen_begin / S::kTokens + 1),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  // Tiles in the order in which the others use them: K0, K1, V0, K2, V1, ...
  __device__ void run() {
    if constexpr (kE4M3) {
      const int items = 2 * count_;
      for (int i = 0; i < S::kRawSlots && i < items; ++i) copy_raw(i);
      for (int i = 0; i < items; ++i) {
        convert(i);
        named_barrier_sync(kConvertBarrier, kWarpgroup);  // the slot is free
        if (i + S::kRawSlots < items) copy_raw(i + S::kRawSlots);
      }
    } else {
      if (threadIdx.x >= 32) return;
      for (int i = 0; i < 2 * count_; ++i) {
        const bool is_value = value_item(i);
        const int use = use_of(i), stage = use % kStages;
        wait_empty(is_value, use);
        const uint32_t to =
            shared_address(shared_) +
            static_cast<uint32_t>((is_value ? S::kValuesAt : S::kKeysAt) + stage * S::kTileBytes);
        if (is_value) clear_unseen(last_ - use, to);
        copy_tile(is_value, last_ - use, to, barriers_.full(is_value, stage));
      }
    }
  }

 private:
  // Item i is keys or values; the use_of(i)-th tile of its kind.
  __device__ bool value_item(int i) const { return i == 2 * count_ - 1 || (i >= 2 && i % 2 == 0); }
  __device__ int use_of(int i) const { return value_item(i) ? (i - 1) / 2 : (i + 1) / 2; }

  __device__ void wait_empty(bool is_value, int use) const {
    if (use < kStages) return;
    barrier_wait(barriers_.empty(is_value, use % kStages),
                 static_cast<uint32_t>(use / kStages - 1 & 1));
  }

  // By one warp: the tokens of the tile that are seen. `full` counts them and one arrival.
  __device__ void copy_tile(bool is_value, int tile_idx, uint32_t to, uint32_t full) const {
    constexpr int kCopies = S::kTokens / kBlock * S::kCacheGroups;
    static_assert(kCopies <= 32);
    const int tile_begin = tile_idx * S::kTokens;
    if (lane_ == 0) {
      const int tokens =
          min(tile_.seen_end, tile_begin + S::kTokens) - max(tile_.seen_begin, tile_begin);
      barrier_expect(full, static_cast<uint32_t>(tokens * D * S::kSize));
    }
    __syncwarp();
    if (lane_ >= kCopies) return;
    const int block = tile_begin / kBlock + lane_ / S::kCacheGroups;
    const int columns = lane_ % S::kCacheGroups;
    const int begin = max(tile_.seen_begin, block * kBlock);
    const int end = min(tile_.seen_end, (block + 1) * kBlock);
    if (begin >= end) return;
    const char* head = static_cast<const char*>(is_value ? layer_.values : layer_.keys) +
                       (table_[block] * num_kv_heads_ + tile_.kv_head) * S::kHeadBytes;
    bulk_copy(
        to + static_cast<uint32_t>((columns * S::kTokens + begin - tile_begin) * S::kCacheRowBytes),
        head + (columns * kBlock + begin - block * kBlock) * S::kCacheRowBytes,
        static_cast<uint32_t>((end - begin) * S::kCacheRowBytes), full);
  }

  // By one warp: a weight of zero does not silence what an earlier tile or nobody left here.
  __device__ void clear_unseen(int tile_idx, uint32_t to) const {
    const int tile_begin = tile_idx * S::kTokens;
    if (tile_begin >= tile_.seen_begin && tile_begin + S::kTokens <= tile_.seen_end) return;
    constexpr int kUnits = D / 8;
    for (int i = lane_; i < S::kTokens * kUnits; i += 32) {
      const int token = i / kUnits;
      if (tile_begin + token >= tile_.seen_begin && tile_begin + token < tile_.seen_end) continue;
      asm volatile(
          "st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(
              to + static_cast<uint32_t>(unit_offset<S::kRowBytes>(S::kTokens, token, i % kUnits))),
          "r"(0)
          : "memory");
    }
    fence_async_proxy();
    __syncwarp();
  }

  __device__ void copy_raw(int i) const {
    if (threadIdx.x >= 32) return;
    const int slot = i % S::kRawSlots;
    copy_tile(value_item(i), last_ - use_of(i),
              shared_address(shared_ + S::kRawAt) + static_cast<uint32_t>(slot * S::kRawBytes),
              barriers_.raw(slot));
  }

  // By the warpgroup: E4M3 to f16, 16 numbers of a token a time; unseen values become zero.
  __device__ void convert(int i) const {
    const bool is_value = value_item(i);
    const int use = use_of(i), stage = use % kStages, slot = i % S::kRawSlots;
    const int tile_begin = (last_ - use) * S::kTokens;
    const char* from = shared_ + S::kRawAt + slot * S::kRawBytes;
    char* to = shared_ + (is_value ? S::kValuesAt : S::kKeysAt) + stage * S::kTileBytes;
    wait_empty(is_value, use);
    barrier_wait(barriers_.raw(slot), static_cast<uint32_t>(i / S::kRawSlots & 1));
    constexpr int kUnits = D / 16;
    // Neighbouring threads take neighbouring tokens, which the swizzle spreads over the banks.
    for (int j = static_cast<int>(threadIdx.x); j < S::kTokens * kUnits; j += kWarpgroup) {
      const int token = j % S::kTokens, unit = j / S::kTokens;
      const uint4 codes = *reinterpret_cast<const uint4*>(
          from + unit_offset<S::kCacheRowBytes>(S::kTokens, token, unit));
      uint4 low, high;
      low.x = f16_from_e4m3(codes.x & 0xffffu), low.y = f16_from_e4m3(codes.x >> 16);
      low.z = f16_from_e4m3(codes.y & 0xffffu), low.w = f16_from_e4m3(codes.y >> 16);
      high.x = f16_from_e4m3(codes.z & 0xffffu), high.y = f16_from_e4m3(codes.z >> 16);
      high.z = f16_from_e4m3(codes.w & 0xffffu), high.w = f16_from_e4m3(codes.w >> 16);
      const int t = tile_begin + token;
      if (is_value && (t < tile_.seen_begin || t >= tile_.seen_end)) {
        low = high = make_uint4(0, 0, 0, 0);
      }
      *reinterpret_cast<uint4*>(to + unit_offset<S::kRowBytes>(S::kTokens, token, 2 * unit)) = low;
      *reinterpret_cast<uint4*>(to + unit_offset<S::kRowBytes>(S::kTokens, token, 2 * unit + 1)) =
          high;
    }
    fence_async_proxy();
    barrier_arrive(barriers_.full(is_value, stage));
  }

  const KvCudaLayer& layer_;
  const Tile& tile_;
  char* const shared_;
  const Barriers barriers_;
  const int64_t num_kv_heads_;
  const int32_t* const table_;
  const int last_, count_;
  const int lane_;
};

// Warpgroups 1 and 2.
template <int D, bool kE4M3>
class Consumer {
  using S = Shape<D, kE4M3>;

 public:
  __device__ Consumer(const AttentionCudaArgs& args, const KvCudaLayer& layer, const Tile& tile,
                      char* shared, Barriers barriers)
      : args_(args),
        tile_(tile),
        shared_(shared),
        barriers_(barriers),
        side_(static_cast<int>(threadIdx.x) / kWarpgroup - 1),
        thread_(static_cast<int>(threadIdx.x) % kWarpgroup),
        value_scale_(layer.value_scale) {
    const float scale = args.scale * layer.key_scale;
    const bool capped = args.softcap > 0;
    cap_scale_ = capped ? scale / args.softcap : 0;
    log2_scale_ = (capped ? args.softcap : scale) * kLog2E;
  }

  __device__ void run() {
    load_queries();
    const int last = (tile_.seen_end - 1) / S::kTokens;
    const int first = tile_.seen_begin / S::kTokens;
    if (side_ == 1) named_barrier_arrive(kTurnBarrier, 2 * kWarpgroup);

    barrier_wait(barriers_.full(false, 0), 0);
    multiply_fence();
    start_scores(0);
    multiply_wait<0>();
    pin(s_);
    release(false, 0);
    softmax(last);
    pack_weights();
    int use = 0;  // tiles of scores so far, less one
    for (int tile_idx = last - 1; tile_idx >= first; --tile_idx) {
      ++use;
      const int stage = use % kStages, value_stage = (use - 1) % kStages;
      barrier_wait(barriers_.full(false, stage), static_cast<uint32_t>(use / kStages & 1));
      named_barrier_sync(kTurnBarrier + side_, 2 * kWarpgroup);
      multiply_fence();
      start_scores(stage);
      barrier_wait(barriers_.full(true, value_stage),
                   static_cast<uint32_t>((use - 1) / kStages & 1));
      start_sums(value_stage);
      named_barrier_arrive(kTurnBarrier + 1 - side_, 2 * kWarpgroup);
      multiply_wait<1>();
      pin(s_);
      release(false, stage);
      softmax(tile_idx);
      multiply_wait<0>();
      pin_sums();
      release(true, value_stage);
      shrink_sums();
      pack_weights();
    }
    barrier_wait(barriers_.full(true, use % kStages), static_cast<uint32_t>(use / kStages & 1));
    multiply_fence();
    start_sums(use % kStages);
    multiply_wait<0>();
    pin_sums();
    store();
  }

 private:
  __device__ void load_queries() {
    constexpr int kUnits = D / 8;
#pragma unroll 4
    for (int i = thread_; i < 64 * kUnits; i += kWarpgroup) {
      const int row = side_ * 64 + i / kUnits, unit = i % kUnits;
      const int query = tile_.query_begin + row;
      uint4 bits = make_uint4(0, 0, 0, 0);
      if (query < tile_.num_queries) {
        const int64_t q_row = tile_.first_row + query / tile_.group;
        const int head = tile_.kv_head * tile_.group + query % tile_.group;
        bits = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(args_.q) +
                                               q_row * args_.q_stride + head * D + unit * 8);
        if constexpr (kE4M3) {
          bits.x = f16_from_bf16(bits.x), bits.y = f16_from_bf16(bits.y);
          bits.z = f16_from_bf16(bits.z), bits.w = f16_from_bf16(bits.w);
        }
      }
      *reinterpret_cast<uint4*>(shared_ + unit_offset<S::kRowBytes>(kQueries, row, unit)) = bits;
    }
    fence_async_proxy();
    named_barrier_sync(kQueriesBarrier + side_, kWarpgroup);
    const int row = tile_.query_begin + side_ * 64 + thread_ / 32 * 16 + thread_ % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      see_last_[half] = tile_.position_of(row + 8 * half);
      see_begin_[half] = tile_.first_seen(see_last_[half]);
    }
    const int lowest = tile_.position_of(tile_.query_begin + side_ * 64);
    const int highest = tile_.position_of(tile_.query_begin + side_ * 64 + 63);
    all_see_begin_ = tile_.first_seen(highest), all_see_end_ = lowest + 1;
  }
  static __device__ uint32_t f16_from_bf16(uint32_t two) {
    return pack<true>(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
  }

  __device__ void release(bool is_value, int stage) const {
    if (thread_ % 32 == 0) barrier_arrive(barriers_.empty(is_value, stage));
  }

  // s = q k^T
  __device__ void start_scores(int stage) {
    const uint64_t q = matrix_descriptor<S::kRowBytes>(
        shared_address(shared_) + static_cast<uint32_t>(side_ * 64 * S::kRowBytes));
    const uint64_t k = matrix_descriptor<S::kRowBytes>(
        shared_address(shared_) + static_cast<uint32_t>(S::kKeysAt + stage * S::kTileBytes));
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const int columns = step * 32 / S::kRowBytes, byte = step * 32 % S::kRowBytes;
      multiply_shared<kE4M3>(
          s_, q + static_cast<uint64_t>((columns * kQueries * S::kRowBytes + byte) >> 4),
          k + static_cast<uint64_t>((columns * S::kTokens * S::kRowBytes + byte) >> 4), step > 0);
    }
    multiply_commit();
  }

  // o += weights * v
  __device__ void start_sums(int stage) {
    constexpr uint32_t kColumnBytes = S::kTokens * S::kRowBytes;
    const uint64_t v = matrix_descriptor<S::kRowBytes>(
        shared_address(shared_) + static_cast<uint32_t>(S::kValuesAt + stage * S::kTileBytes),
        kColumnBytes);
#pragma unroll
    for (int step = 0; step < S::kTokens / 16; ++step) {
#pragma unroll
      for (int part = 0; part < S::kValueParts; ++part) {
        constexpr int kPartGroups = S::kPartColumns * 2 / S::kRowBytes;
        multiply_registers<kE4M3>(
            o_[part], weights_[step],
            v + static_cast<uint64_t>((step * 16 * S::kRowBytes +
                                       part * kPartGroups * static_cast<int>(kColumnBytes)) >>
                                      4));
      }
    }
    multiply_commit();
  }

  __device__ void pin_sums() {
#pragma unroll
    for (int part = 0; part < S::kValueParts; ++part) pin(o_[part]);
  }

  // Scores of the tile to weights 2^(score log2 e - largest); shrink_ is what the sums before them
  // have to be multiplied by.
  __device__ void softmax(int tile_idx) {
    const int tile_begin = tile_idx * S::kTokens;
    constexpr int kCount = S::kTokens / 2;
    if (cap_scale_ > 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) s_[i] = tanh_fast(s_[i] * cap_scale_);
    }
    if (tile_begin < all_see_begin_ || tile_begin + S::kTokens > all_see_end_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int t = tile_begin + i / 4 * 8 + thread_ % 4 * 2 + i % 2;
        const int half = i / 2 % 2;
        s_[i] = t >= see_begin_[half] && t <= see_last_[half] ? s_[i] : -INFINITY;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kCount / 4; ++j) {
        highest = fmaxf(highest, fmaxf(s_[4 * j + 2 * half], s_[4 * j + 2 * half + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
      const float largest = fmaxf(largest_[half], highest * log2_scale_);
      const float base = largest == -INFINITY ? 0 : largest;  // nothing seen so far: weights 0
      shrink_[half] = exp2_fast(largest_[half] - base);
      largest_[half] = largest;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kCount / 4; ++j) {
#pragma unroll
        for (int i = 4 * j + 2 * half; i < 4 * j + 2 * half + 2; ++i) {
          s_[i] = exp2_fast(fmaf(s_[i], log2_scale_, -base));
          total += s_[i];
        }
      }
      total_[half] = total_[half] * shrink_[half] + total;
    }
  }

  __device__ void shrink_sums() {
#pragma unroll
    for (int part = 0; part < S::kValueParts; ++part) {
#pragma unroll
      for (int i = 0; i < S::kPartColumns / 2; ++i) o_[part][i] *= shrink_[i / 2 % 2];
    }
  }

  __device__ void pack_weights() {
#pragma unroll
    for (int step = 0; step < S::kTokens / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights_[step][i] = pack<kE4M3>(s_[8 * step + 2 * i], s_[8 * step + 2 * i + 1]);
      }
    }
  }

  __device__ void store() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = total_[half];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const float scale = value_scale_ / total;
      const int query =
          tile_.query_begin + side_ * 64 + thread_ / 32 * 16 + thread_ % 32 / 4 + 8 * half;
      if (query >= tile_.num_queries) continue;
      const int64_t row = tile_.first_row + query / tile_.group;
      const int head = tile_.kv_head * tile_.group + query % tile_.group;
      __nv_bfloat16* out = static_cast<__nv_bfloat16*>(args_.out) +
                           (row * args_.num_heads + head) * D + thread_ % 4 * 2;
#pragma unroll
      for (int part = 0; part < S::kValueParts; ++part) {
#pragma unroll
        for (int j = 0; j < S::kPartColumns / 8; ++j) {
          *reinterpret_cast<uint32_t*>(out + part * S::kPartColumns + j * 8) = pack<false>(
              o_[part][4 * j + 2 * half] * scale, o_[part][4 * j + 2 * half + 1] * scale);
        }
      }
    }
  }

  const AttentionCudaArgs& args_;
  const Tile& tile_;
  char* const shared_;
  const Barriers barriers_;
  const int side_, thread_;
  const float value_scale_;
  float cap_scale_, log2_scale_;
  int see_begin_[2], see_last_[2], all_see_begin_, all_see_end_;

  float s_[S::kTokens / 2];
  uint32_t weights_[S::kTokens / 16][4];
  float o_[S::kValueParts][S::kPartColumns / 2] = {};
  float largest_[2] = {-INFINITY, -INFINITY}, total_[2] = {}, shrink_[2];
};

template <int D, bool kE4M3>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ AttentionCudaArgs args,
                   const __grid_constant__ CudaBatch batch,
                   const __grid_constant__ KvCudaLayer layer) {
  using S = Shape<D, kE4M3>;
  extern __shared__ char unaligned[];
  wait_for_previous_kernel();
  allow_next_kernel();
  Tile tile;
  if (!tile.locate(args, batch)) return;
  char* shared = unaligned + (1024 - (shared_address(unaligned) & 1023)) % 1024;
  const Barriers barriers{shared_address(shared + S::kBarriersAt)};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      for (const bool is_value : {false, true}) {
        barrier_init(barriers.full(is_value, stage), kE4M3 ? kWarpgroup : 1);
        barrier_init(barriers.empty(is_value, stage), 2 * kWarpgroup / 32);
      }
    }
    for (int slot = 0; slot < S::kRawSlots; ++slot) barrier_init(barriers.raw(slot), 1);
    barrier_init_fence();
  }
  __syncthreads();
  // 40 + 2 * 232 registers a thread of each warpgroup are what 3 * 168 give.
  if (threadIdx.x < kWarpgroup) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    Producer<D, kE4M3>(args, batch, layer, tile, shared, barriers).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    Consumer<D, kE4M3>(args, layer, tile, shared, barriers).run();
  }
}

template <int D, bool kE4M3>
void launch(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
            CudaStream stream) {
  using S = Shape<D, kE4M3>;
  const auto kernel = prefill_kernel<D, kE4M3>;
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
      "shared memory of attention_prefill");
  const int64_t queries = batch.max_rows_per_sequence * (args.num_heads / args.num_kv_heads);
  const dim3 blocks(static_cast<unsigned>(args.num_kv_heads),
                    static_cast<unsigned>((queries + kQueries - 1) / kQueries),
                    static_cast<unsigned>(batch.num_sequences));
  launch_dependent("attention_prefill", kernel, blocks, dim3(kThreads), S::kSharedBytes, stream, 1,
                   args, batch, layer);
}

template <bool kE4M3>
void launch_any(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
                CudaStream stream) {
  switch (args.head_dim) {
    case 64:
      return launch<64, kE4M3>(args, batch, layer, stream);
    case 96:
      return launch<96, kE4M3>(args, batch, layer, stream);
    case 128:
      return launch<128, kE4M3>(args, batch, layer, stream);
    case 256:
      return launch<256, kE4M3>(args, batch, layer, stream);
  }
  fail(ErrorCode::kInternal, "attention_prefill: head_dim ", args.head_dim);
}

}  // namespace prefill
}  // namespace lathe::sm90
