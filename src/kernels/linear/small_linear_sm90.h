// y = x W^T for up to 64 rows of x on Hopper: bound by reading W once.
//
// W is cut into tiles of 64 rows x 64 columns, a row panel's tiles contiguous along k. A cluster of
// C blocks takes whole panels, each block a C-th of their columns; within a block, chunks of four
// tiles go round four warpgroups. So 4 C partial sums of a panel are added at its end, in a fixed
// order. One block a multiprocessor, five warpgroups:
//
//   warpgroups 0..3   x into shared memory once, as the tensor core's right operand; then for each
//                     chunk: decode to registers, y^T[64, rows] += W x^T by wgmma. At the end of a
//                     panel the sums go to shared memory and the next panel begins.
//   warpgroup 4       warp 0 keeps a ring of chunks full with bulk copies, beginning before the
//                     previous kernel has ended; warps 1..3 add up the warpgroups' sums, send each
//                     block of the cluster those of the rows it owns, add up what arrives, write y.
//
// No warpgroup waits for another within a panel, and copies run on through all that happens at its
// end.
#pragma once
#include <cuda_bf16.h>

#include "kernels/linear/async_copy_sm90.h"
#include "kernels/linear/small_decode_sm90.h"
#include "kernels/linear/small_linear.h"
#include "kernels/linear/wgmma_sm90.h"
#include "tensor/cuda_launch.cuh"

namespace lathe {

struct SmallLinearArgs {
  const std::byte* codes;
  const std::byte* scales;
  const float* row_scales;  // [n] or null
  const float* bias;        // [n] or null
  const __nv_bfloat16* x;   // [m, 64 k_tiles]
  const float* x_scales;    // [m] or null
  void* y;                  // [m, y_stride], bf16 or fp32
  float* partial;           // [rows, 64 panels] of earlier passes, 16-byte aligned
  int64_t y_stride;
  int64_t n;
  int m;
  int k_tiles;
  int panels;
  int passes;
  int slots;    // of the ring
  int x_tiles;  // that shared memory holds
  bool y_is_f32;
};

namespace small_linear {

constexpr int kGroups = 4;  // of consumers
constexpr int kConsumers = kGroups * 128;
constexpr int kThreads = kConsumers + 128;
constexpr int kReducers = 96;
// A block starts with 96 registers a thread (65536 / kThreads, rounded down to a multiple of 8),
// and shares out no more than these.
constexpr int kConsumerRegisters = 104;
constexpr int kHelperRegisters = 64;
static_assert(kConsumers * kConsumerRegisters + 128 * kHelperRegisters <= kThreads * 96);
constexpr int kChunkTiles = 4;
constexpr int kPanelRows = 64;
constexpr int kMaxShared = 227 * 1024;

// Buffers of the sums of a panel: two where they are small.
constexpr int sum_buffers(int rows) { return rows <= 16 ? 2 : 1; }
// Floats between columns of the warpgroups' sums; four spread them over the banks.
constexpr int kSumStride = kPanelRows + 4;
constexpr int group_sum_bytes(int rows) { return kGroups * rows * kSumStride * 4; }
// What blocks of a cluster exchange: [cluster][rows][64 / cluster] floats out and in.
constexpr int exchange_bytes(int rows, int cluster) {
  return cluster == 1 ? 0 : rows * kPanelRows * 4;
}
constexpr int x_tile_bytes(int rows) { return rows * 128; }
constexpr int shared_bytes(int rows, int cluster, int x_tiles, int slots, int tile_bytes) {
  return 1024 + x_tiles * x_tile_bytes(rows) + slots * kChunkTiles * tile_bytes +
         sum_buffers(rows) * (group_sum_bytes(rows) + 2 * exchange_bytes(rows, cluster)) +
         (2 * slots + 4 * sum_buffers(rows)) * 8 + rows * 4;
}

// ---- PTX beyond async_copy_sm90.h

// Contiguous bytes from global memory; addresses and size are multiples of 16.
__device__ __forceinline__ void copy_bulk(uint32_t target, const void* source, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(target),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}
// The address in block `rank` of the cluster of what has this address here.
__device__ __forceinline__ uint32_t remote_address(uint32_t address, uint32_t rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
// Shared memory to that of another block; `target` and `barrier` are addresses there.
__device__ __forceinline__ void copy_bulk_remote(uint32_t target, uint32_t source, uint32_t bytes,
                                                 uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(target),
      "r"(source), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void barrier_wait_cluster(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "WAIT_%=:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1, 0x989680;\n"
      "@done bra DONE_%=;\n"
      "bra WAIT_%=;\n"
      "DONE_%=:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Orders the writes of left operands before the next products; naming them keeps the compiler from
// finishing them between the products, which would serialise those.
__device__ __forceinline__ void order_operands(uint32_t (&a)[2][2][4]) {
  asm volatile("wgmma.fence.sync.aligned;"
               : "+r"(a[0][0][0]), "+r"(a[0][0][1]), "+r"(a[0][0][2]), "+r"(a[0][0][3]),
                 "+r"(a[0][1][0]), "+r"(a[0][1][1]), "+r"(a[0][1][2]), "+r"(a[0][1][3]),
                 "+r"(a[1][0][0]), "+r"(a[1][0][1]), "+r"(a[1][0][2]), "+r"(a[1][0][3]),
                 "+r"(a[1][1][0]), "+r"(a[1][1][1]), "+r"(a[1][1][2]), "+r"(a[1][1][3])::"memory");
}

// Tells a block of the cluster that this one has read what it had sent.
__device__ __forceinline__ void arrive_remote(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// One wgmma m64nNk16 of bf16 with fp32 sums.
template <int N>
__device__ __forceinline__ void multiply(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b);
#define LATHE_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LATHE_F16(i) LATHE_F4(i), LATHE_F4(i + 4), LATHE_F4(i + 8), LATHE_F4(i + 12)
#define LATHE_MULTIPLY(N, D, A0, A1, A2, A3, B, ...)                                       \
  template <>                                                                              \
  __device__ __forceinline__ void multiply<N>(float(&d)[N / 2], const uint32_t(&a)[4],     \
                                              uint64_t b) {                                \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" D "}, {%" A0 \
                 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", 1, 1, 1, 0;"                       \
                 : __VA_ARGS__                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                    \
  }
#define LATHE_D4 "%0, %1, %2, %3"
#define LATHE_D8 LATHE_D4 ", %4, %5, %6, %7"
#define LATHE_D16 LATHE_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LATHE_D32                                                                 \
  LATHE_D16                                                                       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, " \
  "%31"
LATHE_MULTIPLY(8, LATHE_D4, "4", "5", "6", "7", "8", LATHE_F4(0))
LATHE_MULTIPLY(16, LATHE_D8, "8", "9", "10", "11", "12", LATHE_F4(0), LATHE_F4(4))
LATHE_MULTIPLY(32, LATHE_D16, "16", "17", "18", "19", "20", LATHE_F16(0))
LATHE_MULTIPLY(64, LATHE_D32, "32", "33", "34", "35", "36", LATHE_F16(0), LATHE_F16(16))
#undef LATHE_F4
#undef LATHE_F16
#undef LATHE_MULTIPLY
#undef LATHE_D4
#undef LATHE_D8
#undef LATHE_D16
#undef LATHE_D32

// The tiles [begin, end) of a panel that a block multiplies in one pass.
struct TileRange {
  int begin, end;
};
__device__ __forceinline__ TileRange tile_range(const SmallLinearArgs& a, int cluster, int rank,
                                                int pass) {
  const int64_t pieces = int64_t{cluster} * a.passes, piece = int64_t{pass} * cluster + rank;
  return {static_cast<int>(piece * a.k_tiles / pieces),
          static_cast<int>((piece + 1) * a.k_tiles / pieces)};
}

// Offset of 16-byte chunk `chunk` (0..7) of row `row` in a tile of x: the 128-byte swizzle.
__device__ __forceinline__ int x_offset(int row, int chunk) {
  return row * 128 + ((chunk ^ row % 8) << 4);
}

// x[:, 64 begin .. 64 end) to shared memory, by all consumers. Rows from m on are zeros, and so is
// a tile behind the last where their number is odd.
template <XOrder kOrder, int kRows>
__device__ __forceinline__ void stage_x(const SmallLinearArgs& a, TileRange range,
                                        std::byte* target) {
  const int tiles = range.end - range.begin;
  const int items = (tiles + tiles % 2) * kRows * 4;  // of 16 columns
  const int64_t k = int64_t{a.k_tiles} * 64;
#pragma unroll 2
  for (int item = threadIdx.x; item < items; item += kConsumers) {
    const int part = item % 4, row = item / 4 % kRows, tile = item / (4 * kRows);
    // Two times 8 columns: neighbours, or 16 apart.
    const int column = kOrder == XOrder::kHalfPairs ? part / 2 * 32 + part % 2 * 8 : part * 16;
    uint4 first = {}, second = {};
    if (row < a.m && tile < tiles) {
      const __nv_bfloat16* source = a.x + row * k + (range.begin + tile) * 64 + column;
      first = *reinterpret_cast<const uint4*>(source);
      second = *reinterpret_cast<const uint4*>(source + (kOrder == XOrder::kHalfPairs ? 16 : 8));
    }
    uint4 left = first, right = second;  // chunks of 8 numbers along k
    if constexpr (kOrder == XOrder::kBytePairs) {
      left = {permute_bytes(first.x, first.y, 0x5410), permute_bytes(first.z, first.w, 0x5410),
              permute_bytes(second.x, second.y, 0x5410), permute_bytes(second.z, second.w, 0x5410)};
      right = {permute_bytes(first.x, first.y, 0x7632), permute_bytes(first.z, first.w, 0x7632),
               permute_bytes(second.x, second.y, 0x7632),
               permute_bytes(second.z, second.w, 0x7632)};
    } else if constexpr (kOrder == XOrder::kHalfPairs) {
      left = {permute_bytes(first.x, second.x, 0x5410), permute_bytes(first.y, second.y, 0x5410),
              permute_bytes(first.z, second.z, 0x5410), permute_bytes(first.w, second.w, 0x5410)};
      right = {permute_bytes(first.x, second.x, 0x7632), permute_bytes(first.y, second.y, 0x7632),
               permute_bytes(first.z, second.z, 0x7632), permute_bytes(first.w, second.w, 0x7632)};
    }
    std::byte* tile_target = target + tile * x_tile_bytes(kRows);
    *reinterpret_cast<uint4*>(tile_target + x_offset(row, 2 * part)) = left;
    *reinterpret_cast<uint4*>(tile_target + x_offset(row, 2 * part + 1)) = right;
  }
}

// Where things are in shared memory, and who this block is.
template <class Decode, int kRows>
struct Block {
  static constexpr int kSlotBytes = kChunkTiles * (Decode::kCodeBytes + Decode::kScaleBytes);
  static constexpr int kBuffers = sum_buffers(kRows);
  int cluster_shift, rank, first_panel, panel_step;
  std::byte* x;                      // tiles of x, 1024-byte aligned
  uint32_t ring;                     // [slots] chunks
  float* group_sums;                 // [buffers][groups][rows][kSumStride]
  float* outgoing;                   // [buffers][owners][rows][64 / cluster]
  float* incoming;                   // [buffers][senders][rows][64 / cluster]
  uint32_t full, empty;              // [slots] barriers: a chunk has arrived; all have read it
  uint32_t group_full, group_empty;  // [buffers]
  uint32_t incoming_full, incoming_empty;  // [buffers]; empty: in all blocks of the cluster
  uint32_t* x_largest;                     // [rows], of a split x: bits of the largest |x| as bf16

  __device__ __forceinline__ Block(const SmallLinearArgs& a, int shift, std::byte* shared)
      : cluster_shift(shift),
        rank(shift == 0 ? 0 : static_cast<int>(cluster_rank())),
        first_panel(blockIdx.x >> shift),
        panel_step(gridDim.x >> shift) {
    x = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(shared) + 1023) / 1024 * 1024);
    std::byte* next = x + a.x_tiles * x_tile_bytes(kRows);
    ring = shared_address(next);
    next += a.slots * kSlotBytes;
    group_sums = reinterpret_cast<float*>(next);
    outgoing = group_sums + kBuffers * group_sum_bytes(kRows) / 4;
    incoming = outgoing + kBuffers * exchange_bytes(kRows, cluster()) / 4;
    const float* behind = incoming + kBuffers * exchange_bytes(kRows, cluster()) / 4;
    full = shared_address(behind);
    x_largest =
        reinterpret_cast<uint32_t*>(const_cast<float*>(behind)) + (2 * a.slots + 4 * kBuffers) * 2;
    empty = full + a.slots * 8;
    group_full = empty + a.slots * 8;
    group_empty = group_full + kBuffers * 8;
    incoming_full = group_empty + kBuffers * 8;
    incoming_empty = incoming_full + kBuffers * 8;
  }
  __device__ __forceinline__ int cluster() const { return 1 << cluster_shift; }
  __device__ __forceinline__ void init_barriers(const SmallLinearArgs& a) const {
    for (int i = 0; i < a.slots; ++i) {
      barrier_init(full + i * 8, 1);
      barrier_init(empty + i * 8, 4);
    }
    for (int i = 0; i < kBuffers; ++i) {
      barrier_init(group_full + i * 8, kGroups * 4);
      barrier_init(group_empty + i * 8, 1);
      barrier_init(incoming_full + i * 8, 1);
      barrier_init(incoming_empty + i * 8, static_cast<uint32_t>(cluster()));
    }
    barrier_init_fence();
  }
};

// A position in a ring: its index and the parity of the barrier's phase.
struct RingPlace {
  int index;
  uint32_t parity;
  __device__ __forceinline__ void advance(int by, int size) {
    index += by;
    if (index >= size) {
      index -= size;
      parity ^= 1;
    }
  }
};

// Warp 0 of the helpers: every chunk of the block in the order of its use. The whole warp walks
// along, so that addresses stay in uniform registers; `leader` is one of its lanes.
template <class Decode, int kRows>
class Producer {
 public:
  __device__ __forceinline__ Producer(const SmallLinearArgs& a, const Block<Decode, kRows>& block)
      : a_(a), block_(block), pass_(0), panel_(block.first_panel), place_{0, 1} {
    begin_panel();
    skip_empty();
  }
  __device__ __forceinline__ bool done() const { return left_ == 0; }
  __device__ __forceinline__ void copy_next(bool leader) {
    constexpr int kCodes = Decode::kCodeBytes, kScales = Decode::kScaleBytes;
    barrier_wait(block_.empty + place_.index * 8, place_.parity);
    if (leader) {
      const uint32_t barrier = block_.full + place_.index * 8;
      const uint32_t codes = block_.ring + place_.index * Block<Decode, kRows>::kSlotBytes;
      const uint32_t scales = codes + kChunkTiles * kCodes;
      const uint32_t count = min(left_, kChunkTiles);
      const uint32_t odd = count % 2;
      barrier_arrive_expect(barrier, (count + odd) * (kCodes + kScales));
      copy_bulk(codes, codes_, count * kCodes, barrier);
      copy_bulk(scales, scales_, count * kScales, barrier);
      if (odd != 0) {  // the last tile twice, the second time against an x of zeros
        copy_bulk(codes + count * kCodes, codes_ + (count - 1) * kCodes, kCodes, barrier);
        copy_bulk(scales + count * kScales, scales_ + (count - 1) * kScales, kScales, barrier);
      }
    }
    codes_ += kChunkTiles * kCodes;
    scales_ += kChunkTiles * kScales;
    place_.advance(1, a_.slots);
    left_ = max(left_ - kChunkTiles, 0);
    skip_empty();
  }

 private:
  __device__ __forceinline__ void begin_panel() {
    const TileRange range = tile_range(a_, block_.cluster(), block_.rank, pass_);
    const int64_t tile = int64_t{panel_} * a_.k_tiles + range.begin;
    codes_ = a_.codes + tile * Decode::kCodeBytes;
    scales_ = a_.scales + tile * Decode::kScaleBytes;
    left_ = range.end - range.begin;
  }
  // To the next panel or pass, where this one has no tiles left.
  __device__ __forceinline__ void skip_empty() {
    while (left_ == 0) {
      panel_ += block_.panel_step;
      if (panel_ >= a_.panels) {
        panel_ = block_.first_panel;
        if (++pass_ == a_.passes) return;
      }
      begin_panel();
    }
  }
  const SmallLinearArgs& a_;
  const Block<Decode, kRows>& block_;
  int pass_, panel_;
  int left_;  // tiles of the panel
  const std::byte* codes_;
  const std::byte* scales_;
  RingPlace place_;
};

// Warpgroups 0..3, with x in bf16.
template <class Decode, int kRows>
__device__ __forceinline__ void consume(const SmallLinearArgs& a,
                                        const Block<Decode, kRows>& block) {
  constexpr int kCodes = Decode::kCodeBytes, kScales = Decode::kScaleBytes;
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
  const uint32_t x_address = shared_address(block.x);
  RingPlace chunk_place{group, 0}, buffer{0, 1};
  int turn = 0;  // the warpgroup that takes the first chunk of the panel
  for (int pass = 0; pass < a.passes; ++pass) {
    const TileRange range = tile_range(a, block.cluster(), block.rank, pass);
    const int tiles = range.end - range.begin;
    if (pass > 0) named_barrier(1, kConsumers);  // all products with the old x are done
    stage_x<Decode::kOrder, kRows>(a, range, block.x);
    fence_async_proxy();
    named_barrier(1, kConsumers);
    for (int panel = block.first_panel; panel < a.panels; panel += block.panel_step) {
      float sum[kRows / 2];
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) sum[i] = 0;
      for (int tile = ((group - turn) & (kGroups - 1)) * kChunkTiles; tile < tiles;
           tile += kGroups * kChunkTiles) {
        barrier_wait(block.full + chunk_place.index * 8, chunk_place.parity);
        const uint32_t codes = block.ring + chunk_place.index * Block<Decode, kRows>::kSlotBytes;
        const uint32_t scales = codes + kChunkTiles * kCodes;
        const bool whole = tile + 2 < tiles;
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          if (pair > 0 && !whole) break;
          typename Decode::Raw raw[2];
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            const int v = 2 * pair + u;
            raw[u] = Decode::load(codes + v * kCodes, scales + v * kScales, thread);
          }
          if (pair > 0 || !whole) {
            __syncwarp();
            if (lane == 0) barrier_arrive(block.empty + chunk_place.index * 8);
          }
          uint32_t left[2][2][2][4];  // [tile][half][step of the half]
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            wgmma_wait<1>();  // registers of the tile before the last are free again
            Decode::template decode<0>(raw[u], left[u][0]);
            Decode::template decode<1>(raw[u], left[u][1]);
            const uint64_t right =
                wgmma_descriptor(x_address + (tile + 2 * pair + u) * x_tile_bytes(kRows));
            order_operands(left[u]);
#pragma unroll
            for (int step = 0; step < 4; ++step) {
              multiply<kRows>(sum, left[u][step / 2][step % 2], right + 2 * step);
            }
            wgmma_commit();
          }
        }
        chunk_place.advance(kGroups, a.slots);
      }
      turn = (turn + (tiles + kChunkTiles - 1) / kChunkTiles) & (kGroups - 1);
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) asm volatile("" : "+f"(sum[i])::"memory");

      barrier_wait(block.group_empty + buffer.index * 8, buffer.parity);
      float* target = block.group_sums +
                      ((buffer.index * kGroups + group) * kRows + thread % 4 * 2) * kSumStride +
                      thread / 32 * 16 + lane / 4;
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
        if (8 * j >= a.m) break;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          target[(8 * j + i % 2) * kSumStride + i / 2 * 8] = sum[4 * j + i];
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(block.group_full + buffer.index * 8);
      buffer.advance(1, Block<Decode, kRows>::kBuffers);
    }
  }
}

// The same with a split x, small_split_sm90.h.
template <class Decode, int kRows>
__device__ __forceinline__ void consume_split(const SmallLinearArgs& a,
                                              const Block<Decode, kRows>& block);

// y of four rows of the panel (outputs n .. n + 3) and one row of x.
template <class Decode>
__device__ __forceinline__ void finish(const SmallLinearArgs& a, int pass, int64_t n, int column,
                                       float4 sums) {
  const float values[4] = {sums.x, sums.y, sums.z, sums.w};
  float4* partial =
      reinterpret_cast<float4*>(a.partial + column * int64_t{a.panels} * kPanelRows + n);
  float4 before = {};
  if (pass > 0) before = *partial;
  const float earlier[4] = {before.x, before.y, before.z, before.w};
  if (pass < a.passes - 1) {
    *partial = {values[0] + earlier[0], values[1] + earlier[1], values[2] + earlier[2],
                values[3] + earlier[3]};
    return;
  }
  const float x_scale = a.x_scales == nullptr ? 1.0f : a.x_scales[column];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (n + i >= a.n) break;
    float y = (values[i] + earlier[i]) * Decode::kOutputScale;
    if (a.row_scales != nullptr) y *= a.row_scales[n + i];
    y *= x_scale;
    if (a.bias != nullptr) y += a.bias[n + i];
    const int64_t index = column * a.y_stride + n + i;
    if (a.y_is_f32) {
      static_cast<float*>(a.y)[index] = y;
    } else {
      static_cast<__nv_bfloat16*>(a.y)[index] = __float2bfloat16_rn(y);
    }
  }
}

__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// Warps 1..3 of the helpers.
template <class Decode, int kRows>
__device__ __forceinline__ void reduce(const SmallLinearArgs& a,
                                       const Block<Decode, kRows>& block) {
  const int thread = threadIdx.x - kConsumers - 32;
  const int cluster = block.cluster();
  const int owned_shift = 6 - block.cluster_shift, owned = 1 << owned_shift;
  const uint32_t part_bytes = static_cast<uint32_t>(a.m * owned * 4);
  if (cluster > 1 && thread == 0) {
    for (int i = 0; i < Block<Decode, kRows>::kBuffers; ++i) {
      barrier_arrive_expect(block.incoming_full + i * 8, part_bytes * cluster);
    }
  }
  RingPlace buffer{0, 0};
  for (int pass = 0; pass < a.passes; ++pass) {
    for (int panel = block.first_panel; panel < a.panels; panel += block.panel_step) {
      const int64_t n = int64_t{panel} * kPanelRows;
      const uint32_t barrier_offset = buffer.index * 8;
      if (cluster > 1) barrier_wait(block.incoming_empty + barrier_offset, buffer.parity ^ 1);
      barrier_wait(block.group_full + barrier_offset, buffer.parity);
      const float* group_sums = block.group_sums + buffer.index * kGroups * kRows * kSumStride;
      float* outgoing = block.outgoing + buffer.index * kRows * kPanelRows;
      for (int item = thread; item < a.m * (kPanelRows / 4); item += kReducers) {
        const int row = item % (kPanelRows / 4) * 4, column = item / (kPanelRows / 4);
        const float* source = group_sums + column * kSumStride + row;
        float4 sum = *reinterpret_cast<const float4*>(source);
#pragma unroll
        for (int group = 1; group < kGroups; ++group) {
          sum = add(sum, *reinterpret_cast<const float4*>(source + group * kRows * kSumStride));
        }
        if (cluster == 1) {
          finish<Decode>(a, pass, n + row, column, sum);
        } else {
          const int owner = row >> owned_shift;
          *reinterpret_cast<float4*>(outgoing + (owner * kRows + column) * owned +
                                     (row & (owned - 1))) = sum;
        }
      }
      if (cluster > 1) fence_async_proxy();
      named_barrier(2, kReducers);
      if (thread == 0) barrier_arrive(block.group_empty + barrier_offset);
      if (cluster > 1) {
        float* incoming = block.incoming + buffer.index * kRows * kPanelRows;
        if (thread < cluster) {
          const auto other = static_cast<uint32_t>(thread);
          copy_bulk_remote(
              remote_address(shared_address(incoming + block.rank * kRows * owned), other),
              shared_address(outgoing + thread * kRows * owned), part_bytes,
              remote_address(block.incoming_full + barrier_offset, other));
        }
        barrier_wait_cluster(block.incoming_full + barrier_offset, buffer.parity);
        for (int item = thread; item < a.m << (owned_shift - 2); item += kReducers) {
          const int row = (item & (owned / 4 - 1)) * 4, column = item >> (owned_shift - 2);
          const float* source = incoming + column * owned + row;
          float4 sum = *reinterpret_cast<const float4*>(source);
          for (int sender = 1; sender < cluster; ++sender) {
            sum = add(sum, *reinterpret_cast<const float4*>(source + sender * kRows * owned));
          }
          finish<Decode>(a, pass, n + (block.rank << owned_shift) + row, column, sum);
        }
        named_barrier(2, kReducers);
        if (thread == 0)
          barrier_arrive_expect(block.incoming_full + barrier_offset, part_bytes * cluster);
        __syncwarp();
        if (thread < cluster) {
          arrive_remote(
              remote_address(block.incoming_empty + barrier_offset, static_cast<uint32_t>(thread)));
        }
      }
      buffer.advance(1, Block<Decode, kRows>::kBuffers);
    }
  }
}

template <class Decode, int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    small_linear_kernel(const __grid_constant__ SmallLinearArgs a, int cluster_shift) {
  extern __shared__ std::byte shared[];
  const Block<Decode, kRows> block(a, cluster_shift, shared);
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  // The weights are nobody's output: their copies begin at once.
  const bool leader = threadIdx.x == kConsumers;
  Producer<Decode, kRows> producer(a, block);
  if (warp == kGroups * 4) {
    if (leader) block.init_barriers(a);
    __syncwarp();
    for (int i = 0; i < a.slots && !producer.done(); ++i) producer.copy_next(leader);
    __syncwarp();
  }
  if (cluster_shift == 0) {
    __syncthreads();
  } else {
    cluster_sync();
  }
  allow_next_kernel();

  if (warp < kGroups * 4) {
    take_registers<kConsumerRegisters>();
    wait_for_previous_kernel();
    if constexpr (Decode::kSplitsX) {
      consume_split(a, block);
    } else {
      consume(a, block);
    }
  } else {
    give_registers<kHelperRegisters>();
    if (warp == kGroups * 4) {
      while (!producer.done()) producer.copy_next(leader);
    } else {
      wait_for_previous_kernel();
      reduce(a, block);
    }
    __syncwarp();
  }
  // Shared memory must last until the others of the cluster have read and sent what they had to.
  if (cluster_shift > 0) cluster_sync();
}

template <class Decode, int kRows>
void launch(const SmallLinearArgs& args, const SmallLinearConfig& config, CudaStream stream) {
  const int shared = shared_bytes(kRows, config.cluster, args.x_tiles, config.slots,
                                  Decode::kCodeBytes + Decode::kScaleBytes);
  const auto kernel = small_linear_kernel<Decode, kRows>;
  static const bool prepared = [&] {
    cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxShared),
        "asking for shared memory");
    return true;
  }();
  (void)prepared;
  int shift = 0;
  while (1 << shift < config.cluster) ++shift;
  launch_dependent("a linear layer of few rows", kernel,
                   dim3(static_cast<unsigned>(config.cluster * config.num_clusters)),
                   dim3(kThreads), shared, stream, static_cast<unsigned>(config.cluster), args,
                   shift);
}

}  // namespace small_linear

// Throws kInvalidArgument where the config does not fit the sizes.
inline SmallLinearArgs small_linear_args(const std::byte* codes, const std::byte* scales,
                                         const float* row_scales, const float* bias, int64_t n,
                                         int64_t k, const CudaLinearInput& x,
                                         const CudaLinearOutput& y, const SmallLinearConfig& config,
                                         std::byte* workspace) {
  if (x.m > config.rows || (config.passes > 1 && workspace == nullptr)) {
    fail(ErrorCode::kInvalidArgument, "linear layer of ", x.m, " rows: ", to_string(config),
         workspace == nullptr ? ", no workspace" : "");
  }
  SmallLinearArgs args = {};
  args.codes = codes;
  args.scales = scales;
  args.row_scales = row_scales;
  args.bias = bias;
  args.x = static_cast<const __nv_bfloat16*>(x.data);
  args.x_scales = x.row_scales;
  args.y = y.data;
  args.partial = reinterpret_cast<float*>(workspace);
  args.y_stride = y.stride;
  args.n = n;
  args.m = static_cast<int>(x.m);
  args.k_tiles = static_cast<int>(k / kTileColumns);
  args.panels = static_cast<int>((n + kTileRows - 1) / kTileRows);
  args.passes = config.passes;
  args.slots = config.slots;
  const int pieces = config.cluster * config.passes;
  args.x_tiles = (args.k_tiles + pieces - 1) / pieces + 1;  // and zeros behind an odd number
  args.y_is_f32 = y.element == CudaElement::kF32;
  return args;
}

// With a split x (small_split_sm90.h). Throws kInvalidArgument where the weights are not MXFP4.
void run_split_linear(const Fp4Tiles& w, const SmallLinearArgs& args,
                      const SmallLinearConfig& config, CudaStream stream);

template <class Decode>
void run_small_linear(const SmallLinearArgs& args, const SmallLinearConfig& config,
                      CudaStream stream) {
  switch (config.rows) {
    case 8:
      return small_linear::launch<Decode, 8>(args, config, stream);
    case 16:
      return small_linear::launch<Decode, 16>(args, config, stream);
    case 32:
      return small_linear::launch<Decode, 32>(args, config, stream);
    default:
      return small_linear::launch<Decode, 64>(args, config, stream);
  }
}

}  // namespace lathe
