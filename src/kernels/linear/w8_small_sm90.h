// y = x W^T for 8-bit W, row-major, and up to 64 rows of x on Hopper: bound by reading W once.
//
// A block has a run of rows of W (units of 16 or 32) and walks over them by as many as its warps
// cover, each time along all of k. Warps:
//   consumers    kWarps, in kWarps / split rows of units times `split` parts of 128 columns; a stage
//                of the ring holds 128 columns for each. Products by mma.m16n8k16 with W on the left,
//                so that W's rows fill the 16 and x's the 8; scales of groups multiply fp32 sums
//                of 32 columns. At the end of k the `split` sums are added in order.
//   4 producers  copy W and its scales, beginning before the previous kernel of the stream has ended
//   1 producer   copies x
//
// k within a group of 32 columns is permuted alike in W and x: lane t = lane % 4 has columns
// 8t .. 8t + 7, the first four for one mma and the rest for the next. So W is read from shared memory
// by 8 bytes a lane and x by 16.
#pragma once
#include <cuda_bf16.h>

#include "base/error.h"
#include "kernels/linear/async_copy_sm90.h"
#include "kernels/linear/linear_w8_small_sm90.h"
#include "kernels/linear/w8_small_decode_sm90.h"
#include "kernels/linear/w8_small_layout.h"
#include "tensor/cuda_launch.cuh"

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
  int stages;
  bool y_is_f32;
};

namespace w8_small {

// 16 bytes; zeros where `bytes` is 0.
__device__ __forceinline__ void copy_16(uint32_t target, const void* source, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes)
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
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
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

// kRows: of x, padded. kGroupScale: NoScale, ScaleBf16 or ScaleE8m0.
template <class Decode, class GroupScale, int kRows>
__global__ __launch_bounds__((w8_small_warps(kRows) + kW8SmallProducers) * 32, 1) void kernel(
    const __grid_constant__ W8SmallArgs a) {
  constexpr int kWarps = w8_small_warps(kRows);
  constexpr int kRowTiles = w8_small_unit_rows(kRows) / 16;
  constexpr int kUnitRows = 16 * kRowTiles;
  constexpr int kTiles = kRows / 8;
  constexpr int kWarpBytes = kUnitRows * 128;  // of W in a stage
  constexpr bool kGrouped = GroupScale::kBytes > 0;
  constexpr int kScaleRow = 4 * GroupScale::kBytes;
  extern __shared__ __align__(1024) uint8_t shared[];

  const int split = 1 << a.split_shift;
  const W8SmallLayout layout(kRows, split, GroupScale::kBytes);
  const uint32_t base = shared_address(shared);
  const uint32_t full = base, empty = base + 8 * a.stages;
  const uint32_t ring = base + kW8SmallBarrierBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int unit_begin = static_cast<int>(int64_t{a.units} * blockIdx.x / gridDim.x);
  const int unit_end = static_cast<int>(int64_t{a.units} * (blockIdx.x + 1) / gridDim.x);
  const int pass_units = kWarps >> a.split_shift;
  const int steps = (a.k + 128 * split - 1) / (128 * split);
  // Copies of scales need their addresses aligned; where rows of scales are not, they go by ordinary
  // stores, which arrive by themselves.
  const bool plain_scales = kGrouped && a.k % 128 != 0;

  if (threadIdx.x == 0) {
    for (int i = 0; i < a.stages; ++i) {
      barrier_init(full + 8 * i, 128 + 32 + (plain_scales ? 128 : 0));
      barrier_init(empty + 8 * i, kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  allow_next_kernel();

  if (warp >= kWarps + 4) {  // x
    wait_for_previous_kernel();
    RingPlace place;
    const int granule = lane % 16;  // of 8 columns; two rows at a time
    const auto* x = a.x + granule * 8;
    for (int unit = unit_begin; unit < unit_end; unit += pass_units) {
      for (int step = 0; step < steps; ++step) {
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
    const int thread = threadIdx.x - kWarps * 32;
    const int row_of_16 = thread / 8, granule = thread % 8;
    const uint32_t swizzled =
        row_of_16 * 128 + ((granule / 2 ^ (row_of_16 & 3)) * 32) + granule % 2 * 16;
    const int groups = a.k / 32;
    for (int unit = unit_begin; unit < unit_end; unit += pass_units) {
      const int first_row = unit * kUnitRows;
      const int rows = min(min(pass_units, unit_end - unit) * kUnitRows, a.n - first_row);
      const uint8_t* source = a.codes + int64_t{first_row} * a.k;
      for (int step = 0; step < steps; ++step) {
        barrier_wait(empty + 8 * place.slot, place.parity ^ 1);
        const uint32_t target = ring + place.slot * layout.stage_bytes;
        const int step_column = step * split * 128;
#pragma unroll 8
        for (int tile = 0; tile < kWarps * kRowTiles; ++tile) {
          const int of_warp = tile / kRowTiles;
          const int row = (of_warp >> a.split_shift) * kUnitRows + tile % kRowTiles * 16 + row_of_16;
          const int column = step_column + (of_warp & (split - 1)) * 128 + granule * 16;
          if ((of_warp >> a.split_shift) + unit >= unit_end) break;
          const bool is_inside = row < rows && column < a.k;
          copy_16(target + tile * 2048 + swizzled,
                  is_inside ? source + int64_t{row} * a.k + column : a.codes, is_inside ? 16 : 0);
        }
        if constexpr (kGrouped) {
          // One row of 128 columns a thread and turn.
          const uint32_t scales_target = target + layout.scales_offset;
          for (int i = thread; i < kWarps * kUnitRows; i += 128) {
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
    const int g = lane / 4, t = lane % 4;
    const int part = warp & (split - 1);
    const uint32_t w_offset = warp * kWarpBytes + g * 128 + t * 8;
    const uint32_t x_offset = layout.x_offset + part * kRows * 256 + g * 256 + t * 16;
    float* sums = reinterpret_cast<float*>(shared + kW8SmallBarrierBytes +
                                           a.stages * layout.stage_bytes);
    for (int unit = unit_begin; unit < unit_end; unit += pass_units) {
      const int my_unit = unit + (warp >> a.split_shift);
      float sum[kRowTiles][kTiles][4] = {};
      for (int step = 0; step < steps; ++step) {
        barrier_wait(full + 8 * place.slot, place.parity);
        if (my_unit < unit_end) {
          const uint8_t* stage = shared + kW8SmallBarrierBytes + place.slot * layout.stage_bytes;
          float scales[kRowTiles][2][4];
          if constexpr (kGrouped) {
#pragma unroll
            for (int i = 0; i < kRowTiles * 2; ++i) {
              const int row = warp * kUnitRows + i * 8 + g;
              GroupScale::load(stage + layout.scales_offset + row * kScaleRow, scales[i / 2][i % 2]);
            }
          }
#pragma unroll
          for (int group = 0; group < 4; ++group) {
            uint32_t left[kRowTiles][2][4];
#pragma unroll
            for (int i = 0; i < kRowTiles * 2; ++i) {  // rows g, g + 8 of each tile
              const uint2 words = *reinterpret_cast<const uint2*>(
                  stage + w_offset + i * 1024 + ((group ^ (g & 3)) * 32));
              Decode::decode(words.x, left[i / 2][0][i % 2], left[i / 2][0][2 + i % 2]);
              Decode::decode(words.y, left[i / 2][1][i % 2], left[i / 2][1][2 + i % 2]);
            }
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
              const uint4 right = *reinterpret_cast<const uint4*>(stage + x_offset + tile * 2048 +
                                                                  ((group ^ (g & 1)) * 64));
#pragma unroll
              for (int i = 0; i < kRowTiles; ++i) {
                if constexpr (kGrouped) {
                  float products[4] = {};
                  multiply(products, left[i][0], right.x, right.y);
                  multiply(products, left[i][1], right.z, right.w);
#pragma unroll
                  for (int j = 0; j < 4; ++j) {
                    sum[i][tile][j] =
                        __fmaf_rn(products[j], scales[i][j / 2][group], sum[i][tile][j]);
                  }
                } else {
                  multiply(sum[i][tile], left[i][0], right.x, right.y);
                  multiply(sum[i][tile], left[i][1], right.z, right.w);
                }
              }
            }
          }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + 8 * place.slot);
        place.advance(a.stages);
      }
      if (split > 1) {
        // [warp][value][lane]
        constexpr int kValues = kRowTiles * kTiles * 4;
        float* mine = sums + warp * kValues * 32 + lane;
        if (part > 0) {
#pragma unroll
          for (int v = 0; v < kValues; ++v) mine[v * 32] = sum[v / (4 * kTiles)][v / 4 % kTiles][v % 4];
        }
        named_barrier(1, kWarps * 32);
        if (part == 0) {
          for (int other = 1; other < split; ++other) {
#pragma unroll
            for (int v = 0; v < kValues; ++v) {
              sum[v / (4 * kTiles)][v / 4 % kTiles][v % 4] += mine[(other * kValues + v) * 32];
            }
          }
        }
        named_barrier(1, kWarps * 32);
      }
      if (part > 0 || my_unit >= unit_end) continue;
#pragma unroll
      for (int i = 0; i < kRowTiles * 2; ++i) {
        const int row = my_unit * kUnitRows + i * 8 + g;
        if (row >= a.n) continue;
        float factor = 1;
        if (a.scale_of_row != nullptr) factor = a.scale_of_row[row];
        if (a.row_scales != nullptr) factor *= a.row_scales[row];
        const float bias = a.bias != nullptr ? a.bias[row] : 0;
#pragma unroll
        for (int v = 0; v < kTiles * 2; ++v) {
          const int token = v / 2 * 8 + t * 2 + v % 2;
          if (token >= a.m) continue;
          float value = sum[i / 2][v / 2][i % 2 * 2 + v % 2] * factor;
          if (a.x_scales != nullptr) value *= a.x_scales[token];
          value += bias;
          const int64_t index = token * a.y_stride + row;
          if (a.y_is_f32) {
            static_cast<float*>(a.y)[index] = value;
          } else {
            static_cast<__nv_bfloat16*>(a.y)[index] = __float2bfloat16_rn(value);
          }
        }
      }
    }
  }
}

template <class Decode, class GroupScale, int kRows>
void launch(const W8SmallArgs& args, const W8SmallConfig& config, CudaStream stream) {
  const auto function = kernel<Decode, GroupScale, kRows>;
  static const bool prepared = [&] {
    cuda_check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    kW8SmallMaxShared),
               "asking for shared memory");
    return true;
  }();
  (void)prepared;
  const int shared = W8SmallLayout(kRows, config.split, GroupScale::kBytes).bytes(config.stages);
  launch_dependent("a linear layer of few rows", function, dim3(static_cast<unsigned>(config.blocks)),
                   dim3((w8_small_warps(kRows) + kW8SmallProducers) * 32), shared, stream, 1, args);
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
void run_w8_small_bf16(const W8SmallArgs&, ElementType, const W8SmallConfig&, CudaStream);
void run_w8_small_e8m0(const W8SmallArgs&, ElementType, const W8SmallConfig&, CudaStream);

}  // namespace lathe
