// y = x W^T for 8-bit W, row-major, and up to 64 rows of x on Hopper: bound by reading W once.
//
// A cluster has a run of rows of W (units of 16 or 32) and walks over them by as many as the warps
// of a block cover, each time along all of k, of which each of its blocks has a part. Warps of a
// block:
//   consumers    8, in 8 / split units of rows times `split` parts of 128 columns; a stage of the
//                ring holds 128 columns for each. Products by mma.m16n8k16 with W on the left, so
//                that W's rows fill the 16 and x's the 8; scales of groups multiply fp32 sums of 32
//                columns. At the end of k the sums of the `split` parts of all blocks of the
//                cluster are added in order, shared evenly by all warps.
//   3 producers  copy W and its scales, beginning before the previous kernel of the stream has
//   ended 1 producer   copies x
// At up to 16 rows a block takes half of a multiprocessor, so that the next kernel's block begins
// to copy while this one ends.
//
// k within a group of 32 columns is permuted alike in W and x: lane t = lane % 4 has columns
// 8t .. 8t + 7, the first four for one mma and the rest for the next. So W is read from shared
// memory by 8 bytes a lane and x by 16.
#pragma once
#include <cuda_bf16.h>

#include "base/error.h"
#include "kernels/linear/async_copy_sm90.h"
#include "kernels/linear/linear_w8_small_sm90.h"
#include "kernels/linear/w8_small_decode_sm90.h"
#include "kernels/linear/w8_small_layout.h"
#include "tensor/cuda_launch.cuh"
#include "tensor/once_per_device.h"

namespace lathe {

struct W8SmallArgs {
  const uint8_t* codes;
  const uint8_t* scales;      // of groups, [n, k / 32]
  const float* scale_of_row;  // [n] or null
  const float* row_scales;    // [n] or null
  const float* bias;          // [n] or null
  const __nv_bfloat16* x;     // [m, k]
  const float* x_scales;      // [m] or null
  void* y;                    // [m, y_stride], bf16 or fp32
  int64_t y_stride;
  int n;
  int k;
  int m;
  int units;        // of rows of W
  int split_shift;  // split = 1 << split_shift
  int cluster;
  int stages;
  bool y_is_f32;
};

namespace w8_small {

// 16 bytes; zeros where `bytes` is 0.
__device__ __forceinline__ void copy_16(uint32_t target, const void* source, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
}
template <int kBytes>  // 4 or 8
__device__ __forceinline__ void copy_few(uint32_t target, const void* source, uint32_t bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(source),
               "n"(kBytes), "r"(bytes)
               : "memory");
}
// An arrival once all copies that this thread has begun have landed.
__device__ __forceinline__ void barrier_arrive_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Arrives at the barrier at the same address in block `rank`, with this warp's writes to shared
// memory before it.
__device__ __forceinline__ void barrier_arrive_release(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void barrier_wait_acquire(uint32_t barrier, uint32_t parity) {
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
__device__ __forceinline__ float load_cluster(uint32_t address, uint32_t rank) {
  float value;
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [remote];\n}\n"
      : "=f"(value)
      : "r"(address), "r"(rank)
      : "memory");
  return value;
}

// Position in the ring: slot, and the parity of the phase to wait for.
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++slot == stages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ float factor_of_row(const W8SmallArgs& a, int row) {
  float factor = 1;
  if (row >= a.n) return factor;
  if (a.scale_of_row != nullptr) factor = a.scale_of_row[row];
  if (a.row_scales != nullptr) factor *= a.row_scales[row];
  return factor;
}
__device__ __forceinline__ float bias_of_row(const W8SmallArgs& a, int row) {
  return a.bias != nullptr && row < a.n ? a.bias[row] : 0;
}
__device__ __forceinline__ float factor_of_token(const W8SmallArgs& a, int token) {
  return a.x_scales != nullptr && token < a.m ? a.x_scales[token] : 1;
}
__device__ __forceinline__ void store(const W8SmallArgs& a, int row, int token, float value) {
  if (row >= a.n || token >= a.m) return;
  const int64_t index = token * a.y_stride + row;
  if (a.y_is_f32) {
    static_cast<float*>(a.y)[index] = value;
  } else {
    static_cast<__nv_bfloat16*>(a.y)[index] = __float2bfloat16_rn(value);
  }
}

// kRows: of x, padded. GroupScale: NoScale, ScaleBf16 or ScaleE8m0.
template <class Decode, class GroupScale, int kRows>
__global__ __launch_bounds__(w8_small_threads(kRows),
                             kRows <= 16 ? 2
                                         : 1) void kernel(const __grid_constant__ W8SmallArgs a) {
  constexpr int kWarps = w8_small_warps(kRows);
  constexpr int kUnitRows = w8_small_unit_rows(kRows);
  constexpr int kRowTiles = kUnitRows / 16;
  constexpr int kTiles = kRows / 8;
  constexpr int kTilesAtOnce = kTiles < 2 ? kTiles : 2;
  constexpr int kWarpBytes = kUnitRows * 128;  // of W in a stage
  constexpr bool kGrouped = GroupScale::kBytes > 0;
  constexpr int kScaleRow = 4 * GroupScale::kBytes;
  constexpr int kCopyWarps = kW8SmallProducers - 1;  // of W
  extern __shared__ __align__(1024) uint8_t shared[];

  const int split = 1 << a.split_shift;
  const W8SmallLayout layout(kRows, split, a.cluster, GroupScale::kBytes);
  const uint32_t base = shared_address(shared);
  const uint32_t full = base, empty = base + 8 * a.stages;
  const uint32_t sums_full = base + 16 * a.stages, sums_empty = sums_full + 8;
  const uint32_t ring = base + kW8SmallBarrierBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int cluster = blockIdx.x / a.cluster, clusters = gridDim.x / a.cluster;
  const int rank = blockIdx.x % a.cluster;
  const int unit_begin = static_cast<int>(int64_t{a.units} * cluster / clusters);
  const int unit_end = static_cast<int>(int64_t{a.units} * (cluster + 1) / clusters);
  const int pass_units = kWarps >> a.split_shift;
  const int all_steps = (a.k + 128 * split - 1) / (128 * split);
  const int step_begin = all_steps * rank / a.cluster;
  const int step_end = all_steps * (rank + 1) / a.cluster;
  // Copies of scales need their addresses aligned; where rows of scales are not, they go by
  // ordinary stores, which arrive by themselves.
  const bool plain_scales = kGrouped && a.k % 128 != 0;

  if (threadIdx.x == 0) {
    for (int i = 0; i < a.stages; ++i) {
      barrier_init(full + 8 * i, kW8SmallProducers * 32 + (plain_scales ? kCopyWarps * 32 : 0));
      barrier_init(empty + 8 * i, kWarps);
    }
    barrier_init(sums_full, kWarps * a.cluster);
    barrier_init(sums_empty, kWarps * a.cluster);
    barrier_init_fence();
  }
  if (a.cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  allow_next_kernel();

  if (warp == kWarps + kCopyWarps) {  // x
    wait_for_previous_kernel();
    RingPlace place;
    const int granule = lane % 16;  // of 8 columns; two rows at a time
    const auto* x = a.x + granule * 8;
    for (int unit = unit_begin; unit < unit_end; unit += pass_units) {
      for (int step = step_begin; step < step_end; ++step) {
        barrier_wait(empty + 8 * place.slot, place.parity ^ 1);
        const uint32_t target = ring + place.slot * layout.stage_bytes + layout.x_offset;
        for (int part = 0; part < split; ++part) {
          const int column = (step * split + part) * 128;
          const uint32_t bytes = column + granule * 8 < a.k ? 16 : 0;
#pragma unroll 4
          for (int row = lane / 16; row < a.m; row += 2) {
            const int group = granule / 4 ^ (row & 1);
            copy_16(target + (part * kRows + row) * 256 + group * 64 + granule % 4 * 16,
                    bytes > 0 ? x + int64_t{row} * a.k + column : a.x, bytes);
          }
        }
        barrier_arrive_copies(full + 8 * place.slot);
        place.advance(a.stages);
      }
    }
  } else if (warp >= kWarps) {  // W
    RingPlace place;
    const int copy_warp = warp - kWarps, thread = threadIdx.x - kWarps * 32;
    const int row_of_4 = lane / 8, granule = lane % 8;
    const uint32_t swizzled = row_of_4 * 128 + ((granule / 2 ^ row_of_4) * 32) + granule % 2 * 16;
    const int groups = a.k / 32;
    for (int unit = unit_begin; unit < unit_end; unit += pass_units) {
      const int first_row = unit * kUnitRows;
      const int rows = min(min(pass_units, unit_end - unit) * kUnitRows, a.n - first_row);
      const uint8_t* source = a.codes + int64_t{first_row} * a.k;
      for (int step = step_begin; step < step_end; ++step) {
        barrier_wait(empty + 8 * place.slot, place.parity ^ 1);
        const uint32_t target = ring + place.slot * layout.stage_bytes;
        const int step_column = step * split * 128;
        // 16 rows x 128 columns at a time.
        for (int tile = copy_warp; tile < kWarps * kRowTiles; tile += kCopyWarps) {
          const int of_warp = tile / kRowTiles;
          const int row = (of_warp >> a.split_shift) * kUnitRows + tile % kRowTiles * 16 + row_of_4;
          const int column = step_column + (of_warp & (split - 1)) * 128 + granule * 16;
          if ((of_warp >> a.split_shift) + unit >= unit_end) break;
          const uint8_t* from = source + int64_t{row} * a.k + column;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const bool is_inside = row + 4 * j < rows && column < a.k;
            copy_16(target + tile * 2048 + j * 512 + swizzled,
                    is_inside ? from + int64_t{4 * j} * a.k : a.codes, is_inside ? 16 : 0);
          }
        }
        if constexpr (kGrouped) {
          // One row of 128 columns a thread and turn.
          const uint32_t scales_target = target + layout.scales_offset;
          for (int i = thread; i < kWarps * kUnitRows; i += kCopyWarps * 32) {
            const int of_warp = i / kUnitRows;
            const int row = (of_warp >> a.split_shift) * kUnitRows + i % kUnitRows;
            const int group = (step_column + (of_warp & (split - 1)) * 128) / 32;
            const int64_t index = (int64_t{first_row} + row) * groups + group;
            const uint8_t* from = a.scales + index * GroupScale::kBytes;
            if (!plain_scales) {
              const bool is_inside = row < rows && group < groups;
              copy_few<kScaleRow>(scales_target + i * kScaleRow, is_inside ? from : a.scales,
                                  is_inside ? kScaleRow : 0);
            } else {
              uint8_t* to = shared + kW8SmallBarrierBytes + place.slot * layout.stage_bytes +
                            layout.scales_offset + i * kScaleRow;
              for (int b = 0; b < kScaleRow; ++b) {
                to[b] = row < rows && group + b / GroupScale::kBytes < groups ? from[b] : 0;
              }
            }
          }
          if (plain_scales) barrier_arrive(full + 8 * place.slot);
        }
        barrier_arrive_copies(full + 8 * place.slot);
        place.advance(a.stages);
      }
    }
  } else {
    wait_for_previous_kernel();  // y may still be read by it
    RingPlace place;
    uint32_t sums_parity = 0;
    const int g = lane / 4, t = lane % 4;
    const int part = warp & (split - 1);
    const uint32_t w_offset = warp * kWarpBytes + g * 128 + t * 8;
    const uint32_t x_offset = layout.x_offset + part * kRows * 256 + g * 256 + t * 16;
    for (int unit = unit_begin; unit < unit_end; unit += pass_units) {
      const int my_unit = unit + (warp >> a.split_shift);
      float sum[kRowTiles][kTiles][4] = {};
      for (int step = step_begin; step < step_end; ++step) {
        barrier_wait(full + 8 * place.slot, place.parity);
        if (my_unit < unit_end) {
          const uint8_t* stage = shared + kW8SmallBarrierBytes + place.slot * layout.stage_bytes;
          float scales[kRowTiles][2][4];
          if constexpr (kGrouped) {
#pragma unroll
            for (int i = 0; i < kRowTiles * 2; ++i) {
              const int row = warp * kUnitRows + i * 8 + g;
              GroupScale::load(stage + layout.scales_offset + row * kScaleRow,
                               scales[i / 2][i % 2]);
            }
          }
#pragma unroll
          for (int group = 0; group < 4; ++group) {
            uint32_t left[2][kRowTiles][4];
#pragma unroll
            for (int i = 0; i < kRowTiles * 2; ++i) {  // rows g, g + 8 of each tile
              const uint2 words = *reinterpret_cast<const uint2*>(stage + w_offset + i * 1024 +
                                                                  ((group ^ (g & 3)) * 32));
              Decode::decode(words.x, left[0][i / 2][i % 2], left[0][i / 2][2 + i % 2]);
              Decode::decode(words.y, left[1][i / 2][i % 2], left[1][i / 2][2 + i % 2]);
            }
            // Several products at once, since the second of a sum waits for its first.
#pragma unroll
            for (int first = 0; first < kTiles; first += kTilesAtOnce) {
              uint4 right[kTilesAtOnce];
              float products[kTilesAtOnce][kRowTiles][4] = {};
#pragma unroll
              for (int j = 0; j < kTilesAtOnce; ++j) {
                right[j] = *reinterpret_cast<const uint4*>(stage + x_offset + (first + j) * 2048 +
                                                           ((group ^ (g & 1)) * 64));
              }
#pragma unroll
              for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int i = 0; i < kTilesAtOnce * kRowTiles; ++i) {
                  const int j = i / kRowTiles, r = i % kRowTiles;
                  multiply(kGrouped ? products[j][r] : sum[r][first + j], left[half][r],
                           half == 0 ? right[j].x : right[j].z,
                           half == 0 ? right[j].y : right[j].w);
                }
              }
              if constexpr (kGrouped) {
#pragma unroll
                for (int i = 0; i < kTilesAtOnce * kRowTiles * 4; ++i) {
                  const int j = i / 4 / kRowTiles, r = i / 4 % kRowTiles, v = i % 4;
                  sum[r][first + j][v] =
                      __fmaf_rn(products[j][r][v], scales[r][v / 2][group], sum[r][first + j][v]);
                }
              }
            }
          }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + 8 * place.slot);
        place.advance(a.stages);
      }
      // Value v of a lane: row tile v / (4 kTiles), tile of x v / 4 % kTiles, place in it v % 4.
      constexpr int kValues = kRowTiles * kTiles * 4;
      const auto row_of = [&](int v) { return v / (4 * kTiles) * 16 + v % 4 / 2 * 8 + g; };
      const auto token_of = [&](int v) { return v / 4 % kTiles * 8 + t * 2 + v % 2; };
      if (split * a.cluster == 1) {
        if (my_unit < unit_end) {
          // All loads before the first store.
          float row_factors[kRowTiles * 2], biases[kRowTiles * 2], token_factors[kTiles * 2];
#pragma unroll
          for (int i = 0; i < kRowTiles * 2; ++i) {
            row_factors[i] = factor_of_row(a, my_unit * kUnitRows + i * 8 + g);
            biases[i] = bias_of_row(a, my_unit * kUnitRows + i * 8 + g);
          }
#pragma unroll
          for (int i = 0; i < kTiles * 2; ++i) {
            token_factors[i] = factor_of_token(a, i / 2 * 8 + t * 2 + i % 2);
          }
#pragma unroll
          for (int v = 0; v < kValues; ++v) {
            const int row = v / (4 * kTiles) * 2 + v % 4 / 2, token = v / 4 % kTiles * 2 + v % 2;
            const float value = sum[v / (4 * kTiles)][v / 4 % kTiles][v % 4] * row_factors[row] *
                                    token_factors[token] +
                                biases[row];
            store(a, my_unit * kUnitRows + row_of(v), token_of(v), value);
          }
        }
        continue;
      }
      // [warp][value][lane] in every block.
      const uint32_t sums = ring + a.stages * layout.stage_bytes + lane * 4;
      if (a.cluster > 1) barrier_wait_acquire(sums_empty, sums_parity ^ 1);
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(sums + (warp * kValues + v) * 128),
                     "f"(sum[v / (4 * kTiles)][v / 4 % kTiles][v % 4])
                     : "memory");
      }
      if (a.cluster > 1) {
        __syncwarp();
        if (lane < a.cluster) barrier_arrive_release(sums_full, lane);
        barrier_wait_acquire(sums_full, sums_parity);
      } else {
        named_barrier(1, kWarps * 32);
      }
      // Several values at a time, so that their loads are on the way together.
      constexpr int kBatch = 4, kPartsAtOnce = 4;
      const int items = min(pass_units, unit_end - unit) * kValues;
      const int parts = split * a.cluster;
      for (int first = rank * kWarps + warp; first < items; first += kBatch * a.cluster * kWarps) {
        float totals[kBatch] = {}, factors[kBatch], biases[kBatch];
        int rows[kBatch], tokens[kBatch];
        uint32_t addresses[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int item = first + i * a.cluster * kWarps;
          const int v = item % kValues, of_pass = item / kValues;
          rows[i] = item < items ? (unit + of_pass) * kUnitRows + row_of(v) : a.n;
          tokens[i] = item < items ? token_of(v) : a.m;
          addresses[i] = sums + ((of_pass << a.split_shift) * kValues + v) * 128;
          factors[i] = factor_of_row(a, rows[i]) * factor_of_token(a, tokens[i]);
          biases[i] = bias_of_row(a, rows[i]);
        }
        for (int p = 0; p < parts; p += kPartsAtOnce) {
          float values[kBatch][kPartsAtOnce];
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
#pragma unroll
            for (int j = 0; j < kPartsAtOnce; ++j) {
              values[i][j] =
                  p + j < parts && rows[i] < a.n && tokens[i] < a.m
                      ? load_cluster(addresses[i] + ((p + j) & (split - 1)) * kValues * 128,
                                     (p + j) >> a.split_shift)
                      : 0;
            }
          }
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
#pragma unroll
            for (int j = 0; j < kPartsAtOnce; ++j) totals[i] += values[i][j];
          }
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          store(a, rows[i], tokens[i], totals[i] * factors[i] + biases[i]);
        }
      }
      if (a.cluster > 1) {
        __syncwarp();
        if (lane < a.cluster) barrier_arrive_release(sums_empty, lane);
        sums_parity ^= 1;
      } else {
        named_barrier(1, kWarps * 32);
      }
    }
    // This block's sums and barriers must last until the others are done with them.
    if (a.cluster > 1 && unit_begin < unit_end) barrier_wait_acquire(sums_empty, sums_parity ^ 1);
  }
}

template <class Decode, class GroupScale, int kRows>
void launch(const W8SmallArgs& args, const W8SmallConfig& config, CudaStream stream) {
  const auto function = kernel<Decode, GroupScale, kRows>;
  static OncePerDevice prepare;
  prepare([&] {
    cuda_check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    kW8SmallMaxShared),
               "asking for shared memory");
  });
  const int shared =
      W8SmallLayout(kRows, config.split, config.cluster, GroupScale::kBytes).bytes(config.stages);
  launch_dependent("a linear layer of few rows", function,
                   dim3(static_cast<unsigned>(config.blocks)), dim3(w8_small_threads(kRows)),
                   shared, stream, static_cast<unsigned>(config.cluster), args);
}

}  // namespace w8_small

template <class Decode, class GroupScale>
void run_w8_small(const W8SmallArgs& args, const W8SmallConfig& config, CudaStream stream) {
  switch (config.rows) {
    case 8:
      return w8_small::launch<Decode, GroupScale, 8>(args, config, stream);
    case 16:
      return w8_small::launch<Decode, GroupScale, 16>(args, config, stream);
    case 32:
      return w8_small::launch<Decode, GroupScale, 32>(args, config, stream);
    default:
      return w8_small::launch<Decode, GroupScale, 64>(args, config, stream);
  }
}

// By scale, one file each.
void run_w8_small_row(const W8SmallArgs&, ElementType, const W8SmallConfig&, CudaStream);
void run_w8_small_bf16(const W8SmallArgs&, const W8SmallConfig&, CudaStream);  // INT8
void run_w8_small_e8m0(const W8SmallArgs&, const W8SmallConfig&, CudaStream);  // E4M3

}  // namespace lathe
