// The linear layer for many rows of x on Hopper: y^T = W x^T with 4-bit W as wgmma's left operand.
//
// A block of three warpgroups owns a tile of 128 outputs x kTokens tokens at a time and walks over
// K in stages of 128 bytes of x (128 columns of 8 bits, 64 of 16):
//   producer (one thread)   copies x by the copy engine with the 128-byte swizzle, and codes and
//                           scales, which are contiguous in their tiles, by bulk copies, into a ring
//                           of stages
//   consumers (2 x 128)     64 outputs each: codes to registers, decoded there while the products
//                           of the half stage before run, then two products per half stage
// A cluster of kCluster blocks shares the tokens: each copies its part of x to all of them, so x,
// the wider operand, is read from L2 once for 128 * kCluster outputs.
// The grid is persistent; a tile's result goes through shared memory (transposed by stmatrix) to
// the copy engine, which writes it while the next tile runs.
//
// Rows of x meet only in the copy: every element of y is a sum over K in one fixed order, whatever
// m is and wherever the row stands.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/linear/async_copy_sm90.h"
#include "kernels/linear/fp4_decode_sm90.h"

namespace lathe {

enum class Fp4OutputPath { kBf16Tiles, kBf16, kF32 };  // by the copy engine, or element by element

struct Fp4GemmParams {
  CUtensorMap x_map;  // [m, k], boxes of kTokens / kCluster rows
  CUtensorMap y_map;  // [m, n] bf16, boxes of 64 x 64 (kBf16Tiles only)
  const std::byte* codes;
  const std::byte* scales;
  const uint8_t* exponents;    // [64 ceil(n / 64)] or null
  const float* row_scales;     // [n] or null
  const float* bias;           // [n] or null
  const float* x_row_scales;   // [m] or null
  void* y;
  int64_t y_stride;
  int m, n;
  int num_panels;              // ceil(n / 64)
  int k_tiles;                 // k / 64
  int row_tiles, token_tiles;  // of 128 kCluster outputs, of kTokens tokens
  int group;                   // token tiles that are worked on together
  Fp4OutputPath path;
};

template <class Decode, int kTokensArg, int kClusterArg, int kStagesArg, int kPromoteArg>
struct Fp4GemmShape {
  static constexpr int kTokens = kTokensArg, kCluster = kClusterArg, kStages = kStagesArg;
  // Stages between additions to a second accumulator; 0: one accumulator.
  static constexpr int kPromote = kPromoteArg;
  static constexpr int kStageTiles = Decode::kColumns / 64;
  static constexpr int kXBytes = kTokens * 128;
  static constexpr int kPanelCodeBytes = kStageTiles * kTileCodeBytes;
  static constexpr int kPanelScaleBytes = kStageTiles * Decode::kTileScaleBytes;
  static constexpr int kStageBytes = kXBytes + 2 * (kPanelCodeBytes + kPanelScaleBytes);
  static constexpr int kOutputBytes = 2 * 2 * 8192;  // two buffers of 64 x 64 bf16 per warpgroup
  static constexpr int kXOffset = kOutputBytes;
  static constexpr int kCodeOffset = kXOffset + kStages * kXBytes;
  static constexpr int kScaleOffset = kCodeOffset + kStages * 2 * kPanelCodeBytes;
  static constexpr int kTokenScaleOffset = kScaleOffset + kStages * 2 * kPanelScaleBytes;
  static constexpr int kBarrierOffset = kTokenScaleOffset + kTokens * 4;
  static constexpr int kSharedBytes = kBarrierOffset + 2 * kStages * 8;
  static_assert(kSharedBytes <= 232448);
};

struct Fp4Tile {
  int row, token;
};

// Tokens run fastest within a group of token tiles: the blocks that run together share rows of W
// and tokens of x, which L2 then holds.
__device__ __forceinline__ Fp4Tile fp4_tile(const Fp4GemmParams& p, int index) {
  const int per_group = p.group * p.row_tiles;
  const int first = index / per_group * p.group;
  const int rest = index % per_group;
  const int tokens = min(p.group, p.token_tiles - first);
  return {rest / tokens, first + rest % tokens};
}

template <class Decode, class Shape>
__device__ __forceinline__ void fp4_produce(const Fp4GemmParams& p, std::byte* shared,
                                            uint32_t full, uint32_t empty) {
  const int rank = Shape::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int num_tiles = p.row_tiles * p.token_tiles;
  const int steps = (p.k_tiles + Shape::kStageTiles - 1) / Shape::kStageTiles;
  constexpr int kBox = Shape::kTokens / Shape::kCluster;
  const uint32_t base = shared_address(shared);
  int stage = 0;
  uint32_t phase = 0;
  for (int index = blockIdx.x / Shape::kCluster; index < num_tiles;
       index += gridDim.x / Shape::kCluster) {
    const Fp4Tile tile = fp4_tile(p, index);
    int64_t panel_tile[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Panels beyond the last one repeat it; nothing of them is stored.
      const int panel = min((tile.row * Shape::kCluster + rank) * 2 + i, p.num_panels - 1);
      panel_tile[i] = int64_t{panel} * p.k_tiles;
    }
    for (int step = 0; step < steps; ++step) {
      barrier_wait(empty + stage * 8, phase ^ 1);
      const uint32_t barrier = full + stage * 8;
      barrier_arrive_expect(barrier, Shape::kStageBytes);
      const uint32_t x = base + Shape::kXOffset + stage * Shape::kXBytes + rank * kBox * 128;
      const int column = step * Decode::kColumns;
      const int token = tile.token * Shape::kTokens + rank * kBox;
      if constexpr (Shape::kCluster > 1) {
        copy_tile_multicast(x, &p.x_map, column, token, barrier, (1 << Shape::kCluster) - 1);
      } else {
        copy_tile(x, &p.x_map, column, token, barrier);
      }
      const int k_tile = step * Shape::kStageTiles;
      const bool whole = k_tile + Shape::kStageTiles <= p.k_tiles;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t codes =
            base + Shape::kCodeOffset + (stage * 2 + i) * Shape::kPanelCodeBytes;
        const uint32_t scales =
            base + Shape::kScaleOffset + (stage * 2 + i) * Shape::kPanelScaleBytes;
        const std::byte* code_source = p.codes + (panel_tile[i] + k_tile) * kTileCodeBytes;
        const std::byte* scale_source =
            p.scales + (panel_tile[i] + k_tile) * Decode::kTileScaleBytes;
        if (whole) {
          copy_bulk(codes, code_source, Shape::kPanelCodeBytes, barrier);
          copy_bulk(scales, scale_source, Shape::kPanelScaleBytes, barrier);
        } else {
          // Columns beyond k: x is zero there, W any finite number, so the last tile once more.
#pragma unroll
          for (int j = 0; j < Shape::kStageTiles; ++j) {
            copy_bulk(codes + j * kTileCodeBytes, code_source, kTileCodeBytes, barrier);
            copy_bulk(scales + j * Decode::kTileScaleBytes, scale_source, Decode::kTileScaleBytes,
                      barrier);
          }
        }
      }
      if (++stage == Shape::kStages) stage = 0, phase ^= 1;
    }
  }
}

// Results of one warpgroup: 64 outputs x kTokens tokens, d as wgmma leaves it.
template <class Shape>
__device__ __forceinline__ void fp4_store(const Fp4GemmParams& p, float (&d)[Shape::kTokens / 2],
                                          const float (&factor)[2], const float (&bias)[2],
                                          int first_row, int first_token, int group,
                                          std::byte* shared) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int t = lane % 4;
  const float* token_scales =
      reinterpret_cast<const float*>(shared + Shape::kTokenScaleOffset) + 2 * t;
  const uint32_t buffers = shared_address(shared) + group * 2 * 8192;
  const int row = first_row + warp * 16 + lane / 4;
  constexpr int kChunks = Shape::kTokens / 64;
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int chunk_token = first_token + chunk * 64;
#pragma unroll
    for (int j = chunk * 8; j < chunk * 8 + 8; ++j) {
      const float2 scale = *reinterpret_cast<const float2*>(token_scales + 8 * j);
      d[4 * j] = fmaf(d[4 * j] * factor[0], scale.x, bias[0]);
      d[4 * j + 1] = fmaf(d[4 * j + 1] * factor[0], scale.y, bias[0]);
      d[4 * j + 2] = fmaf(d[4 * j + 2] * factor[1], scale.x, bias[1]);
      d[4 * j + 3] = fmaf(d[4 * j + 3] * factor[1], scale.y, bias[1]);
    }
    if (p.path == Fp4OutputPath::kBf16Tiles) {
      const uint32_t buffer = buffers + chunk % 2 * 8192;
      // The store before the last one read this buffer; the last one, where chunks are odd in number.
      if (thread == 0) store_wait_read<kChunks % 2 == 0 ? 1 : 0>();
      named_barrier(1 + group, 128);
#pragma unroll
      for (int j = chunk * 8; j < chunk * 8 + 8; j += 2) {
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const __nv_bfloat162 pair =
              __floats2bfloat162_rn(d[4 * (j + i / 2) + 2 * (i % 2)],
                                    d[4 * (j + i / 2) + 2 * (i % 2) + 1]);
          pairs[i] = *reinterpret_cast<const uint32_t*>(&pair);
        }
        // Matrix i: outputs 8 (i % 2), tokens 8 (j + i / 2); lane l gives the address of line l % 8,
        // a token, of matrix l / 8. 16-byte pieces of a line are swizzled as the map says.
        const int token = 8 * (j - chunk * 8) + lane / 16 * 8 + lane % 8;
        const int piece = (warp * 2 + lane / 8 % 2) ^ (lane % 8);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         buffer + token * 128 + piece * 16),
                     "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                     : "memory");
      }
      fence_async_proxy();
      named_barrier(1 + group, 128);
      if (thread == 0) {
        if (first_row < p.n && chunk_token < p.m) {
          store_tile(&p.y_map, first_row, chunk_token, buffer);
        }
        store_commit();
      }
    } else {
#pragma unroll
      for (int j = chunk * 8; j < chunk * 8 + 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = first_token + 8 * j + 2 * t + i % 2;
          const int n = row + i / 2 * 8;
          if (token >= p.m || n >= p.n) continue;
          const int64_t at = token * p.y_stride + n;
          if (p.path == Fp4OutputPath::kF32) {
            static_cast<float*>(p.y)[at] = d[4 * j + i];
          } else {
            static_cast<__nv_bfloat16*>(p.y)[at] = __float2bfloat16_rn(d[4 * j + i]);
          }
        }
      }
    }
  }
}

template <class Decode, class Shape>
__device__ __forceinline__ void fp4_consume(const Fp4GemmParams& p, std::byte* shared,
                                            uint32_t full, uint32_t empty) {
  using Product = Wgmma<Decode::kType, Shape::kTokens>;
  const int group = threadIdx.x / 128 - 1;  // 0 or 1
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int rank = Shape::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int num_tiles = p.row_tiles * p.token_tiles;
  const int steps = (p.k_tiles + Shape::kStageTiles - 1) / Shape::kStageTiles;
  const uint64_t x_descriptor = wgmma_descriptor(shared_address(shared) + Shape::kXOffset);
  float* const token_scales = reinterpret_cast<float*>(shared + Shape::kTokenScaleOffset);

  int stage = 0;
  uint32_t phase = 0;
  // One lane of each warp tells the producers of all blocks that write this stage.
  const auto release = [&](int released) {
    if constexpr (Shape::kCluster > 1) {
      if (lane < Shape::kCluster) barrier_arrive_cluster(empty + released * 8, lane);
    } else {
      if (lane == 0) barrier_arrive(empty + released * 8);
    }
  };
  const auto load = [&] {
    const int part = stage * 2 + group;
    return Decode::load(shared + Shape::kCodeOffset + part * Shape::kPanelCodeBytes,
                        shared + Shape::kScaleOffset + part * Shape::kPanelScaleBytes, thread);
  };

  for (int index = blockIdx.x / Shape::kCluster; index < num_tiles;
       index += gridDim.x / Shape::kCluster) {
    const Fp4Tile tile = fp4_tile(p, index);
    const int panel = (tile.row * Shape::kCluster + rank) * 2 + group;
    // Rows of the panel that stands in for one beyond the last.
    const int table_row = min(panel, p.num_panels - 1) * 64 + warp * 16 + lane / 4;
    const int first_token = tile.token * Shape::kTokens;
    const typename Decode::Row row = Decode::begin_row(p.exponents, table_row);

    float d[Shape::kTokens / 2];
    float sum[Shape::kPromote > 0 ? Shape::kTokens / 2 : 1];
    if constexpr (Shape::kPromote > 0) {
#pragma unroll
      for (int i = 0; i < Shape::kTokens / 2; ++i) sum[i] = 0;
    }
    int accumulate = 0;
    int previous = 0;
    barrier_wait(full + stage * 8, phase);
    typename Decode::Raw raw = load();
    for (int step = 0; step < steps; ++step) {
      const uint64_t x = x_descriptor + uint64_t(stage * (Shape::kXBytes / 16));
      uint32_t first[2][4], second[2][4];
      Decode::template decode<0>(raw, row, first);
      wgmma_fence(first);
      Product::run(d, first[0], x, accumulate);
      Product::run(d, first[1], x + 2, 1);
      wgmma_commit();
      accumulate = 1;
      wgmma_wait<1>();  // the second half of the stage before: its registers and the stage are free
      if (step > 0) release(previous);
      Decode::template decode<1>(raw, row, second);
      wgmma_fence(second);
      Product::run(d, second[0], x + 4, 1);
      Product::run(d, second[1], x + 6, 1);
      wgmma_commit();
      previous = stage;
      if (++stage == Shape::kStages) stage = 0, phase ^= 1;
      if (step + 1 < steps) {
        barrier_wait(full + stage * 8, phase);
        raw = load();
      }
      if constexpr (Shape::kPromote > 0) {
        if ((step + 1) % Shape::kPromote == 0) {
          wgmma_wait<0>();
#pragma unroll
          for (int i = 0; i < Shape::kTokens / 2; ++i) sum[i] += d[i];
          accumulate = 0;
        }
      }
      wgmma_wait<1>();  // the first half of this stage
    }
    wgmma_wait<0>();
    release(previous);
    if constexpr (Shape::kPromote > 0) {
      if (accumulate) {
#pragma unroll
        for (int i = 0; i < Shape::kTokens / 2; ++i) sum[i] += d[i];
      }
#pragma unroll
      for (int i = 0; i < Shape::kTokens / 2; ++i) d[i] = sum[i];
    }

    // Both warpgroups have read the scales of the tile before.
    named_barrier(3, 256);
    for (int i = threadIdx.x - 128; i < Shape::kTokens; i += 256) {
      const int token = first_token + i;
      token_scales[i] =
          p.x_row_scales == nullptr ? 1.0f : token < p.m ? p.x_row_scales[token] : 0.0f;
    }
    float factor[2], bias[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int output = panel * 64 + warp * 16 + lane / 4 + 8 * i;
      const bool inside = output < p.n;
      factor[i] = !inside ? 0.0f
                          : Decode::row_factor(p.exponents, output) *
                                (p.row_scales == nullptr ? 1.0f : p.row_scales[output]);
      bias[i] = inside && p.bias != nullptr ? p.bias[output] : 0.0f;
    }
    named_barrier(3, 256);
    fp4_store<Shape>(p, d, factor, bias, panel * 64, first_token, group, shared);
  }
  if (thread == 0) store_wait<0>();
}

template <class Decode, class Shape>
__global__ void __launch_bounds__(384, 1) fp4_gemm(const __grid_constant__ Fp4GemmParams p) {
  extern __shared__ __align__(1024) std::byte shared[];
  const uint32_t full = shared_address(shared + Shape::kBarrierOffset);
  const uint32_t empty = full + Shape::kStages * 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kStages; ++i) {
      barrier_init(full + i * 8, 1);
      barrier_init(empty + i * 8, Shape::kCluster * 8);  // eight consumer warps a block
    }
    barrier_init_fence();
  }
  if constexpr (Shape::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x == 0) fp4_produce<Decode, Shape>(p, shared, full, empty);
    __syncwarp();
  } else {
    take_registers<232>();
    fp4_consume<Decode, Shape>(p, shared, full, empty);
  }
  // No block leaves while another may still write to it or arrive at its barriers.
  if constexpr (Shape::kCluster > 1) cluster_sync();
}

}  // namespace lathe
