// Attention of short runs of rows over a cache of codes: attention_codes_warp.h on every warp of
// the GPU.
//
//   A block of kWarps warps stays on each multiprocessor. Its shared memory holds the grid 32
//   times, once for each lane in a bank of its own, and two to four blocks of the cache for each
//   warp, on their way or being read. A piece of work is a part of a context (attention_splits.h),
//   one KV head and 8 * kTiles of its queries; warps take the next piece from a counter in the
//   workspace, the longest parts first, and leave a partial result. Another kernel merges those of
//   a query, in order, and rotates the sum back. Where the first tokens are there exactly, it adds
//   them as one more part, and the first kernel sees none of them.
//
// What bounds it, per 4-bit number at head_dim 128 and one multiprocessor: 0.53 bytes of memory (38
// numbers a cycle of an H200), half a look-up of 128 bytes for 32 lanes and 0.27 bytes written to
// and 0.27 read from shared memory (43 numbers a cycle), 1.9 instructions of a thread (67). All
// look-ups are free of conflicts: the address of code x is x * 256 + lane * 4, one byte permutation
// of the word that has the code, as the table begins at a multiple of 64 KiB.
//
// Keys without an offset (attention_codes_warp.h) come with 512 bytes of cosines and sines of their
// block's start, and each warp reads a table of 8 KiB for a block, as much again as half of its
// look-ups: 12 warps, for registers. Such tiles have 8 queries; others read the cache again, mostly
// out of L2.
//
// Everything that a query's result depends on follows from its position, as in
// attention_decode_sm90.cuh, which has the sources.
#include <algorithm>
#include <climits>

#include "kernels/attention/attention_codes_warp.h"
#include "kernels/attention/attention_cuda_kernels.h"
#include "kernels/attention/attention_splits.h"
#include "kernels/attention/kv_rotate_cuda.cuh"
#include "kernels/attention/sm90_memory.cuh"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

using namespace sm90;  // NOLINT(google-build-using-namespace): instructions

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kBlock = static_cast<int>(kBlockSize);
constexpr uint32_t kTableAddress = 1 << 16, kTableBytes = 1 << 16;  // in shared memory

struct Plan {
  int num_splits = 0;   // stride of the partial results of a query
  int num_queries = 0;  // per sequence and KV head: stride of the partial results
  int num_tiles = 0;
  int32_t* next = nullptr;       // pieces of work given out; zero between launches
  float2* statistics = nullptr;  // [num_sequences, num_kv_heads, num_queries, num_splits]: largest
                                 // score * log2 e, sum of 2^(score - largest)
  float* sums = nullptr;         // the same and [head_dim]: sum of 2^(score - largest) * v, rotated
};

template <int D, int kTiles, bool kOffset>
struct Shape {
  static constexpr int kWarps = kOffset ? 12 : kTiles == 1 ? 16 : 8;  // by registers: 168, 128, 255
  static constexpr int kHeadBytes = kBlock * (D / 2 + 2);
  static constexpr int kStartBytes = kOffset ? D * 4 : 0;  // cos and sin of a block's start
  static constexpr int kStageBytes = 2 * kHeadBytes + kStartBytes;
  static constexpr int kStages = D == 64 ? 4 : 2;
  static constexpr int kQueries = 8 * kTiles;
  // Of one warp: the ring, a barrier per stage, and what the stage holds. 128-byte aligned.
  static constexpr int kBarriers = kStages * kStageBytes;
  static constexpr int kNotes = kBarriers + kStages * 8;
  static constexpr int kWarpBytes = (kNotes + kStages * 8 + 127) / 128 * 128;
  // Warps below the table: what fits behind the 1 KiB that the system keeps at the start.
  static constexpr int kLowWarps =
      std::min<int>(kWarps, (static_cast<int>(kTableAddress) - 2048) / kWarpBytes);
  static constexpr uint32_t kLowBegin = kTableAddress - kLowWarps * kWarpBytes;
  // cos and sin of positions in a block.
  static constexpr uint32_t kInBlock =
      kTableAddress + kTableBytes + (kWarps - kLowWarps) * kWarpBytes;
  static constexpr uint32_t kInBlockBytes =
      kOffset ? CodesWarp<D, kTiles, kOffset>::kInBlockWords * 4 : 0;
  static constexpr uint32_t kEnd = kInBlock + kInBlockBytes;
  static __device__ uint32_t warp_address(int warp) {
    return warp < kLowWarps ? kLowBegin + static_cast<uint32_t>(warp * kWarpBytes)
                            : kTableAddress + kTableBytes +
                                  static_cast<uint32_t>((warp - kLowWarps) * kWarpBytes);
  }
};

class DeviceLane {
 public:
  __device__ explicit DeviceLane(int lane)
      : lane_(lane), table_(kTableAddress | static_cast<uint32_t>(lane * 4)) {}
  __device__ int id() const { return lane_; }
  template <int kCount>
  __device__ void load(uint32_t (&w)[kCount], uint32_t at) const {
    if constexpr (kCount % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[i]), "=r"(w[i + 1]), "=r"(w[i + 2]), "=r"(w[i + 3])
                     : "r"(at + 4 * i)
                     : "memory");
      }
    } else {
      static_assert(kCount == 2);
      asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                   : "=r"(w[0]), "=r"(w[1])
                   : "r"(at)
                   : "memory");
    }
  }
  // The table does not change once codes are there, so this may be moved about.
  __device__ uint32_t points(uint32_t word, int byte) const {
    const uint32_t address = __byte_perm(word, table_, 0x7604u | static_cast<uint32_t>(byte) << 4);
    uint32_t pair;
    asm("ld.shared.b32 %0, [%1];" : "=r"(pair) : "r"(address));
    return pair;
  }
  __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) const {
    sm90::multiply<false>(d, a, b0, b1);
  }
  __device__ uint32_t transpose(uint32_t x) const { return sm90::transpose(x); }
  __device__ float exchange(float x, int mask) const {
    return __shfl_xor_sync(0xffffffffu, x, mask);
  }
  __device__ float from(float x, int lane) const { return __shfl_sync(0xffffffffu, x, lane); }
  __device__ void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                               uint32_t b1) const {
    sm90::multiply<true>(d, a, b0, b1);
  }
  __device__ uint32_t pack_f16(float low, float high) const { return sm90::pack<true>(low, high); }
  __device__ bool any(bool x) const { return __any_sync(0xffffffffu, x) != 0; }
  __device__ uint32_t pack(float low, float high) const { return sm90::pack<false>(low, high); }
  __device__ uint32_t low_halves(uint32_t a, uint32_t b) const { return sm90::low_halves(a, b); }
  __device__ uint32_t high_halves(uint32_t a, uint32_t b) const { return sm90::high_halves(a, b); }
  __device__ float exp2(float x) const { return exp2_fast(x); }
  __device__ float tanh(float x) const { return tanh_fast(x); }

 private:
  int lane_;
  uint32_t table_;
};

__device__ int first_seen(const AttentionCudaArgs& args, int position) {
  const int window = static_cast<int>(args.sliding_window);
  return window > 0 && window <= position ? position - window + 1 : 0;
}

// How many of a sequence's first positions have exact rows.
__device__ int num_sinks(const CudaBatch& batch) {
  return batch.sink_blocks != nullptr ? static_cast<int>(kLiveSinks) : 0;
}

// The rows of a sequence that this kernel has to do with; rows == 0: none.
struct Run {
  int first_row = 0, rows = 0, first_position = 0;
};
__device__ Run run_of(const CudaBatch& batch, int sequence) {
  Run run;
  run.first_row = batch.query_begin[sequence];
  run.rows = batch.query_begin[sequence + 1] - run.first_row;
  if (run.rows < 1 || run.rows > static_cast<int>(kAttentionDecodeRows)) return {};
  run.first_position = batch.positions[run.first_row];
  return run;
}

// A part of a context, a KV head and a tile of its queries.
struct Piece {
  int sequence, kv_head, split;
  int first_row, first_position;
  int query_begin, query_count;
  int block, end_block;
};

template <int D, int kTiles, bool kOffset>
class Worker {
  using S = Shape<D, kTiles, kOffset>;
  using Warp = CodesWarp<D, kTiles, kOffset>;

 public:
  __device__ Worker(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
                    const Plan& plan, int first_split, int num_splits)
      : args_(args),
        batch_(batch),
        layer_(layer),
        plan_(plan),
        lane_(static_cast<int>(threadIdx.x) % 32),
        group_(static_cast<int>(args.num_heads / args.num_kv_heads)),
        first_split_(first_split),
        num_pairs_(static_cast<int>(args.num_kv_heads) * plan.num_tiles *
                   static_cast<int>(batch.num_sequences)),
        num_pieces_(num_pairs_ * num_splits),
        last_split_(first_split + num_splits - 1),
        memory_(S::warp_address(static_cast<int>(threadIdx.x) / 32)) {}

  __device__ void run() {
    if (lane_ == 0) {
      for (int i = 0; i < S::kStages; ++i) barrier_init(barrier(i), 1);
      barrier_init_fence();
    }
    __syncwarp();
    ask();
    find_piece();
    for (int i = 0; i < S::kStages; ++i) start_copy(i);
    Warp warp;
    DeviceLane lane(lane_);
    typename Warp::Softmax softmax;
    Piece piece;
    int current = -1;
    for (int used = 0;; ++used) {
      const int stage = used % S::kStages;
      int2 note;  // piece and block
      asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                   : "=r"(note.x), "=r"(note.y)
                   : "r"(notes(stage))
                   : "memory");
      if (note.x < 0 || note.x != current) {
        if (current >= 0) store(warp, piece);
        if (note.x < 0) return;
        current = note.x;
        locate(current, piece);
        begin(piece, lane, warp, softmax);
      }
      barrier_wait(barrier(stage), static_cast<uint32_t>(used / S::kStages & 1));
      softmax.block_begin = note.y * kBlock;
      softmax.all_seen =
          softmax.block_begin >= all_see_begin_ && softmax.block_begin + kBlock <= all_see_end_;
      const uint32_t keys = memory_ + static_cast<uint32_t>(stage * S::kStageBytes);
      warp.attend_block(lane, softmax, keys, keys + S::kHeadBytes, keys + 2 * S::kHeadBytes,
                        S::kInBlock);
      __syncwarp();  // all lanes have read the stage
      start_copy(stage);
    }
  }

 private:
  __device__ uint32_t barrier(int stage) const {
    return memory_ + static_cast<uint32_t>(S::kBarriers + stage * 8);
  }
  __device__ uint32_t notes(int stage) const {
    return memory_ + static_cast<uint32_t>(S::kNotes + stage * 8);
  }

  // Asks for a piece; the answer is not waited for before it is needed.
  __device__ void ask() {
    if (lane_ == 0) asked_ = atomicAdd(plan_.next, 1);
  }

  // False: no such work.
  __device__ bool locate(int index, Piece& piece) const {
    const int pair = index % num_pairs_;
    piece.split = last_split_ - index / num_pairs_;
    const int num_kv_heads = static_cast<int>(args_.num_kv_heads);
    piece.kv_head = pair % num_kv_heads;
    const int tile = pair / num_kv_heads % plan_.num_tiles;
    piece.sequence = pair / num_kv_heads / plan_.num_tiles;
    const Run run = run_of(batch_, piece.sequence);
    piece.query_begin = tile * S::kQueries;
    piece.query_count = min(S::kQueries, run.rows * group_ - piece.query_begin);
    if (piece.query_count <= 0) return false;
    piece.first_row = run.first_row, piece.first_position = run.first_position;
    const int lowest = first_seen(args_, position_of(piece, 0));
    const int highest = position_of(piece, piece.query_count - 1);
    if (piece.split < split_of<kCodePart>(lowest) || piece.split > split_of<kCodePart>(highest))
      return false;
    piece.block = max(split_begin<kCodePart>(piece.split), lowest) / kBlock;
    piece.end_block = min(split_begin<kCodePart>(piece.split + 1), highest + kBlock) / kBlock;
    return true;
  }
  __device__ int position_of(const Piece& piece, int query) const {
    return piece.first_position + (piece.query_begin + query) / group_;
  }

  // The next piece to copy: feed_ and feed_index_, -1 at the end.
  __device__ void find_piece() {
    for (;;) {
      feed_index_ = __shfl_sync(0xffffffffu, asked_, 0);
      if (feed_index_ >= num_pieces_) {
        feed_index_ = -1;
        return;
      }
      ask();
      if (locate(feed_index_, feed_)) break;
    }
    table_ = batch_.block_tables + feed_.sequence * batch_.table_stride;
    next_id_ = table_[feed_.block];
  }
  __device__ void start_copy(int stage) {
    const bool more = feed_index_ >= 0;
    if (lane_ == 0) {
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(notes(stage)), "r"(feed_index_),
                   "r"(feed_.block)
                   : "memory");
      if (more) {
        const int64_t at = (next_id_ * args_.num_kv_heads + feed_.kv_head) * S::kHeadBytes;
        const uint32_t to = memory_ + static_cast<uint32_t>(stage * S::kStageBytes);
        barrier_expect(barrier(stage), S::kStageBytes);
        bulk_copy(to, static_cast<const char*>(layer_.keys) + at, S::kHeadBytes, barrier(stage));
        bulk_copy(to + S::kHeadBytes, static_cast<const char*>(layer_.values) + at, S::kHeadBytes,
                  barrier(stage));
        if constexpr (kOffset) {
          bulk_copy(to + 2 * S::kHeadBytes,
                    args_.key_offset.block_starts + static_cast<int64_t>(feed_.block) * D,
                    S::kStartBytes, barrier(stage));
        }
      }
    }
    __syncwarp();
    if (!more) return;
    if (++feed_.block < feed_.end_block) {
      next_id_ = table_[feed_.block];
    } else {
      find_piece();
    }
  }

  __device__ void begin(const Piece& piece, DeviceLane& lane, Warp& warp,
                        typename Warp::Softmax& softmax) {
    const bool capped = args_.softcap > 0;
    softmax.scale = capped ? args_.scale / args_.softcap : args_.scale * kLog2E;
    softmax.softcap = args_.softcap * kLog2E;
    softmax.window = static_cast<int>(args_.sliding_window);
    softmax.first = num_sinks(batch_);
    const int lowest = position_of(piece, 0);
    const int highest = position_of(piece, piece.query_count - 1);
    all_see_begin_ = max(first_seen(args_, highest), softmax.first), all_see_end_ = lowest + 1;
    warp.clear();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int query = tile * 8 + Warp::query_of(lane_, i);
        softmax.last[tile][i] = position_of(piece, query < piece.query_count ? query : 0);
      }
      const int query = tile * 8 + lane_ / 4;
      uint32_t words[2][D / 16] = {};
      if (query < piece.query_count) {
        const int in_sequence = piece.query_begin + query;
        const int64_t row = piece.first_row + in_sequence / group_;
        const int head = piece.kv_head * group_ + in_sequence % group_;
        const auto* from = static_cast<const __nv_bfloat16*>(args_.q) + row * args_.q_stride +
                           head * D + lane_ % 4 * (D / 8);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int w = 0; w < D / 16; w += 4) {
            const uint4 four = *reinterpret_cast<const uint4*>(from + half * (D / 2) + 2 * w);
            words[half][w] = four.x, words[half][w + 1] = four.y;
            words[half][w + 2] = four.z, words[half][w + 3] = four.w;
          }
        }
      }
      warp.set_query(tile, words[0], words[1]);
      if constexpr (kOffset) set_offset(piece, lane, tile, warp);
    }
  }
  __device__ void set_offset(const Piece& piece, DeviceLane& lane, int tile, Warp& warp) const {
    const int query = tile * 8 + lane_ / 4;
    float c[Warp::kPairs] = {}, s[Warp::kPairs] = {};
    if (query < piece.query_count) {
      const int in_sequence = piece.query_begin + query;
      const int64_t row = piece.first_row + in_sequence / group_;
      const int head = piece.kv_head * group_ + in_sequence % group_;
      const float* from = args_.key_offset.products + (row * args_.num_heads + head) * D;
#pragma unroll
      for (int i = 0; i < Warp::kPairs; i += 4) {
        const float* at = from + Warp::pair_of(lane_, i);
        const float4 cosines = *reinterpret_cast<const float4*>(at);
        const float4 sines = *reinterpret_cast<const float4*>(at + D / 2);
        c[i] = cosines.x, c[i + 1] = cosines.y, c[i + 2] = cosines.z, c[i + 3] = cosines.w;
        s[i] = sines.x, s[i + 1] = sines.y, s[i + 2] = sines.z, s[i + 3] = sines.w;
      }
    }
    warp.set_offset(lane, tile, c, s);
  }

  __device__ void store(const Warp& warp, const Piece& piece) const {
    const Run run = run_of(batch_, piece.sequence);
    const int split = piece.split - split_of<kCodePart>(first_seen(args_, run.first_position));
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float total = warp.total[tile][i];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          total += __shfl_xor_sync(0xffffffffu, total, mask);
        }
        const int query = tile * 8 + Warp::query_of(lane_, i);
        if (query >= piece.query_count) continue;
        const int64_t at =
            ((static_cast<int64_t>(piece.sequence) * args_.num_kv_heads + piece.kv_head) *
                 plan_.num_queries +
             piece.query_begin + query) *
                plan_.num_splits +
            split;
        if (lane_ < 4) plan_.statistics[at] = make_float2(warp.largest[tile][i], total);
#pragma unroll
        for (int step = 0; step < Warp::kSteps; ++step) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            plan_.sums[at * D + Warp::dim_of(lane_, step, 2 * half)] =
                warp.o[tile][step][2 * half + i];
          }
        }
      }
    }
  }

  const AttentionCudaArgs& args_;
  const CudaBatch& batch_;
  const KvCudaLayer& layer_;
  const Plan& plan_;
  const int lane_, group_;
  const int first_split_, num_pairs_, num_pieces_, last_split_;
  const uint32_t memory_;

  int asked_ = 0;  // lane 0
  int feed_index_ = -1;
  Piece feed_ = {};
  const int32_t* table_ = nullptr;
  int64_t next_id_ = 0;
  int all_see_begin_ = 0, all_see_end_ = 0;  // positions that all queries of the piece see
};

template <int D, int kTiles, bool kOffset>
__global__ void __launch_bounds__(Shape<D, kTiles, kOffset>::kWarps * 32, 1)
    decode_codes_kernel(const __grid_constant__ AttentionCudaArgs args,
                        const __grid_constant__ CudaBatch batch,
                        const __grid_constant__ KvCudaLayer layer,
                        const __grid_constant__ Plan plan) {
  using S = Shape<D, kTiles, kOffset>;
  extern __shared__ __align__(128) char shared[];
  __shared__ int first_split, last_split;
  if (shared_address(shared) > S::kLowBegin) __trap();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int code = warp; code < 256; code += S::kWarps) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(kTableAddress +
                                                 static_cast<uint32_t>(code * 256 + lane * 4)),
                 "r"(layer.grid->pairs[code])
                 : "memory");
  }
  if constexpr (kOffset) {
    using Warp = CodesWarp<D, kTiles, kOffset>;
    for (int at = static_cast<int>(threadIdx.x); at < Warp::kInBlockWords; at += S::kWarps * 32) {
      const typename Warp::InBlock place = Warp::in_block(at);
      const float* cos = args.key_offset.in_block + place.pair * kBlock + place.token;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(S::kInBlock + static_cast<uint32_t>(at * 4)),
                   "r"(pack<true>(cos[0], cos[D / 2 * kBlock]))
                   : "memory");
    }
  }
  if (threadIdx.x == 0) first_split = INT_MAX, last_split = -1;
  __syncthreads();
  wait_for_previous_kernel();
  allow_next_kernel();
  // The parts that there are, of all sequences.
  int first = INT_MAX, last = -1;
  for (int s = static_cast<int>(threadIdx.x); s < static_cast<int>(batch.num_sequences);
       s += S::kWarps * 32) {
    const Run run = run_of(batch, s);
    if (run.rows == 0) continue;
    first = min(first, split_of<kCodePart>(first_seen(args, run.first_position)));
    last = max(last, split_of<kCodePart>(run.first_position + run.rows - 1));
  }
  if (last >= 0) {
    atomicMin(&first_split, first);
    atomicMax(&last_split, last);
  }
  __syncthreads();
  if (last_split < 0) return;
  Worker<D, kTiles, kOffset>(args, batch, layer, plan, first_split, last_split - first_split + 1)
      .run();
}

// Score * log2 e of a query with the exact key of a position among the first, by a warp.
template <int D>
__device__ float sink_score(const AttentionCudaArgs& args, int64_t row, int head,
                            const __nv_bfloat16* key, int position, int lane) {
  const auto* q = static_cast<const __nv_bfloat16*>(args.q) + row * args.q_stride + head * D;
  float score = 0;
#pragma unroll
  for (int dim = lane; dim < D; dim += 32) {
    score = fmaf(__bfloat162float(q[dim]), __bfloat162float(key[dim]), score);
  }
  if (args.key_offset.offset != nullptr) {
    const float* products = args.key_offset.products + (row * args.num_heads + head) * D;
    const float* angles = args.key_offset.in_block + position;  // the first block starts at 0
#pragma unroll
    for (int pair = lane; pair < D / 2; pair += 32) {
      score = fmaf(products[pair], angles[pair * kBlock], score);
      score = fmaf(products[D / 2 + pair], angles[(D / 2 + pair) * kBlock], score);
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    score += __shfl_xor_sync(0xffffffffu, score, offset);
  }
  score *= args.scale;
  if (args.softcap > 0) score = args.softcap * tanh_fast(score / args.softcap);
  return score * kLog2E;
}

// Adds up the parts of one query, in an order that depends on how many they are alone. Exact rows
// of the first positions are one more part, a warp for each.
template <int D>
__global__ void __launch_bounds__(256)
    merge_codes_kernel(const __grid_constant__ AttentionCudaArgs args,
                       const __grid_constant__ CudaBatch batch,
                       const __grid_constant__ KvCudaLayer layer,
                       const __grid_constant__ Plan plan) {
  constexpr int kWarps = 8, kPerLane = D / 32;
  static_assert(kLiveSinks <= kWarps);
  __shared__ float sums[kWarps][D];
  __shared__ float totals[kWarps];
  __shared__ float sink_scores[kLiveSinks];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  wait_for_previous_kernel();
  allow_next_kernel();
  if (blockIdx.x + blockIdx.y + blockIdx.z == 0 && threadIdx.x == 0) *plan.next = 0;
  const int query = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int sequence = static_cast<int>(blockIdx.z);
  const int group = static_cast<int>(args.num_heads / args.num_kv_heads);
  const Run run = run_of(batch, sequence);
  if (query >= run.rows * group) return;
  const int64_t row = run.first_row + query / group;
  const int head = kv_head * group + query % group;
  const int position = run.first_position + query / group;
  const int first_position = first_seen(args, position);
  const int first = split_of<kCodePart>(first_position);
  const int count = split_of<kCodePart>(position) + 1 - first;
  const int64_t at =
      ((static_cast<int64_t>(sequence) * args.num_kv_heads + kv_head) * plan.num_queries + query) *
          plan.num_splits +
      first - split_of<kCodePart>(first_seen(args, run.first_position));
  const float2* statistics = plan.statistics + at;
  float largest = -INFINITY;
  for (int i = lane; i < count; i += 32) largest = fmaxf(largest, __ldcg(statistics + i).x);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  }
  const bool has_sink = warp < num_sinks(batch) && warp >= first_position && warp <= position;
  int64_t sink = 0;  // of this warp, in bytes from the start of keys and of values
  float own_score = -INFINITY;
  if (has_sink) {
    const int64_t block = batch.sink_blocks[sequence];
    sink = (block * args.num_kv_heads + kv_head) * kv_cuda_head_bytes(layer.element, D) +
           sink_offset(D, warp);
    own_score = sink_score<D>(
        args, row, head,
        reinterpret_cast<const __nv_bfloat16*>(static_cast<const char*>(layer.keys) + sink), warp,
        lane);
  }
  if (num_sinks(batch) > 0) {
    if (warp < static_cast<int>(kLiveSinks) && lane == 0) sink_scores[warp] = own_score;
    __syncthreads();
    for (int i = 0; i < static_cast<int>(kLiveSinks); ++i) largest = fmaxf(largest, sink_scores[i]);
  }
  float sum[kPerLane] = {}, total = 0;
  if (has_sink) {
    const auto* value =
        reinterpret_cast<const __nv_bfloat16*>(static_cast<const char*>(layer.values) + sink);
    total = exp2_fast(own_score - largest);
#pragma unroll
    for (int p = 0; p < kPerLane; ++p) sum[p] = total * __bfloat162float(value[lane + 32 * p]);
  }
  constexpr int kAhead = 4;
  for (int i = warp; i < count; i += kWarps * kAhead) {
    float2 part[kAhead];
    float v[kAhead][kPerLane];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int part_idx = min(i + a * kWarps, count - 1);
      part[a] = __ldcg(statistics + part_idx);
#pragma unroll
      for (int p = 0; p < kPerLane; ++p) {
        v[a][p] = __ldcg(plan.sums + (at + part_idx) * D + lane + 32 * p);
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a * kWarps >= count) break;
      const float weight = exp2_fast(part[a].x - largest);
      total = fmaf(part[a].y, weight, total);
#pragma unroll
      for (int p = 0; p < kPerLane; ++p) sum[p] = fmaf(v[a][p], weight, sum[p]);
    }
  }
#pragma unroll
  for (int p = 0; p < kPerLane; ++p) sums[warp][lane + 32 * p] = sum[p];
  if (lane == 0) totals[warp] = total;
  __syncthreads();
  if (warp > 0) return;
  total = 0;
  for (int w = 0; w < kWarps; ++w) total += totals[w];
  for (int dim = lane; dim < D; dim += 32) {
    float x = sums[0][dim];
    for (int w = 1; w < kWarps; ++w) x += sums[w][dim];
    sums[0][dim] = x / total;
  }
  rotate_head(sums[0], D, lane);
  auto* out = static_cast<__nv_bfloat16*>(args.out) + (row * args.num_heads + head) * D;
  for (int dim = 2 * lane; dim < D; dim += 64) {
    *reinterpret_cast<uint32_t*>(out + dim) = pack<false>(sums[0][dim], sums[0][dim + 1]);
  }
}

template <int D, int kTiles, bool kOffset>
void launch(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
            CudaStream stream) {
  using S = Shape<D, kTiles, kOffset>;
  const DecodeGrid grid = decode_grid(args, batch, true);
  const Plan plan{.num_splits = static_cast<int>(grid.num_splits),
                  .num_queries = static_cast<int>(grid.num_queries),
                  .num_tiles = static_cast<int>((grid.num_queries + S::kQueries - 1) / S::kQueries),
                  .next = static_cast<int32_t*>(args.workspace),
                  .statistics = reinterpret_cast<float2*>(static_cast<char*>(args.workspace) +
                                                          kDecodeCounterBytes),
                  .sums = reinterpret_cast<float*>(static_cast<char*>(args.workspace) +
                                                   kDecodeCounterBytes + grid.statistics_bytes)};
  const int64_t pieces = args.num_kv_heads * plan.num_tiles * batch.num_sequences * grid.num_splits;
  if (pieces > INT_MAX / 2) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: ", batch.num_sequences,
         " sequences with ", grid.num_splits, " parts each are too many for a step");
  }
  const auto kernel = decode_codes_kernel<D, kTiles, kOffset>;
  constexpr int kSharedBytes = static_cast<int>(S::kEnd);  // from address 0 on
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "shared memory of attention_decode_codes");
  int device = 0, num_sms = 0;
  cuda_check(cudaGetDevice(&device), "finding the GPU");
  cuda_check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device),
             "counting multiprocessors");
  const auto blocks =
      static_cast<unsigned>(std::clamp<int64_t>((pieces + S::kWarps - 1) / S::kWarps, 1, num_sms));
  launch_dependent("attention_decode_codes", kernel, dim3(blocks), dim3(S::kWarps * 32),
                   kSharedBytes, stream, 1, args, batch, layer, plan);
  const dim3 queries(static_cast<unsigned>(grid.num_queries),
                     static_cast<unsigned>(args.num_kv_heads),
                     static_cast<unsigned>(batch.num_sequences));
  launch_dependent("attention_merge_codes", merge_codes_kernel<D>, queries, dim3(256), 0, stream, 1,
                   args, batch, layer, plan);
}

}  // namespace

bool has_fast_code_attention(const AttentionCudaArgs& args) {
  return args.element == CudaElement::kBF16 && args.q_stride % 8 == 0 &&
         (args.head_dim == 64 || args.head_dim == 128);
}

void attention_decode_codes_sm90(const AttentionCudaArgs& args, const CudaBatch& batch,
                                 const KvCudaLayer& layer, CudaStream stream) {
  const bool wide = decode_grid(args, batch, true).num_queries > 8;
  const bool has_offset = args.key_offset.offset != nullptr;
  if (args.head_dim == 64) {
    (has_offset ? launch<64, 1, true>
     : wide     ? launch<64, 2, false>
                : launch<64, 1, false>)(args, batch, layer, stream);
  } else {
    (has_offset ? launch<128, 1, true>
     : wide     ? launch<128, 2, false>
                : launch<128, 1, false>)(args, batch, layer, stream);
  }
}

}  // namespace lathe
