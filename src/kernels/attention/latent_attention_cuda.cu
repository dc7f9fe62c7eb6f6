// A block of the grid stays with one KV head, whose weights fill much of its shared memory, and has
// two warpgroups that go their own ways. A piece of work is a part of one sequence's context
// (attention_splits.h), 64 tokens at a time; a warp has 16 of them, a lane two:
//
//   codes -> pairs of bf16 by look-ups in tables that stand 32 times, once for each bank; they are
//   the registers of wgmma's left operand as they come: vectors x Hadamard, scaled, + z x U^T
//   + u, RoPE by the place in the warp's 16, to bf16: left operand of the scores; queries are
//   turned back by the position of the first of the 16
//   the largest score over the warpgroup, weights, to shared memory
//   sums: each warp takes a quarter of the latent's and of the head's numbers, for all 64 tokens
//
// Per token and KV head: head_dim (head_dim + rank) multiply-adds of wgmma, 8 (2 head_dim + rank)
// of mma, some (rank + 2 head_dim) * 3 / 64 instructions of a warp for look-ups and as many bytes /
// 2 of shared memory. At rank 256 and 8 heads of 128 numbers tensor cores bind, with 0.2 ms for
// 262,144 tokens of a layer.
#include <cuda_bf16.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/attention/attention_splits.h"
#include "kernels/attention/kv_rotate_cuda.cuh"
#include "kernels/attention/latent_attention_cuda.h"
#include "kernels/attention/sm90_memory.cuh"
#include "kernels/attention/sm90_wgmma.cuh"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

using namespace sm90;  // NOLINT(google-build-using-namespace): instructions

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kBlock = static_cast<int>(kBlockSize);
constexpr int kTile = 64;    // tokens of a warpgroup
constexpr int kQueries = 8;  // of a KV head, at the most
constexpr int kWarpgroup = 128;
constexpr int kGroups = 2;  // warpgroups of a block: a third spills registers
constexpr int kExactWarps = 4;
constexpr int kMergeThreads = 256;

struct Plan {
  int num_splits = 0;  // stride of a query's partial results
  // [num_sequences, num_heads, num_splits]: largest score * log2 e, sum of 2^(score - largest)
  float2* code_statistics = nullptr;
  float2* exact_statistics = nullptr;
  float* code_sums = nullptr;   // the same and [rank + head_dim]
  float* exact_sums = nullptr;  // the same and [head_dim]
};

// Shared memory by its address: what is constant in an address costs no instruction. kBytes: of a
// token's latent that a lane adds up, so rank <= 64 kBytes.
template <int D, int kBytes>
struct Shape {
  static constexpr bool kWide = D == 128 && kBytes > 1;  // ranks are multiples of 128
  static constexpr int kKeySteps = D / 16;
  static constexpr int kHalf = D / 2;
  static constexpr int kValueTiles = D / 64;              // of 16 numbers, that a warp adds up
  static constexpr int kLatentStride = 32 * kBytes + 16;  // bytes; rows begin in other banks
  static constexpr int kValueStride = D / 4 + 4;
  static constexpr int kRopeStride = kHalf * 8 + 64;
  static constexpr int kQueryStride = D / 2 + 4;  // words

  static constexpr uint32_t kBegin = 2048;  // below it is what the system keeps
  static constexpr uint32_t kPoints = kBegin;
  static constexpr uint32_t kLatentPoints = kPoints + 16 * 128;
  static constexpr uint32_t kRope = kLatentPoints + 256 * 128;
  static constexpr uint32_t kBias = kRope + 16 * kRopeStride;
  static constexpr uint32_t kBarrier = kBias + D * 4;
  static constexpr uint32_t kOwn = kBarrier + 16;  // of each warpgroup:
  static constexpr uint32_t kLatents = 0;          // two tiles
  static constexpr uint32_t kValues = kLatents + 2 * kTile * kLatentStride;
  static constexpr uint32_t kAngles = kValues + kTile * kValueStride;  // [4 warps][cos, sin][D / 2]
  static constexpr uint32_t kWeights = kAngles + 4 * D * 4;            // [4 warps][4][32] words
  static constexpr uint32_t kQuery = kWeights + 4 * 4 * 32 * 4;
  static constexpr uint32_t kLargest = kQuery + kQueries * kQueryStride * 4;  // [4 warps][kQueries]
  static constexpr uint32_t kTotal = kLargest + 4 * kQueries * 4;
  static constexpr uint32_t kOwnBytes = (kTotal + 4 * kQueries * 4 + 15) / 16 * 16;
  static constexpr uint32_t kImage = (kOwn + kGroups * kOwnBytes + 1023) / 1024 * 1024;
  static constexpr int64_t end(int64_t rank) { return kImage + (D + rank) * D * 2; }
};

__device__ inline void group_sync(int group) { named_barrier_sync(group + 1, kWarpgroup); }
__device__ inline uint32_t load_word(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
__device__ inline float load_float(uint32_t address) { return __uint_as_float(load_word(address)); }
__device__ inline void load_two(uint32_t (&words)[2], uint32_t address) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "r"(address)
               : "memory");
}
__device__ inline uint32_t load_byte(uint32_t address) {
  uint16_t byte;
  asm volatile("ld.shared.u8 %0, [%1];" : "=h"(byte) : "r"(address) : "memory");
  return byte;
}
__device__ inline void store_word(uint32_t address, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
// An entry of a table that does not change: may be moved about. lane: * 4.
template <uint32_t kTable>
__device__ inline uint32_t look_up(uint32_t index_times_128, uint32_t lane) {
  uint32_t pair;
  asm("ld.shared.b32 %0, [%1+%2];" : "=r"(pair) : "r"(index_times_128 | lane), "n"(kTable));
  return pair;
}
// Byte i of a word, or its nibble i, times 128.
template <int kShift>
__device__ inline uint32_t shifted(uint32_t word) {
  if constexpr (kShift >= 0) {
    return word << kShift;
  } else {
    return word >> -kShift;
  }
}
template <int kIndex>
__device__ inline uint32_t byte_times_128(uint32_t word) {
  return shifted<7 - 8 * kIndex>(word) & 0x7f80u;
}
template <int kIndex>
__device__ inline uint32_t nibble_times_128(uint32_t word) {
  return shifted<7 - 4 * kIndex>(word) & 0x780u;
}
__device__ inline float low_number(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_number(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Bytes at any address: aligned words that have one of them, and no others.
template <int kWords>
__device__ inline void load_unaligned(uint32_t (&words)[kWords], const uint8_t* at) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  const uint32_t shift = static_cast<uint32_t>(address & 3) * 8;
  const auto* aligned = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
  uint32_t next = __ldg(aligned);
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const uint32_t word = next;
    next = i + 1 < kWords || shift != 0 ? __ldg(aligned + i + 1) : 0;
    words[i] = __funnelshift_r(word, next, shift);
  }
}

// row_scale_value() of RowScale::kLog8, to 2 ulp.
__device__ inline float log8_value(uint32_t bits) {
  const float value = exp2_fast((static_cast<float>(bits) - 127) * 0.125f);
  return bits == 0 ? 0 : bits == 255 ? __uint_as_float(0x7fc00000u) : value;
}

// What all lanes have: tells the compiler that none goes another way, which wgmma must know.
__device__ inline int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  }
  return x;
}
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// A part of a sequence's context: tokens [begin, end); none where the two are equal.
struct Part {
  int row, begin, end;
  const int32_t* table;
};
__device__ inline Part part_of(const CudaBatch& batch, int sequence, int split) {
  Part part = {};
  part.row = uniform(batch.query_begin[sequence]);
  if (uniform(batch.query_begin[sequence + 1]) <= part.row) return part;
  const int context = uniform(batch.positions[part.row]) + 1;
  part.begin = split_begin(split);
  part.end = max(part.begin, min(split_begin(split + 1), context));
  part.table = batch.block_tables + sequence * batch.table_stride;
  return part;
}

// --- codes --------------------------------------------------------------------------------------

template <int D, int kBytes>
class Worker {
  using S = Shape<D, kBytes>;
  static constexpr int kKeyWords = D / 64;     // a lane's codes of a key
  static constexpr int kStepBytes = 16 * 128;  // 16 rows of 64 columns of the image
  static constexpr int kValueWords = D / 32;   // of a value, half of which a thread brings

 public:
  __device__ Worker(const LatentAttentionCudaArgs& args, const CudaBatch& batch,
                    const LatentKvCuda& kv, const Plan& plan, int kv_head)
      : args_(args),
        batch_(batch),
        kv_(kv),
        plan_(plan),
        kv_head_(kv_head),
        num_kv_heads_(static_cast<int>(args.num_kv_heads)),
        group_(static_cast<int>(args.num_heads) / num_kv_heads_),
        thread_(static_cast<int>(threadIdx.x) % kWarpgroup),
        warp_(uniform(thread_ / 32)),
        lane_(thread_ % 32),
        row_(lane_ / 4),
        quarter_(lane_ % 4),
        own_(S::kOwn + threadIdx.x / kWarpgroup * S::kOwnBytes) {}

  __device__ void attend(int sequence, int split) {
    part_ = part_of(batch_, sequence, split);
    if (part_.begin == part_.end) return;
    static_assert(split_begin(100) - split_begin(99) <= 32 * kBlock);
    const int first = part_.begin + lane_ * kBlock;
    entry_ = first < part_.end ? part_.table[first / kBlock] : -1;
    if (entry_ >= kv_.num_coded_blocks) entry_ = -1;
    tile_ = part_.begin - kTile;
    find_tile();
    if (tile_ >= part_.end) {
      if (thread_ < group_) {
        plan_.code_statistics[result_at(sequence, split, thread_)] = make_float2(-INFINITY, 0);
      }
      return;
    }
    group_sync(barrier());  // nobody reads the last piece's queries, latents and totals any more
    load_queries();
    copy_latents(0);
    load_codes();
    load_values();
    clear();
    for (int i = 0; tile_ < part_.end; ++i) attend_tile(i % 2);
    store(sequence, split);
  }

 private:
  __device__ int barrier() const { return static_cast<int>(threadIdx.x) / kWarpgroup; }

  // The next tile that has codes; its blocks in ids_, -1: no codes.
  __device__ void find_tile() {
    for (tile_ += kTile; tile_ < part_.end; tile_ += kTile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int begin = tile_ + i * kBlock;
        ids_[i] = -1;
        if (begin >= part_.end) continue;
        ids_[i] = __shfl_sync(0xffffffffu, entry_, (begin - part_.begin) / kBlock);
      }
      if (ids_[0] >= 0 || ids_[1] >= 0) return;
    }
  }
  // A block to read token t's codes from; another one's where it has none, which are not used.
  __device__ int64_t block_of(int t) const {
    const int own = t < kBlock ? ids_[0] : ids_[1], other = t < kBlock ? ids_[1] : ids_[0];
    return own >= 0 ? own : other;
  }
  __device__ const uint8_t* row_of(const KvCodesCuda& codes, int t) const {
    return reinterpret_cast<const uint8_t*>(codes.data) + codes.offset +
           block_of(t) * codes.block_stride + t % kBlock * codes.row_bytes;
  }

  __device__ void load_queries() {
    const auto* q = static_cast<const uint32_t*>(args_.q);
    for (int i = thread_; i < kQueries * D / 2; i += kWarpgroup) {
      const int query = i / (D / 2), word = i % (D / 2);
      const int64_t at = (part_.row * args_.q_stride + (kv_head_ * group_ + query) * D) / 2 + word;
      store_word(own_ + S::kQuery + (query * S::kQueryStride + word) * 4,
                 query < group_ ? q[at] : 0);
    }
    group_sync(barrier());
  }

  // What turns a query back by the warp's first token, and its 16 tokens' latents.
  __device__ void copy_latents(int buffer) const {
    constexpr int kUnits = S::kHalf / 4;  // of 16 bytes: of cosines, and as many of sines
    // Behind the end there may be no such positions.
    const int64_t position = block_is_coded() ? tile_ + warp_ * 16 : tile_;
    if (lane_ < 2 * kUnits) {
      const float* from = (lane_ < kUnits ? kv_.cos : kv_.sin) + position * S::kHalf;
      async_copy(angles() + static_cast<uint32_t>(lane_ * 16), from + lane_ % kUnits * 4, 16);
    }
    const int units = static_cast<int>(kv_.rank) / 32;  // of 16 bytes, in a row
    for (int i = lane_; i < 16 * units; i += 32) {
      const int t = warp_ * 16 + i / units;
      async_copy(latents(buffer, t) + i % units * 16, row_of(kv_.latents, t) + i % units * 16, 16);
    }
  }
  __device__ bool block_is_coded() const { return (warp_ < 2 ? ids_[0] : ids_[1]) >= 0; }
  __device__ uint32_t angles() const {
    return own_ + S::kAngles + static_cast<uint32_t>(warp_ * D * 4);
  }
  __device__ uint32_t latents(int buffer, int t) const {
    return own_ + S::kLatents + static_cast<uint32_t>((buffer * kTile + t) * S::kLatentStride);
  }

  // What the lane needs of keys and scales.
  __device__ void load_codes() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = warp_ * 16 + row_ + 8 * i;
      const uint8_t* key = row_of(kv_.keys, t);
      key_scales_[i] = key[kv_head_];
      load_unaligned(key_codes_[i], key + num_kv_heads_ + kv_head_ * (D / 4) + quarter_ * (D / 16));
    }
  }
  __device__ void load_values() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      value_scales_[i] = row_of(kv_.values, warp_ * 16 + row_ + 8 * i)[kv_head_];
    }
    const int t = thread_ / 2;
    load_unaligned(value_codes_, row_of(kv_.values, t) + num_kv_heads_ + kv_head_ * (D / 4) +
                                     thread_ % 2 * (D / 8));
  }

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kBytes; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) latent_sums_[m][i] = 0;
    }
#pragma unroll
    for (int m = 0; m < S::kValueTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) value_sums_[m][i] = 0;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) largest_[i] = -INFINITY, total_[i] = 0;
  }

  __device__ void attend_tile(int buffer) {
    async_copy_wait();
    __syncwarp();
    const int tile = tile_;
    const int id = warp_ < 2 ? ids_[0] : ids_[1];
    const bool coded = id >= 0;
    const bool has_sinks =
        coded && tile + warp_ / 2 * kBlock < kv_.num_sinks && kv_.sink_blocks[id] >= 0;
    float scores[4] = {};
    {
      float keys[D / 2];
      rebuild_keys(buffer, keys);
      score(keys, scores);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = warp_ * 16 + row_ + i / 2 * 8;
      const bool seen = coded && (!has_sinks || tile + t >= kv_.num_sinks);
      scores[i] = seen ? scores[i] * (args_.scale * kLog2E) : -INFINITY;
    }
    share_largest(scores);
    find_tile();  // from here on ids_ are the next tile's
    float value_scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) value_scale[i] = log8_value(value_scales_[i]);
    group_sync(barrier());
    store_values();
    if (tile_ < part_.end) {
      copy_latents(1 - buffer);
      load_codes();
      load_values();
    }
    const float2 shrink = store_weights(scores, value_scale);
    group_sync(barrier());
    add_up(buffer, shrink);
  }

  // Keys behind RoPE by their place in the 16: number j of token row_ in keys[j / 8 * 4 + j % 2],
  // of token row_ + 8 two further, where j % 8 / 2 == quarter_.
  __device__ void rebuild_keys(int buffer, float (&keys)[D / 2]) {
    const int rows = D + static_cast<int>(kv_.rank);
    uint64_t weights = matrix_descriptor<128>(S::kImage, static_cast<uint32_t>(rows) * 128);
    const uint32_t lane = static_cast<uint32_t>(lane_) * 4;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      uint32_t bias[2];
      load_two(bias, S::kBias + static_cast<uint32_t>(8 * j + 2 * quarter_) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) keys[4 * j + i] = __uint_as_float(bias[i % 2]);
    }
    pin(keys);
    const uint32_t scales[2] = {key_scale(0), key_scale(1)};
#pragma unroll
    for (int word = 0; word < kKeyWords; ++word) {
      const uint32_t x = key_codes_[0][word], y = key_codes_[1][word];
      uint32_t a[4][4];
      pairs_of_codes<0>(x, y, lane, a[0]);
      pairs_of_codes<2>(x, y, lane, a[1]);
      pairs_of_codes<4>(x, y, lane, a[2]);
      pairs_of_codes<6>(x, y, lane, a[3]);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[step][i] = scaled(a[step][i], scales[i % 2]);
      }
      multiply_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        multiply_registers<false>(keys, a[step], weights);
        weights += kStepBytes / 16;
      }
      multiply_commit();
    }
    constexpr int kLoad = S::kWide ? 4 : 1;             // words of codes, two steps each
    const int words = static_cast<int>(kv_.rank) / 32;  // of a quarter
    const uint32_t first =
        latents(buffer, warp_ * 16 + row_) + static_cast<uint32_t>(quarter_ * words * 4);
    const uint32_t second = first + 8 * S::kLatentStride;
    for (int word = 0; word < words; word += kLoad) {
      uint32_t x[kLoad], y[kLoad];
      if constexpr (S::kWide) {
        load_four(x, first + static_cast<uint32_t>(word * 4));
        load_four(y, second + static_cast<uint32_t>(word * 4));
      } else {
        x[0] = load_word(first + static_cast<uint32_t>(word * 4));
        y[0] = load_word(second + static_cast<uint32_t>(word * 4));
      }
#pragma unroll
      for (int i = 0; i < kLoad; ++i) {
        uint32_t a[2][4];
        pairs_of_latents<0>(x[i], y[i], lane, a[0]);
        pairs_of_latents<2>(x[i], y[i], lane, a[1]);
        multiply_fence();
        multiply_registers<false>(keys, a[0], weights);
        multiply_registers<false>(keys, a[1], weights + kStepBytes / 16);
        multiply_commit();
        multiply_wait<1>();
        weights += 2 * kStepBytes / 16;
      }
    }
    multiply_wait<0>();
    pin(keys);
    turn_keys(keys);
  }
  // Twice in a word, and the Hadamard matrix's factor in it.
  __device__ uint32_t key_scale(int i) const {
    const float scale = log8_value(key_scales_[i]) / D;
    return pack<false>(scale, scale);
  }
  static __device__ uint32_t scaled(uint32_t pair, uint32_t scale) {
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(scale));
    return product;
  }
  template <int kNibble>
  __device__ void pairs_of_codes(uint32_t x, uint32_t y, uint32_t lane, uint32_t (&a)[4]) const {
    a[0] = look_up<S::kPoints>(nibble_times_128<kNibble>(x), lane);
    a[1] = look_up<S::kPoints>(nibble_times_128<kNibble>(y), lane);
    a[2] = look_up<S::kPoints>(nibble_times_128<kNibble + 1>(x), lane);
    a[3] = look_up<S::kPoints>(nibble_times_128<kNibble + 1>(y), lane);
  }
  template <int kByte>
  __device__ void pairs_of_latents(uint32_t x, uint32_t y, uint32_t lane, uint32_t (&a)[4]) const {
    a[0] = look_up<S::kLatentPoints>(byte_times_128<kByte>(x), lane);
    a[1] = look_up<S::kLatentPoints>(byte_times_128<kByte>(y), lane);
    a[2] = look_up<S::kLatentPoints>(byte_times_128<kByte + 1>(x), lane);
    a[3] = look_up<S::kLatentPoints>(byte_times_128<kByte + 1>(y), lane);
  }

  __device__ void turn_keys(float (&keys)[D / 2]) const {
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {  // eight numbers, and those half a head further on
      const auto column = static_cast<uint32_t>(8 * j + 2 * quarter_);
      float* const low = keys + 4 * j;
      float* const high = keys + 4 * (j + D / 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t angles[4];  // cos, sin of two numbers
        load_four(angles,
                  S::kRope + static_cast<uint32_t>((row_ + 8 * i) * S::kRopeStride) + column * 8);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float c = __uint_as_float(angles[2 * e]), s = __uint_as_float(angles[2 * e + 1]);
          const float a = low[2 * i + e], b = high[2 * i + e];
          low[2 * i + e] = a * c - b * s;
          high[2 * i + e] = b * c + a * s;
        }
      }
    }
  }

  // scores: of token row_ and queries 2 quarter_ and the next one, then of token row_ + 8. Right
  // operands are query row_, turned back by the warp's first token.
  __device__ void score(const float (&keys)[D / 2], float (&scores)[4]) const {
    const uint32_t query =
        own_ + S::kQuery + static_cast<uint32_t>(row_ * S::kQueryStride + quarter_) * 4;
    const uint32_t angle = angles() + static_cast<uint32_t>(quarter_ * 8);
#pragma unroll
    for (int step = 0; step < S::kKeySteps / 2; ++step) {
      uint32_t low[2], high[2];  // of this step, and of the one half a head further on
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto column = static_cast<uint32_t>(16 * step + 8 * i);
        uint32_t c[2], s[2];
        load_two(c, angle + column * 4);
        load_two(s, angle + (S::kHalf + column) * 4);
        const float c0 = __uint_as_float(c[0]), c1 = __uint_as_float(c[1]);
        const float s0 = __uint_as_float(s[0]), s1 = __uint_as_float(s[1]);
        const uint32_t a = load_word(query + column * 2);
        const uint32_t b = load_word(query + (column + S::kHalf) * 2);
        low[i] = pack<false>(low_number(a) * c0 + low_number(b) * s0,
                             high_number(a) * c1 + high_number(b) * s1);
        high[i] = pack<false>(low_number(b) * c0 - low_number(a) * s0,
                              high_number(b) * c1 - high_number(a) * s1);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* k = keys + (step + half * S::kKeySteps / 2) * 8;
        const uint32_t a[4] = {pack<false>(k[0], k[1]), pack<false>(k[2], k[3]),
                               pack<false>(k[4], k[5]), pack<false>(k[6], k[7])};
        multiply<false>(scores, a, half == 0 ? low[0] : high[0], half == 0 ? low[1] : high[1]);
      }
    }
  }

  __device__ void share_largest(const float (&scores)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float highest = fmaxf(scores[i], scores[2 + i]);
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, mask));
      }
      if (lane_ < 4) store_word(largest_at(warp_, i), __float_as_uint(highest));
    }
  }
  __device__ uint32_t largest_at(int warp, int i) const {
    return own_ + S::kLargest + static_cast<uint32_t>(warp * kQueries + 2 * quarter_ + i) * 4;
  }
  __device__ void store_values() const {
#pragma unroll
    for (int i = 0; i < kValueWords; ++i) {
      store_word(
          own_ + S::kValues +
              static_cast<uint32_t>(thread_ / 2 * S::kValueStride + thread_ % 2 * (D / 8) + i * 4),
          value_codes_[i]);
    }
  }
  // Weights as right operands of the sums, with the values' scales and without. What earlier sums
  // are multiplied by.
  __device__ float2 store_weights(const float (&scores)[4], const float (&value_scale)[2]) {
    float shrink[2], weight[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float now = largest_[i];
#pragma unroll
      for (int warp = 0; warp < 4; ++warp) now = fmaxf(now, load_float(largest_at(warp, i)));
      const float base = now == -INFINITY ? 0 : now;  // nothing seen so far
      shrink[i] = exp2_fast(largest_[i] - base);
      largest_[i] = now;
      weight[i] = exp2_fast(scores[i] - base), weight[2 + i] = exp2_fast(scores[2 + i] - base);
      total_[i] = total_[i] * shrink[i] + weight[i] + weight[2 + i];
    }
    const uint32_t at = own_ + S::kWeights + static_cast<uint32_t>(warp_ * 4 * 32 + lane_) * 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float a = weight[2 * i], b = weight[2 * i + 1];
      store_word(at + static_cast<uint32_t>(i * 128), transpose(pack<false>(a, b)));
      // A token that is not seen may have any scale, NaN too.
      const float x = scores[2 * i] == -INFINITY ? 0 : a * value_scale[i];
      const float y = scores[2 * i + 1] == -INFINITY ? 0 : b * value_scale[i];
      store_word(at + static_cast<uint32_t>((2 + i) * 128), transpose(pack<false>(x, y)));
    }
    return {shrink[0], shrink[1]};
  }

  __device__ void add_up(int buffer, float2 shrink) {
    const uint32_t lane = static_cast<uint32_t>(lane_) * 4;
#pragma unroll
    for (int m = 0; m < kBytes; ++m) {
      latent_sums_[m][0] *= shrink.x, latent_sums_[m][1] *= shrink.y;
      latent_sums_[m][2] *= shrink.x, latent_sums_[m][3] *= shrink.y;
    }
#pragma unroll
    for (int m = 0; m < S::kValueTiles; ++m) {
      value_sums_[m][0] *= shrink.x, value_sums_[m][1] *= shrink.y;
      value_sums_[m][2] *= shrink.x, value_sums_[m][3] *= shrink.y;
    }
#pragma unroll 2
    for (int sixteen = 0; sixteen < 4; ++sixteen) {
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[i] =
            load_word(own_ + S::kWeights + static_cast<uint32_t>((sixteen * 4 + i) * 128) + lane);
      }
      uint32_t z[4], v[4];  // of tokens 2 quarter_, the next one, and eight further
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = sixteen * 16 + 2 * quarter_ + i % 2 + i / 2 * 8;
        const uint32_t at = latents(buffer, t) + static_cast<uint32_t>((warp_ * 8 + row_) * kBytes);
        z[i] = kBytes == 4 ? load_word(at) : load_byte(at);
        if (kBytes == 2) z[i] |= load_byte(at + 1) << 8;
        const uint32_t codes = own_ + S::kValues + static_cast<uint32_t>(t * S::kValueStride);
        v[i] = D == 128
                   ? load_byte(codes + static_cast<uint32_t>(warp_ * 8 + row_))
                   : load_byte(codes + static_cast<uint32_t>(warp_ * 4 + row_ / 2)) >> row_ % 2 * 4;
      }
      add_latent<0>(z, w, lane);
      if constexpr (kBytes > 1) add_latent<1>(z, w, lane);
      if constexpr (kBytes > 2) {
        add_latent<2>(z, w, lane);
        add_latent<3>(z, w, lane);
      }
      add_value<0>(v, w, lane);
      if constexpr (S::kValueTiles > 1) add_value<1>(v, w, lane);
    }
  }
  template <int kTileIdx>
  __device__ void add_latent(const uint32_t (&z)[4], const uint32_t (&w)[4], uint32_t lane) {
    uint32_t p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[i] = look_up<S::kLatentPoints>(byte_times_128<kTileIdx>(z[i]), lane);
    }
    add(latent_sums_[kTileIdx], p, w[0], w[1]);
  }
  template <int kTileIdx>
  __device__ void add_value(const uint32_t (&v)[4], const uint32_t (&w)[4], uint32_t lane) {
    uint32_t p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[i] = look_up<S::kPoints>(nibble_times_128<kTileIdx>(v[i]), lane);
    }
    add(value_sums_[kTileIdx], p, w[2], w[3]);
  }
  // p: pairs of numbers of four tokens; the first of each is row row_ of the result, the second
  // row row_ + 8.
  static __device__ void add(float (&sums)[4], const uint32_t (&p)[4], uint32_t w0, uint32_t w1) {
    const uint32_t a[4] = {low_halves(p[0], p[1]), high_halves(p[0], p[1]), low_halves(p[2], p[3]),
                           high_halves(p[2], p[3])};
    multiply<false>(sums, a, w0, w1);
  }

  __device__ int64_t result_at(int sequence, int split, int query) const {
    const int64_t head = sequence * args_.num_heads + kv_head_ * group_ + query;
    return head * plan_.num_splits + split;
  }
  __device__ void store(int sequence, int split) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        total_[i] += __shfl_xor_sync(0xffffffffu, total_[i], mask);
      }
      if (lane_ < 4) {
        store_word(
            own_ + S::kTotal + static_cast<uint32_t>(warp_ * kQueries + 2 * quarter_ + i) * 4,
            __float_as_uint(total_[i]));
      }
    }
    group_sync(barrier());
    const int rank = static_cast<int>(kv_.rank);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = 2 * quarter_ + i;
      if (query >= group_) continue;
      const int64_t at = result_at(sequence, split, query);
      if (warp_ == 0 && row_ == 0) {
        float total = 0;
        for (int warp = 0; warp < 4; ++warp) {
          total +=
              load_float(own_ + S::kTotal + static_cast<uint32_t>(warp * kQueries + query) * 4);
        }
        plan_.code_statistics[at] = make_float2(largest_[i], total);
      }
      float* const sums = plan_.code_sums + at * (rank + D);
#pragma unroll
      for (int m = 0; m < kBytes; ++m) {
        const int number = 2 * ((warp_ * 8 + row_) * kBytes + m);
        if (number >= rank) continue;
        *reinterpret_cast<float2*>(sums + number) =
            make_float2(latent_sums_[m][i], latent_sums_[m][2 + i]);
      }
#pragma unroll
      for (int m = 0; m < S::kValueTiles; ++m) {
        const int number = 2 * ((warp_ * 8 + row_) * S::kValueTiles + m);
        *reinterpret_cast<float2*>(sums + rank + number) =
            make_float2(value_sums_[m][i], value_sums_[m][2 + i]);
      }
    }
  }

  const LatentAttentionCudaArgs& args_;
  const CudaBatch& batch_;
  const LatentKvCuda& kv_;
  const Plan& plan_;
  const int kv_head_, num_kv_heads_, group_;
  const int thread_, warp_, lane_, row_, quarter_;
  const uint32_t own_;

  Part part_;
  int tile_;    // the first token
  int entry_;   // of the part's block number lane_; -1: no codes
  int ids_[2];  // the tile's
  uint32_t key_codes_[2][kKeyWords], key_scales_[2];
  uint32_t value_codes_[kValueWords], value_scales_[2];
  float latent_sums_[kBytes][4], value_sums_[S::kValueTiles][4];
  float largest_[2], total_[2];  // of queries 2 quarter_ and the next one
};

template <int D, int kBytes>
__global__ void __launch_bounds__(kGroups* kWarpgroup, 1)
    latent_codes_kernel(const __grid_constant__ LatentAttentionCudaArgs args,
                        const __grid_constant__ CudaBatch batch,
                        const __grid_constant__ LatentKvCuda kv,
                        const __grid_constant__ Plan plan) {
  using S = Shape<D, kBytes>;
  extern __shared__ __align__(128) char shared[];
  if (shared_address(shared) > S::kBegin) __trap();
  const int num_kv_heads = static_cast<int>(args.num_kv_heads);
  const int kv_head = static_cast<int>(blockIdx.x) % num_kv_heads;
  const auto thread = static_cast<int>(threadIdx.x);
  constexpr int kThreads = kGroups * kWarpgroup;
  if (thread == 0) {
    barrier_init(S::kBarrier, 1);
    barrier_init_fence();
    const auto bytes = static_cast<uint32_t>((D + kv.rank) * D * 2);
    barrier_expect(S::kBarrier, bytes);
    bulk_copy(S::kImage, static_cast<const char*>(kv.key_image) + int64_t{bytes} * kv_head, bytes,
              S::kBarrier);
  }
  for (int i = thread; i < 16 * 32; i += kThreads) {
    const int code = i / 32;
    store_word(S::kPoints + static_cast<uint32_t>(i * 4),
               pack<false>(kv.points[2 * code], kv.points[2 * code + 1]));
  }
  for (int i = thread; i < 256 * 32; i += kThreads) {
    const int byte = i / 32;
    store_word(S::kLatentPoints + static_cast<uint32_t>(i * 4),
               pack<false>(kv.latent_points[byte & 15], kv.latent_points[byte >> 4]));
  }
  for (int i = thread; i < D; i += kThreads) {
    const float bias = kv.key_bias == nullptr ? 0 : kv.key_bias[kv_head * D + i];
    store_word(S::kBias + static_cast<uint32_t>(i * 4), __float_as_uint(bias));
  }
  // Without the attention factor, which is in the queries' turn; the first row is that alone.
  for (int i = thread; i < 16 * S::kHalf; i += kThreads) {
    const int t = i / S::kHalf, j = i % S::kHalf;
    const uint32_t at = S::kRope + static_cast<uint32_t>(t * S::kRopeStride + j * 8);
    store_word(at, __float_as_uint(kv.cos[i] / kv.cos[j]));
    store_word(at + 4, __float_as_uint(kv.sin[i] / kv.cos[j]));
  }
  wait_for_previous_kernel();
  allow_next_kernel();
  __syncthreads();
  barrier_wait(S::kBarrier, 0);
  Worker<D, kBytes> worker(args, batch, kv, plan, kv_head);
  const int num_sequences = static_cast<int>(batch.num_sequences);
  const int workers = static_cast<int>(gridDim.x) / num_kv_heads * kGroups;
  // The longest parts first.
  for (int i = static_cast<int>(blockIdx.x) / num_kv_heads +
               uniform(thread / kWarpgroup) * (static_cast<int>(gridDim.x) / num_kv_heads);
       i < num_sequences * plan.num_splits; i += workers) {
    worker.attend(i % num_sequences, plan.num_splits - 1 - i / num_sequences);
  }
}

// --- exact tokens -------------------------------------------------------------------------------

// One block for a part of a context and a KV head; a warp takes a block of the cache at a time, for
// scores a lane a token, for sums D / 32 numbers of the head.
template <int D>
__global__ void __launch_bounds__(kExactWarps * 32)
    latent_exact_kernel(const __grid_constant__ LatentAttentionCudaArgs args,
                        const __grid_constant__ CudaBatch batch,
                        const __grid_constant__ LatentKvCuda kv,
                        const __grid_constant__ Plan plan) {
  constexpr int kOwn = D / 32;
  __shared__ float queries[kQueries][D];
  __shared__ float weights[kExactWarps][kQueries][kBlock];
  __shared__ float2 statistics[kExactWarps][kQueries];
  __shared__ float parts[kExactWarps][kQueries][D];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int split = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int sequence = static_cast<int>(blockIdx.z);
  const Part part = part_of(batch, sequence, split);
  if (part.begin == part.end) return;
  const int group = static_cast<int>(args.num_heads / args.num_kv_heads);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first_head = static_cast<int64_t>(sequence) * args.num_heads + kv_head * group;
  // The block of `exact` that has tokens of block b, and how many: all, or sinks. 0: none.
  const auto tokens_of = [&](int b, int64_t& block) {
    const int begin = b * kBlock;
    const int32_t entry = part.table[b];
    block = entry;
    if (entry >= kv.num_coded_blocks) return min(kBlock, part.end - begin);
    if (begin >= kv.num_sinks || entry < 0) return 0;
    block = kv.sink_blocks[entry];
    if (block < 0) return 0;
    block += kv.first_live;
    return min(kBlock, static_cast<int>(kv.num_sinks) - begin);
  };
  const int first_block = part.begin / kBlock, end_block = (part.end + kBlock - 1) / kBlock;
  bool any = false;
  for (int b = first_block + lane; b < end_block; b += 32) {
    int64_t block;
    any = any || tokens_of(b, block) > 0;
  }
  if (!__any_sync(0xffffffffu, any)) {  // every warp finds the same
    if (threadIdx.x < group) {
      plan.exact_statistics[(first_head + threadIdx.x) * plan.num_splits + split] =
          make_float2(-INFINITY, 0);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < group * D; i += kExactWarps * 32) {
    const auto* q = static_cast<const __nv_bfloat16*>(args.q) + part.row * args.q_stride +
                    (kv_head * group + i / D) * D;
    queries[i / D][i % D] = __bfloat162float(q[i % D]);
  }
  __syncthreads();
  float largest[kQueries], total[kQueries], sums[kQueries][kOwn];
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    largest[i] = -INFINITY, total[i] = 0;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) sums[i][j] = 0;
  }
  for (int b = first_block + warp; b < end_block; b += kExactWarps) {
    int64_t block;
    const int count = tokens_of(b, block);
    if (count == 0) continue;
    const int64_t at = (block * args.num_kv_heads + kv_head) * kBlock * D;
    const auto* k = static_cast<const __nv_bfloat16*>(kv.exact.keys) + at;
    const auto* v = static_cast<const __nv_bfloat16*>(kv.exact.values) + at;
    float scores[kQueries] = {};
    if (lane < count) {
#pragma unroll 4
      for (int unit = 0; unit < D / 8; ++unit) {
        const uint4 eight = *reinterpret_cast<const uint4*>(
            k + kv_cuda_offset(KvCudaElement::kBF16, D, lane, unit * 8));
        const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int i = 0; i < kQueries; ++i) {
          if (i >= group) break;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float* q = queries[i] + unit * 8 + 2 * j;
            scores[i] = fmaf(low_number(pairs[j]), q[0], scores[i]);
            scores[i] = fmaf(high_number(pairs[j]), q[1], scores[i]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      if (i >= group) break;
      const float score = lane < count ? scores[i] * (args.scale * kLog2E) : -INFINITY;
      const float now = fmaxf(largest[i], warp_max(score));
      const float base = now == -INFINITY ? 0 : now;
      const float shrink = exp2_fast(largest[i] - base);
      const float weight = exp2_fast(score - base);
      largest[i] = now;
      total[i] = total[i] * shrink + weight;
#pragma unroll
      for (int j = 0; j < kOwn; ++j) sums[i][j] *= shrink;
      weights[warp][i][lane] = weight;
    }
    __syncwarp();
#pragma unroll 4
    for (int t = 0; t < count; ++t) {
      const auto* row = v + kv_cuda_offset(KvCudaElement::kBF16, D, t, lane * kOwn);
      float own[kOwn];
#pragma unroll
      for (int j = 0; j < kOwn; j += 2) {
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(row + j);
        own[j] = low_number(pair), own[j + 1] = high_number(pair);
      }
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
        if (i >= group) break;
        const float weight = weights[warp][i][t];
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sums[i][j] = fmaf(weight, own[j], sums[i][j]);
      }
    }
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    if (i >= group) break;
    const float all = warp_sum(total[i]);
    if (lane == 0) statistics[warp][i] = make_float2(largest[i], all);
#pragma unroll
    for (int j = 0; j < kOwn; ++j) parts[warp][i][lane * kOwn + j] = sums[i][j];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < group * D; i += kExactWarps * 32) {
    const int query = i / D, dim = i % D;
    float highest = -INFINITY;
    for (int w = 0; w < kExactWarps; ++w) highest = fmaxf(highest, statistics[w][query].x);
    const float base = highest == -INFINITY ? 0 : highest;
    float all = 0, sum = 0;
    for (int w = 0; w < kExactWarps; ++w) {
      const float weight = exp2_fast(statistics[w][query].x - base);
      all = fmaf(statistics[w][query].y, weight, all);
      sum = fmaf(parts[w][query][dim], weight, sum);
    }
    const int64_t at = (first_head + query) * plan.num_splits + split;
    plan.exact_sums[at * D + dim] = sum;
    if (dim == 0) plan.exact_statistics[at] = make_float2(highest, all);
  }
}

// --- parts as one -------------------------------------------------------------------------------

// One block for each query head of each sequence.
template <int D>
__global__ void __launch_bounds__(kMergeThreads)
    latent_merge_kernel(const __grid_constant__ LatentAttentionCudaArgs args,
                        const __grid_constant__ CudaBatch batch,
                        const __grid_constant__ LatentKvCuda kv,
                        const __grid_constant__ Plan plan) {
  extern __shared__ float weights[];  // of parts, codes' and exact ones, then sums [rank + 2 D]
  __shared__ float partial[kMergeThreads];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int sequence = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x);
  const int row = batch.query_begin[sequence];
  if (batch.query_begin[sequence + 1] <= row) return;
  const int num_splits = split_of(batch.positions[row]) + 1;
  const auto thread = static_cast<int>(threadIdx.x);
  const int rank = static_cast<int>(kv.rank);
  const int kv_head = head / static_cast<int>(args.num_heads / args.num_kv_heads);
  const int64_t at = (static_cast<int64_t>(sequence) * args.num_heads + head) * plan.num_splits;
  float* const exact_weights = weights + plan.num_splits;
  float* const sums = weights + 2 * plan.num_splits;

  float largest = -INFINITY;
  for (int i = thread; i < num_splits; i += kMergeThreads) {
    largest =
        fmaxf(largest, fmaxf(plan.code_statistics[at + i].x, plan.exact_statistics[at + i].x));
  }
  largest = warp_max(largest);
  if (thread % 32 == 0) partial[thread / 32] = largest;
  __syncthreads();
  for (int w = 0; w < kMergeThreads / 32; ++w) largest = fmaxf(largest, partial[w]);
  __syncthreads();
  float total = 0, coded = 0;
  for (int i = thread; i < num_splits; i += kMergeThreads) {
    const float2 code = plan.code_statistics[at + i], exact = plan.exact_statistics[at + i];
    weights[i] = code.y == 0 ? 0 : exp2_fast(code.x - largest);
    exact_weights[i] = exact.y == 0 ? 0 : exp2_fast(exact.x - largest);
    coded += code.y * weights[i];
    total += code.y * weights[i] + exact.y * exact_weights[i];
  }
  total = warp_sum(total), coded = warp_sum(coded);
  if (thread % 32 == 0) partial[thread / 32] = total, partial[32 + thread / 32] = coded;
  __syncthreads();
  total = 0, coded = 0;
  for (int w = 0; w < kMergeThreads / 32; ++w) total += partial[w], coded += partial[32 + w];
  for (int c = thread; c < rank + 2 * D; c += kMergeThreads) {
    const bool is_exact = c >= rank + D;
    const float* w = is_exact ? exact_weights : weights;
    const float* from =
        is_exact ? plan.exact_sums + at * D + (c - rank - D) : plan.code_sums + at * (rank + D) + c;
    const int stride = is_exact ? D : rank + D;
    float sum = 0;
#pragma unroll 8
    for (int i = 0; i < num_splits; ++i) {  // where nothing was seen nothing was written
      const float own = w[i] != 0 ? __ldcg(from + static_cast<int64_t>(i) * stride) : 0;
      sum = fmaf(own, w[i], sum);
    }
    sums[c] = sum;
  }
  __syncthreads();
  if (thread < 32) hadamard_butterflies(sums + rank, D, thread);
  // Some threads share a number of the head.
  constexpr int kShare = kMergeThreads / D;
  const int dim = thread % D, share = thread / D;
  const int64_t column = static_cast<int64_t>(kv_head) * D + dim;
  float sum = 0;
#pragma unroll 8
  for (int r = share; r < rank; r += kShare) {
    sum = fmaf(kv.value_weight[r * args.num_kv_heads * D + column], sums[r], sum);
  }
  __syncthreads();  // partial was read
  partial[thread] = sum;
  __syncthreads();
  if (share > 0) return;
  for (int i = 1; i < kShare; ++i) sum += partial[i * D + dim];
  if (kv.value_bias != nullptr) sum = fmaf(kv.value_bias[column], coded, sum);
  sum += sums[rank + dim] / D + sums[rank + D + dim];
  auto* out = static_cast<__nv_bfloat16*>(args.out) + (row * args.num_heads + head) * D;
  out[dim] = __float2bfloat16_rn(sum / total);
}

// ------------------------------------------------------------------------------------------------

int64_t num_splits_of(const CudaBatch& batch) { return max_splits(batch.max_context, 0, 1); }

template <int D, int kBytes>
void launch(const LatentAttentionCudaArgs& args, const CudaBatch& batch, const LatentKvCuda& kv,
            const Plan& plan, CudaStream stream) {
  using S = Shape<D, kBytes>;
  const auto kernel = latent_codes_kernel<D, kBytes>;
  const int64_t shared_bytes = S::end(kv.rank) - 1024;  // the system's are the first
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes)),
             "shared memory of latent_codes");
  int device = 0, num_sms = 0;
  cuda_check(cudaGetDevice(&device), "finding the GPU");
  cuda_check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device),
             "counting multiprocessors");
  const int64_t pieces = batch.num_sequences * plan.num_splits;
  const int64_t blocks = std::clamp<int64_t>((pieces + kGroups - 1) / kGroups, 1,
                                             std::max<int64_t>(1, num_sms / args.num_kv_heads));
  launch_dependent("latent_codes", kernel, dim3(static_cast<unsigned>(blocks * args.num_kv_heads)),
                   dim3(kGroups * kWarpgroup), shared_bytes, stream, 1, args, batch, kv, plan);
}

template <int D>
void launch_all(const LatentAttentionCudaArgs& args, const CudaBatch& batch, const LatentKvCuda& kv,
                const Plan& plan, CudaStream stream) {
  if (kv.rank <= 64) {
    launch<D, 1>(args, batch, kv, plan, stream);
  } else if (kv.rank <= 128) {
    launch<D, 2>(args, batch, kv, plan, stream);
  } else if constexpr (D == 128) {
    launch<D, 4>(args, batch, kv, plan, stream);
  }
  const auto splits = static_cast<unsigned>(plan.num_splits);
  const auto sequences = static_cast<unsigned>(batch.num_sequences);
  launch_dependent("latent_exact", latent_exact_kernel<D>,
                   dim3(splits, static_cast<unsigned>(args.num_kv_heads), sequences),
                   dim3(kExactWarps * 32), 0, stream, 1, args, batch, kv, plan);
  launch_dependent("latent_merge", latent_merge_kernel<D>,
                   dim3(static_cast<unsigned>(args.num_heads), sequences), dim3(kMergeThreads),
                   (2 * plan.num_splits + kv.rank + 2 * D) * 4, stream, 1, args, batch, kv, plan);
}

}  // namespace

int64_t latent_attention_workspace_floats(const LatentAttentionCudaArgs& args,
                                          const CudaBatch& batch, const LatentKvCuda& kv) {
  const int64_t parts = batch.num_sequences * args.num_heads * num_splits_of(batch);
  return parts * (4 + kv.rank + 2 * args.head_dim);
}

void latent_attention_cuda(const LatentAttentionCudaArgs& args, const CudaBatch& batch,
                           const LatentKvCuda& kv, CudaStream stream) {
  if (batch.num_sequences == 0) return;
  if (batch.max_rows_per_sequence > 1) {
    fail(ErrorCode::kInvalidArgument, "attention to latents: ", batch.max_rows_per_sequence,
         " rows of a sequence; it takes one");
  }
  if (!can_attend_to_latents({.shape = {args.num_kv_heads, args.head_dim},
                              .rank = kv.rank,
                              .latent_bits = 4,
                              .rotary_dim = args.head_dim,
                              .num_heads = args.num_heads}) ||
      args.q_stride % 2 != 0 || kv.exact.element != KvCudaElement::kBF16) {
    fail(ErrorCode::kUnsupported, "attention to latents of rank ", kv.rank, " by ", args.num_heads,
         " query heads and ", args.num_kv_heads, " of ", args.head_dim, " numbers");
  }
  Plan plan;
  plan.num_splits = static_cast<int>(num_splits_of(batch));
  const int64_t parts = batch.num_sequences * args.num_heads * plan.num_splits;
  plan.code_statistics = reinterpret_cast<float2*>(args.workspace);
  plan.exact_statistics = plan.code_statistics + parts;
  plan.code_sums = args.workspace + 4 * parts;
  plan.exact_sums = plan.code_sums + parts * (kv.rank + args.head_dim);
  if (args.head_dim == 64) {
    launch_all<64>(args, batch, kv, plan, stream);
  } else {
    launch_all<128>(args, batch, kv, plan, stream);
  }
}

}  // namespace lathe
