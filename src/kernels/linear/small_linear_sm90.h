// y = x W^T for up to 64 rows of x on Hopper: bound by reading W once.
//
// W is cut into tiles of 64 rows x 64 columns, a row panel's tiles contiguous along k. A cluster of
// C blocks takes whole panels, each block a C-th of their columns; within a block, chunks of two
// tiles go round four warpgroups. So 4 C partial sums of a panel are added at its end, in a fixed
// order. One block a multiprocessor, five warpgroups:
//
//   warpgroups 0..3   x into shared memory once, as the tensor core's B operand; then for each chunk:
//                     decode to registers, y^T[64, rows] += W x^T by wgmma. At the end of a panel the
//                     sums are sent to the block of the cluster that owns their rows (st.async) and
//                     the next panel begins.
//   warpgroup 4       warp 0 keeps the ring of each warpgroup full with bulk copies, beginning before
//                     the previous kernel has ended; warps 1..3 add up what has arrived and write y.
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
  float* partial;           // [rows, 64 panels] of earlier passes
  int64_t y_stride;
  int64_t n;
  int m;
  int k_tiles;
  int panels;
  int passes;
  int slots;
  int x_tiles;  // that shared memory holds
  bool y_is_f32;
};

namespace small_linear {

constexpr int kGroups = 4;  // of consumers
constexpr int kConsumers = kGroups * 128;
constexpr int kThreads = kConsumers + 128;
constexpr int kReducers = 96;
// A block starts with 96 registers a thread (65536 / kThreads, rounded down to a multiple of 8), and
// shares out no more than these.
constexpr int kConsumerRegisters = 104;
constexpr int kHelperRegisters = 64;
static_assert(kConsumers * kConsumerRegisters + 128 * kHelperRegisters <= kThreads * 96);
constexpr int kChunkTiles = 2;
constexpr int kPanelRows = 64;
constexpr int kMaxShared = 227 * 1024;

constexpr int sum_buffers(int rows) { return rows <= 16 ? 2 : 1; }
// Floats between columns of a buffer of sums: so many rows of the panel a block owns, and room that
// spreads the columns over the banks.
constexpr int sum_stride(int rows, int cluster) { return kPanelRows / cluster + (rows <= 16 ? 4 : 0); }
constexpr int sum_bytes(int rows, int cluster) {
  return kGroups * cluster * rows * sum_stride(rows, cluster) * 4;
}
constexpr int x_tile_bytes(int rows) { return rows * 128; }
constexpr int shared_bytes(int rows, int cluster, int x_tiles, int slots, int tile_bytes) {
  return 1024 + x_tiles * x_tile_bytes(rows) + kGroups * slots * kChunkTiles * tile_bytes +
         sum_buffers(rows) * sum_bytes(rows, cluster) + (2 * kGroups * slots + 4) * 8;
}

// ---- PTX beyond async_copy_sm90.h

// Contiguous bytes from global memory; addresses and size are multiples of 16.
__device__ __forceinline__ void copy_bulk(uint32_t target, const void* source, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          target),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}
// The address in block `rank` of the cluster of what has this address here.
__device__ __forceinline__ uint32_t remote_address(uint32_t address, uint32_t rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
__device__ __forceinline__ void store_remote(uint32_t address, float value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address),
      "r"(__float_as_uint(value)), "r"(barrier)
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
#define LATHE_MULTIPLY(N, D, A0, A1, A2, A3, B, ...)                                            \
  template <>                                                                                  \
  __device__ __forceinline__ void multiply<N>(float(&d)[N / 2], const uint32_t(&a)[4],         \
                                              uint64_t b) {                                    \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" D "}, {%" A0     \
                 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", 1, 1, 1, 0;"                           \
                 : __VA_ARGS__                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
  }
#define LATHE_D4 "%0, %1, %2, %3"
#define LATHE_D8 LATHE_D4 ", %4, %5, %6, %7"
#define LATHE_D16 LATHE_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LATHE_D32                                                                           \
  LATHE_D16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, " \
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

// x[:, 64 begin .. 64 end) to shared memory, by all consumers. Rows from m on are zeros.
template <XOrder kOrder, int kRows>
__device__ __forceinline__ void stage_x(const SmallLinearArgs& a, TileRange range, std::byte* target) {
  // An item is 8 columns and the 8 that lie 16 behind them.
  const int items = (range.end - range.begin) * kRows * 4;
  const int64_t k = int64_t{a.k_tiles} * 64;
#pragma unroll 2
  for (int item = threadIdx.x; item < items; item += kConsumers) {
    // Eight neighbours take a row's 128 bytes in two: of a 32-column block, a = 0, 1.
    const int part = item % 4, row = item / 4 % kRows, tile = item / (4 * kRows);
    const int block = part / 2, upper = part % 2;
    uint4 low = {}, high = {};
    if (row < a.m) {
      const __nv_bfloat16* source =
          a.x + row * k + (range.begin + tile) * 64 + block * 32 + upper * 8;
      low = *reinterpret_cast<const uint4*>(source);
      high = *reinterpret_cast<const uint4*>(source + 16);
    }
    std::byte* tile_target = target + tile * x_tile_bytes(kRows);
    if constexpr (kOrder == XOrder::kNatural) {
      *reinterpret_cast<uint4*>(tile_target + x_offset(row, block * 4 + upper)) = low;
      *reinterpret_cast<uint4*>(tile_target + x_offset(row, block * 4 + upper + 2)) = high;
    } else {
      // pair[c]: columns 8 upper + c and 16 behind it.
      const uint32_t l[4] = {low.x, low.y, low.z, low.w}, h[4] = {high.x, high.y, high.z, high.w};
      uint32_t pair[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pair[2 * i] = permute_bytes(l[i], h[i], 0x5410);
        pair[2 * i + 1] = permute_bytes(l[i], h[i], 0x7632);
      }
      // The word of thread t, pair i is word t of chunk i of the block.
      if constexpr (kOrder == XOrder::kBytePairs) {  // pairs 4t + i, t = 2 upper, 2 upper + 1
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          *reinterpret_cast<uint2*>(tile_target + x_offset(row, block * 4 + i) + upper * 8) = {
              pair[i], pair[4 + i]};
        }
      } else {  // pairs 2t + i % 2 + 8 (i / 2), i / 2 = upper
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          *reinterpret_cast<uint4*>(tile_target + x_offset(row, block * 4 + upper * 2 + i)) = {
              pair[i], pair[2 + i], pair[4 + i], pair[6 + i]};
        }
      }
    }
  }
}

template <class Decode, int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    small_linear_kernel(const __grid_constant__ SmallLinearArgs a, int cluster_shift) {
  constexpr int kBuffers = sum_buffers(kRows);
  constexpr int kCodes = Decode::kCodeBytes, kScales = Decode::kScaleBytes;
  constexpr int kSlotBytes = kChunkTiles * (kCodes + kScales);
  const int cluster = 1 << cluster_shift;
  const int rank = cluster_shift == 0 ? 0 : static_cast<int>(cluster_rank());
  const int first_panel = blockIdx.x >> cluster_shift, panel_step = gridDim.x >> cluster_shift;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int lane = threadIdx.x % 32;

  extern __shared__ std::byte unaligned_shared[];
  std::byte* x_shared = reinterpret_cast<std::byte*>(
      (reinterpret_cast<uintptr_t>(unaligned_shared) + 1023) / 1024 * 1024);
  std::byte* ring = x_shared + a.x_tiles * x_tile_bytes(kRows);
  float* sums = reinterpret_cast<float*>(ring + kGroups * a.slots * kSlotBytes);
  const int sum_size = sum_bytes(kRows, cluster) / 4;
  const uint32_t full = shared_address(sums + kBuffers * sum_size);  // [groups][slots]
  const uint32_t empty = full + kGroups * a.slots * 8;
  const uint32_t sums_full = empty + kGroups * a.slots * 8;  // [buffers]
  const uint32_t sums_empty = sums_full + kBuffers * 8;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kGroups * a.slots; ++i) {
      barrier_init(full + i * 8, 1);
      barrier_init(empty + i * 8, 4);
    }
    for (int i = 0; i < kBuffers; ++i) {
      barrier_init(sums_full + i * 8, 1);
      barrier_init(sums_empty + i * 8, cluster);
    }
    barrier_init_fence();
  }
  if (cluster_shift == 0) {
    __syncthreads();
  } else {
    cluster_sync();
  }
  allow_next_kernel();

  if (warp < kGroups * 4) {
    take_registers<kConsumerRegisters>();
    const int group = warp / 4;
    const int thread = threadIdx.x % 128;
    wait_for_previous_kernel();
    int slot = 0, parity = 0;      // of this warpgroup's ring
    int buffer = 0, sum_parity = 1;
    const uint32_t group_ring = shared_address(ring) + group * a.slots * kSlotBytes;
    const uint32_t group_full = full + group * a.slots * 8;
    const uint32_t group_empty = empty + group * a.slots * 8;
    const uint32_t x_address = shared_address(x_shared);
    for (int pass = 0; pass < a.passes; ++pass) {
      const TileRange range = tile_range(a, cluster, rank, pass);
      const int tiles = range.end - range.begin;
      if (pass > 0) named_barrier(1, kConsumers);
      stage_x<Decode::kOrder, kRows>(a, range, x_shared);
      fence_async_proxy();
      named_barrier(1, kConsumers);
      for (int panel = first_panel; panel < a.panels; panel += panel_step) {
        float sum[kRows / 2];
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i) sum[i] = 0;
        for (int tile = group * kChunkTiles; tile < tiles; tile += kGroups * kChunkTiles) {
          barrier_wait(group_full + slot * 8, parity);
          const uint32_t codes = group_ring + slot * kSlotBytes;
          const uint32_t scales = codes + kChunkTiles * kCodes;
          typename Decode::Raw raw[kChunkTiles];
#pragma unroll
          for (int u = 0; u < kChunkTiles; ++u) {
            raw[u] = Decode::load(codes + u * kCodes, scales + u * kScales, thread);
            // In place of a tile behind the last: zeros, times an x that counts anyway.
            if (u > 0 && tile + u >= tiles) raw[u] = {};
          }
          __syncwarp();
          if (lane == 0) barrier_arrive(group_empty + slot * 8);
          if (++slot == a.slots) {
            slot = 0;
            parity ^= 1;
          }
          uint32_t left[kChunkTiles][2][2][4];  // [tile][half][step of the half]
#pragma unroll
          for (int u = 0; u < kChunkTiles; ++u) {
            wgmma_wait<1>();  // registers of the tile before the last are free again
            Decode::template decode<0>(raw[u], left[u][0]);
            Decode::template decode<1>(raw[u], left[u][1]);
            const uint64_t right = 
                wgmma_descriptor(x_address + min(tile + u, tiles - 1) * x_tile_bytes(kRows));
            order_operands(left[u]);
#pragma unroll
            for (int step = 0; step < 4; ++step) {
              multiply<kRows>(sum, left[u][step / 2][step % 2], right + 2 * step);
            }
            wgmma_commit();
          }
        }
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i) asm volatile("" : "+f"(sum[i])::"memory");

        // Row r of the panel goes to block r / (64 / cluster) of the cluster.
        barrier_wait_cluster(sums_empty + buffer * 8, sum_parity);
        const int stride = sum_stride(kRows, cluster);
        const uint32_t base = shared_address(sums + buffer * sum_size) +
                              ((rank * kGroups + group) * kRows + thread % 4 * 2) * stride * 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = thread / 32 * 16 + lane / 4 + 8 * half;
          const int owner = row >> (6 - cluster_shift);
          const uint32_t target = remote_address(
              base + (row - (owner << (6 - cluster_shift))) * 4, static_cast<uint32_t>(owner));
          const uint32_t barrier = remote_address(sums_full + buffer * 8, static_cast<uint32_t>(owner));
#pragma unroll
          for (int j = 0; j < kRows / 8; ++j) {
            if (8 * j >= a.m) break;
            store_remote(target + 8 * j * stride * 4, sum[4 * j + 2 * half], barrier);
            store_remote(target + (8 * j + 1) * stride * 4, sum[4 * j + 2 * half + 1], barrier);
          }
        }
        if (++buffer == kBuffers) {
          buffer = 0;
          sum_parity ^= 1;
        }
      }
    }
  } else {
    give_registers<kHelperRegisters>();
    if (warp == kGroups * 4) {
      if (lane == 0) {
        int slot[kGroups] = {}, parity[kGroups];
#pragma unroll
        for (int g = 0; g < kGroups; ++g) parity[g] = 1;
        for (int pass = 0; pass < a.passes; ++pass) {
          const TileRange range = tile_range(a, cluster, rank, pass);
          for (int panel = first_panel; panel < a.panels; panel += panel_step) {
            for (int tile = range.begin; tile < range.end;) {
#pragma unroll
              for (int g = 0; g < kGroups; ++g) {
                if (tile >= range.end) break;
                const uint32_t count = min(kChunkTiles, range.end - tile);
                const uint32_t index = g * a.slots + slot[g];
                barrier_wait(empty + index * 8, parity[g]);
                const uint32_t barrier = full + index * 8;
                const uint32_t target = shared_address(ring) + index * kSlotBytes;
                const int64_t source = int64_t{panel} * a.k_tiles + tile;
                barrier_arrive_expect(barrier, count * (kCodes + kScales));
                copy_bulk(target, a.codes + source * kCodes, count * kCodes, barrier);
                if constexpr (kScales > 0) {
                  copy_bulk(target + kChunkTiles * kCodes, a.scales + source * kScales,
                            count * kScales, barrier);
                }
                if (++slot[g] == a.slots) {
                  slot[g] = 0;
                  parity[g] ^= 1;
                }
                tile += kChunkTiles;
              }
            }
          }
        }
      }
    } else {
      wait_for_previous_kernel();
      const int thread = threadIdx.x - kConsumers - 32;
      const int row_shift = 6 - cluster_shift, owned = 1 << row_shift;
      const int stride = sum_stride(kRows, cluster);
      const uint32_t expected = kGroups * kPanelRows * 4 * ((a.m + 7) / 8 * 8);
      if (thread == 0) {
        for (int i = 0; i < kBuffers; ++i) barrier_arrive_expect(sums_full + i * 8, expected);
      }
      int buffer = 0, parity = 0;
      for (int pass = 0; pass < a.passes; ++pass) {
        for (int panel = first_panel; panel < a.panels; panel += panel_step) {
          barrier_wait_cluster(sums_full + buffer * 8, parity);
          const float* source = sums + buffer * sum_size;
          for (int e = thread; e < a.m << row_shift; e += kReducers) {
            const int row = e & (owned - 1), column = e >> row_shift;
            const int64_t n = int64_t{panel} * kPanelRows + (rank << row_shift) + row;
            float total = 0;
            for (int part = 0; part < kGroups * cluster; ++part) {
              total += source[(part * kRows + column) * stride + row];
            }
            float* partial = a.partial + column * int64_t{a.panels} * kPanelRows + n;
            if (pass > 0) total += *partial;
            if (pass < a.passes - 1) {
              *partial = total;
            } else if (n < a.n) {
              total *= Decode::kOutputScale;
              if (a.row_scales != nullptr) total *= a.row_scales[n];
              if (a.x_scales != nullptr) total *= a.x_scales[column];
              if (a.bias != nullptr) total += a.bias[n];
              const int64_t index = column * a.y_stride + n;
              if (a.y_is_f32) {
                static_cast<float*>(a.y)[index] = total;
              } else {
                static_cast<__nv_bfloat16*>(a.y)[index] = __float2bfloat16_rn(total);
              }
            }
          }
          named_barrier(2, kReducers);
          if (thread == 0) {
            barrier_arrive_expect(sums_full + buffer * 8, expected);
            for (int other = 0; other < cluster; ++other) {
              arrive_remote(remote_address(sums_empty + buffer * 8, static_cast<uint32_t>(other)));
            }
          }
          if (++buffer == kBuffers) {
            buffer = 0;
            parity ^= 1;
          }
        }
      }
    }
    __syncwarp();
  }
  // Shared memory must last until the others of the cluster have sent and told what they had to.
  if (cluster_shift > 0) cluster_sync();
}

template <class Decode, int kRows>
void launch(const SmallLinearArgs& args, const SmallLinearConfig& config, CudaStream stream) {
  const int shared = shared_bytes(kRows, config.cluster, args.x_tiles, config.slots,
                                  Decode::kCodeBytes + Decode::kScaleBytes);
  const auto kernel = small_linear_kernel<Decode, kRows>;
  static const bool prepared = [&] {
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxShared),
               "asking for shared memory");
    return true;
  }();
  (void)prepared;
  int shift = 0;
  while (1 << shift < config.cluster) ++shift;
  launch_dependent("a linear layer of few rows", kernel,
                   dim3(static_cast<unsigned>(config.cluster * config.num_clusters)), dim3(kThreads),
                   shared, stream, static_cast<unsigned>(config.cluster), args, shift);
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
  args.x_tiles = (args.k_tiles + pieces - 1) / pieces;
  args.y_is_f32 = y.element == CudaElement::kF32;
  return args;
}

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
