// Few rows of x by weights in E5M2: x as pairs of E4M3.
//
// Decoding weights to bf16 takes a multiprocessor about as long as reading them. To E5M2 it takes
// half of that, which leaves time to make up for what a panel's beginning and end cost. So x, which
// is bf16, becomes
//   x s = high + low / 16      s: a power of two with largest |x| s in [128, 256), row and block
// where high is x s rounded to E4M3, and low the rest: a bf16 has eight significant bits and E4M3
// four, so the pair is exact but for numbers below 2^-14 of the row's largest, whose error is at
// most 2^-22 of that. High and low are columns of the same product.
//
// Sums of E4M3 products keep 13 bits behind the point of the largest term (hopper.md); so those of
// a chunk of 256 columns are added up in fp32.
#pragma once
#include <cuda_fp8.h>

#include "kernels/linear/small_linear_sm90.h"

namespace lathe::small_linear {

// One wgmma m64nNk32, E5M2 by E4M3 with fp32 sums.
template <int N>
__device__ __forceinline__ void multiply_fp8(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b);
template <>
__device__ __forceinline__ void multiply_fp8<16>(float (&d)[8], const uint32_t (&a)[4],
                                                 uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k32.f32.e5m2.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, %12, 1, 1, 1;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
__device__ __forceinline__ void multiply_fp8<32>(float (&d)[16], const uint32_t (&a)[4],
                                                 uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k32.f32.e5m2.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19}, %20, 1, 1, 1;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The exponent p of s = 2^p, from the bits of the row's largest |x| as bf16 (finite).
__device__ __forceinline__ int split_exponent(uint32_t largest) {
  return min(134 - static_cast<int>(largest >> 7), 120);
}
__device__ __forceinline__ float power_of_two(int exponent) {  // -126..127
  return __int_as_float((exponent + 127) << 23);
}
// A row with an infinity or a NaN becomes NaN as a whole.
__device__ __forceinline__ float split_scale(uint32_t largest) {
  return largest >= 0x7F80u ? NAN : power_of_two(split_exponent(largest));
}
__device__ __forceinline__ float split_inverse(uint32_t largest) {
  return largest >= 0x7F80u ? 1 : power_of_two(-split_exponent(largest));
}

// Two numbers, times 1 and 16, to E4M3 pairs: bits 0..15 of `high` and `low`.
__device__ __forceinline__ void split_pair(uint32_t bf16_pair, float scale, uint32_t& high,
                                           uint32_t& low) {
  const float2 x = {__uint_as_float(bf16_pair << 16) * scale,
                    __uint_as_float(bf16_pair & 0xFFFF0000u) * scale};
  const __nv_fp8x2_storage_t rounded = __nv_cvt_float2_to_fp8x2(x, __NV_SATFINITE, __NV_E4M3);
  const float2 back = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(rounded, __NV_E4M3)));
  high = rounded;
  low = __nv_cvt_float2_to_fp8x2({(x.x - back.x) * 16, (x.y - back.y) * 16}, __NV_SATFINITE,
                                 __NV_E4M3);
}
// Eight bf16 to eight bytes each of high and low.
__device__ __forceinline__ void split_eight(uint4 x, float scale, uint2& high, uint2& low) {
  uint32_t h[4], l[4];
  split_pair(x.x, scale, h[0], l[0]);
  split_pair(x.y, scale, h[1], l[1]);
  split_pair(x.z, scale, h[2], l[2]);
  split_pair(x.w, scale, h[3], l[3]);
  high = {h[0] | h[1] << 16, h[2] | h[3] << 16};
  low = {l[0] | l[1] << 16, l[2] | l[3] << 16};
}

// x[:, 64 begin .. 64 end) to shared memory, by all consumers: pairs of tiles of
//   [high rows, then low rows][128 columns]
// with the 128-byte swizzle. Rows from m on and a tile behind the last, where their number is odd,
// are zeros. First as bf16, where the halves of 16 numbers lie as their high and low parts will,
// while each row's largest is found.
template <class Decode, int kRows>
__device__ __forceinline__ void stage_split_x(const SmallLinearArgs& a, TileRange range,
                                              const Block<Decode, kRows>& block) {
  const int tiles = range.end - range.begin;
  const int parts = (tiles + tiles % 2) * 4;  // of 16 columns, of a row
  const int64_t k = int64_t{a.k_tiles} * 64;
  const auto place = [&](int row, int part) {
    return block.x + part / 8 * (2 * x_tile_bytes(kRows)) + x_offset(row, part % 8);
  };
  if (threadIdx.x < kRows) block.x_largest[threadIdx.x] = 0;
  named_barrier(1, kConsumers);
  for (int item = threadIdx.x; item < parts * kRows; item += kConsumers) {
    const int part = item % parts, row = item / parts;
    uint4 first = {}, second = {};
    if (row < a.m && part < 4 * tiles) {
      const __nv_bfloat16* source = a.x + row * k + range.begin * 64 + part * 16;
      first = *reinterpret_cast<const uint4*>(source);
      second = *reinterpret_cast<const uint4*>(source + 8);
      const auto magnitudes = [](uint32_t pair) { return pair & 0x7FFF7FFFu; };
      uint32_t largest = __vmaxu2(__vmaxu2(magnitudes(first.x), magnitudes(first.y)),
                                  __vmaxu2(magnitudes(first.z), magnitudes(first.w)));
      largest = __vmaxu2(largest, __vmaxu2(__vmaxu2(magnitudes(second.x), magnitudes(second.y)),
                                           __vmaxu2(magnitudes(second.z), magnitudes(second.w))));
      atomicMax(&block.x_largest[row], max(largest & 0xFFFFu, largest >> 16));
    }
    *reinterpret_cast<uint4*>(place(row, part)) = first;
    *reinterpret_cast<uint4*>(place(kRows + row, part)) = second;
  }
  named_barrier(1, kConsumers);
  for (int item = threadIdx.x; item < parts * a.m; item += kConsumers) {
    const int part = item % parts, row = item / parts;
    const float scale = split_scale(block.x_largest[row]);
    auto* first = reinterpret_cast<uint4*>(place(row, part));
    auto* second = reinterpret_cast<uint4*>(place(kRows + row, part));
    uint2 high[2], low[2];
    split_eight(*first, scale, high[0], low[0]);
    split_eight(*second, scale, high[1], low[1]);
    *first = {high[0].x, high[0].y, high[1].x, high[1].y};
    *second = {low[0].x, low[0].y, low[1].x, low[1].y};
  }
}

template <class Decode, int kRows>
__device__ __forceinline__ void consume_split(const SmallLinearArgs& a,
                                              const Block<Decode, kRows>& block) {
  constexpr int kCodes = Decode::kCodeBytes, kScales = Decode::kScaleBytes;
  constexpr int kLow = kRows / 2;  // index of the sums of low parts
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
  const uint32_t x_address = shared_address(block.x);
  RingPlace chunk_place{group, 0}, buffer{0, 1};
  int turn = 0;  // the warpgroup that takes the first chunk of the panel
  for (int pass = 0; pass < a.passes; ++pass) {
    const TileRange range = tile_range(a, block.cluster(), block.rank, pass);
    const int tiles = range.end - range.begin;
    if (pass > 0) named_barrier(1, kConsumers);  // all products with the old x are done
    stage_split_x(a, range, block);
    fence_async_proxy();
    named_barrier(1, kConsumers);
    for (int panel = block.first_panel; panel < a.panels; panel += block.panel_step) {
      float sum[kRows];  // columns of high parts, then of low ones
#pragma unroll
      for (int i = 0; i < kRows; ++i) sum[i] = 0;
      for (int tile = ((group - turn) & (kGroups - 1)) * kChunkTiles; tile < tiles;
           tile += kGroups * kChunkTiles) {
        barrier_wait(block.full + chunk_place.index * 8, chunk_place.parity);
        const uint32_t codes = block.ring + chunk_place.index * Block<Decode, kRows>::kSlotBytes;
        const uint32_t scales = codes + kChunkTiles * kCodes;
        const bool whole = tile + 2 < tiles;
        float part[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          part[i] = 0;
          asm volatile("" : "+f"(part[i])::"memory");
        }
        uint32_t left[4][2][4];  // [tile][step of 32 columns]
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
          const uint64_t right =
              wgmma_descriptor(x_address + (tile / 2 + pair) * (2 * x_tile_bytes(kRows)));
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            auto& operand = left[2 * pair + u];
            Decode::decode(raw[u], operand);
            wgmma_fence(operand);
            multiply_fp8<2 * kRows>(part, operand[0], right + 4 * u);
            multiply_fp8<2 * kRows>(part, operand[1], right + 4 * u + 2);
            wgmma_commit();
          }
        }
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          asm volatile("" : "+f"(part[i])::"memory");
          sum[i] += part[i];
        }
        chunk_place.advance(kGroups, a.slots);
      }
      turn = (turn + (tiles + kChunkTiles - 1) / kChunkTiles) & (kGroups - 1);

      barrier_wait(block.group_empty + buffer.index * 8, buffer.parity);
      float* target = block.group_sums +
                      ((buffer.index * kGroups + group) * kRows + thread % 4 * 2) * kSumStride +
                      thread / 32 * 16 + lane / 4;
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
        if (8 * j >= a.m) break;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float inverse = split_inverse(block.x_largest[8 * j + thread % 4 * 2 + i % 2]);
          target[(8 * j + i % 2) * kSumStride + i / 2 * 8] =
              (sum[4 * j + i] + sum[kLow + 4 * j + i] * 0.0625f) * inverse;
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(block.group_full + buffer.index * 8);
      buffer.advance(1, Block<Decode, kRows>::kBuffers);
    }
  }
}

}  // namespace lathe::small_linear
