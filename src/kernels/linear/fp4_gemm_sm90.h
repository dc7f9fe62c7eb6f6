// The linear layer for many rows of x on Hopper: y^T = W x^T with 4-bit W as wgmma's left operand.
//
// A block owns a tile of 64 kPanels outputs x kTokens tokens at a time and walks over K in stages
// of 128 bytes of x (128 columns of 8 bits, 64 of 16):
//   producers (one thread each)   x, with the 128-byte swizzle; codes and scales
//   consumers, of 128 threads     64 outputs each: codes to registers, decoded there while the
//                                 products of the half stage before run, then two products
// With 256 tokens the tensor cores are the limit. With 128 every weight is decoded for half as many
// products, and the registers' and the integer units' time for it shows (about 1.4x a product's).
// With 64, for steps of 17 to 64 rows, memory should be the limit.
// kShare blocks of a cluster share the tokens: each copies its part of x to all of them, so x, the
// wider operand, is read from L2 once for 64 kPanels kShare outputs. kSplits blocks of a cluster
// share a tile: each sums over a part of K, then they exchange parts of the tile and add them in
// the order of K, so that few tiles still fill the chip. The grid is persistent (one tile a block
// with kSplits > 1); a tile's result goes through shared memory (transposed by stmatrix) to the
// copy engine, which writes it while the next tile runs.
//
// Rows of x meet only in the copy: every element of y is a sum over K in one order, whatever m is
// and wherever the row stands.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/linear/async_copy_sm90.h"
#include "kernels/linear/fp4_decode_sm90.h"

namespace lathe {

enum class Fp4OutputPath { kBf16Tiles, kBf16, kF32 };  // by the copy engine, or element by element

struct Fp4GemmParams {
  CUtensorMap x_map;          // [m, k], boxes of kTokens / kShare rows
  CUtensorMap code_map;       // [panels, k / 64, 2048], boxes of kPanels panels and a stage
  CUtensorMap scale_map;      // [panels, k / 64, bytes of a tile], the same
  CUtensorMap y_map;          // [m, n] bf16, boxes of kChunk x 64 (kBf16Tiles only)
  const uint8_t* exponents;   // [64 ceil(n / 64)] or null
  const float* row_scales;    // [n] or null
  const float* bias;          // [n] or null
  const float* x_row_scales;  // [m] or null
  void* y;
  int64_t y_stride;
  int m, n;
  int num_panels;              // ceil(n / 64)
  int steps;                   // stages along k
  int row_tiles, token_tiles;  // of 64 kPanels kShare outputs, of kTokens tokens
  int group;                   // token tiles that are worked on together
  int skew_ns;                 // how much later every other consumer starts
  Fp4OutputPath path;
};

template <class Decode, int kTokensArg, int kPanelsArg, int kShareArg, int kSplitsArg,
          int kStagesArg>
struct Fp4GemmShape {
  static constexpr int kTokens = kTokensArg, kPanels = kPanelsArg;
  static constexpr int kShare = kShareArg, kSplits = kSplitsArg, kStages = kStagesArg;
  static constexpr int kCluster = kShare * kSplits;
  static constexpr int kThreads = 128 * (1 + kPanels);
  // A block starts with 168 or 96 registers a thread; what producers give up, consumers get.
  static constexpr int kProducerRegisters = kPanels == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kPanels == 2 ? 232 : 112;
  static constexpr int kStageTiles = Decode::kColumns / 64;
  // Tokens that one of kSplits blocks finishes, and those whose results go through shared memory
  // at a time.
  static constexpr int kOwned = kTokens / kSplits;
  static constexpr int kChunk = kTokens == 256 ? 64 : kOwned < 32 ? kOwned : 32;
  static constexpr int kXBytes = kTokens * 128;
  static constexpr int kPanelCodeBytes = kStageTiles * kTileCodeBytes;
  static constexpr int kPanelScaleBytes = kStageTiles * Decode::kTileScaleBytes;
  static constexpr int kWeightBytes = kPanels * (kPanelCodeBytes + kPanelScaleBytes);
  static constexpr int kOutputBytes = kChunk * 128;   // of a panel
  static constexpr int kPartBytes = kOwned * 64 * 4;  // of a panel, from one other block

  static constexpr int kXOffset = 0;
  static constexpr int kOutputOffset = kXOffset + kStages * kXBytes;
  static constexpr int kCodeOffset = kOutputOffset + kPanels * kOutputBytes;
  static constexpr int kScaleOffset = kCodeOffset + kStages * kPanels * kPanelCodeBytes;
  static constexpr int kPartOffset = kScaleOffset + kStages * kPanels * kPanelScaleBytes;
  static constexpr int kTokenScaleOffset = kPartOffset + (kSplits - 1) * kPanels * kPartBytes;
  static constexpr int kBarrierOffset = kTokenScaleOffset + kPanels * kTokens * 4;
  static constexpr int kSharedBytes = kBarrierOffset + (2 * kStages + 1) * 8;
  static_assert(kSharedBytes <= 232448);
  static_assert(kPanels == 2 || kPanels == 4);
  // What is sent to other blocks lies in the stages of x, which are idle by then.
  static_assert((kSplits - 1) * kPanels * kPartBytes <= kStages * kXBytes);
};

// Named barriers; 0 is __syncthreads.
constexpr int kPanelBarrier = 1;     // of the consumer of a panel
constexpr int kConsumerBarrier = 5;  // of all consumers

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

// The barriers of the ring of stages: full[kStages], then empty[kStages], then one for what other
// blocks send at the end of a tile (kSplits > 1).
struct Fp4Barriers {
  uint32_t full, empty, received;
};

// Which part of the cluster's work is this block's.
template <class Shape>
struct Fp4Place {
  int share, split;
  int first_step, end_step;

  __device__ __forceinline__ explicit Fp4Place(const Fp4GemmParams& p) {
    const int rank = Shape::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
    share = Shape::kShare > 1 ? rank % Shape::kShare : 0;
    split = Shape::kSplits > 1 ? rank / Shape::kShare : 0;
    first_step = Shape::kSplits > 1 ? p.steps * split / Shape::kSplits : 0;
    end_step = Shape::kSplits > 1 ? p.steps * (split + 1) / Shape::kSplits : p.steps;
  }
};

// kWeights: codes and scales, else x.
template <class Decode, class Shape, bool kWeights>
__device__ __forceinline__ void fp4_produce(const Fp4GemmParams& p, uint32_t shared,
                                            const Fp4Barriers& barriers) {
  const Fp4Place<Shape> place(p);
  const int num_tiles = p.row_tiles * p.token_tiles;
  constexpr int kBox = Shape::kTokens / Shape::kShare;
  constexpr auto kBlocks = static_cast<uint16_t>((1 << Shape::kShare) - 1);
  const auto blocks = static_cast<uint16_t>(kBlocks << (place.split * Shape::kShare));
  if constexpr (!kWeights) wait_for_earlier_grids();
  uint32_t stage = 0, phase = 0;
  for (int index = blockIdx.x / Shape::kCluster; index < num_tiles;
       index += gridDim.x / Shape::kCluster) {
    const Fp4Tile tile = fp4_tile(p, index);
    const int panel = (tile.row * Shape::kShare + place.share) * Shape::kPanels;
    const int token = tile.token * Shape::kTokens + place.share * kBox;
    for (int step = place.first_step; step < place.end_step; ++step) {
      const uint32_t full = barriers.full + stage * 8;
      barrier_wait(barriers.empty + stage * 8, phase ^ 1);
      if constexpr (kWeights) {
        barrier_arrive_expect(full, Shape::kWeightBytes);
        copy_tile_3d(shared + Shape::kCodeOffset + stage * Shape::kPanels * Shape::kPanelCodeBytes,
                     &p.code_map, step * Shape::kStageTiles, panel, full);
        copy_tile_3d(
            shared + Shape::kScaleOffset + stage * Shape::kPanels * Shape::kPanelScaleBytes,
            &p.scale_map, step * Shape::kStageTiles, panel, full);
      } else {
        barrier_arrive_expect(full, Shape::kXBytes);
        const uint32_t x =
            shared + Shape::kXOffset + stage * Shape::kXBytes + place.share * kBox * 128;
        if constexpr (Shape::kShare > 1) {
          copy_tile_multicast(x, &p.x_map, step * Decode::kColumns, token, full, blocks);
        } else {
          copy_tile(x, &p.x_map, step * Decode::kColumns, token, full);
        }
      }
      if (++stage == Shape::kStages) stage = 0, phase ^= 1;
    }
  }
}

// The epilogue's factors of this thread's two outputs.
struct Fp4OutputFactors {
  float factor[2], bias[2];
};

// What other blocks have summed over their parts of K is added in the order of K: every block
// sends those tokens of d that it does not finish to the blocks that do.
template <class Shape>
__device__ __forceinline__ void fp4_exchange(float (&d)[Shape::kTokens / 2],
                                             const Fp4Place<Shape>& place, int panel,
                                             uint32_t shared, const Fp4Barriers& barriers) {
  constexpr int kColumns = Shape::kOwned / 8;  // of 8 tokens: four numbers a thread
  const int thread = threadIdx.x % 128;
  const uint32_t parts = shared + Shape::kPartOffset + panel * Shape::kPartBytes;
  const uint32_t staged = shared + Shape::kXOffset + panel * Shape::kPartBytes;
  constexpr int kSlotBytes = Shape::kPanels * Shape::kPartBytes;
  if (panel == 0 && thread == 0) {
    barrier_arrive_expect(barriers.received, (Shape::kSplits - 1) * kSlotBytes);
  }
  named_barrier(kConsumerBarrier, 128 * Shape::kPanels);  // nobody reads the stages any more
#pragma unroll
  for (int owner = 0; owner < Shape::kSplits; ++owner) {
    if (owner == place.split) continue;
    const int slot = owner < place.split ? owner : owner - 1;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int i = 4 * (owner * kColumns + j);
      store_shared(staged + slot * kSlotBytes + j * 2048 + thread * 16, d[i], d[i + 1], d[i + 2],
                   d[i + 3]);
    }
  }
  fence_async_proxy();
  named_barrier(kPanelBarrier + panel, 128);
  if (thread == 0) {
    for (int owner = 0; owner < Shape::kSplits; ++owner) {
      if (owner == place.split) continue;
      const int from = owner < place.split ? owner : owner - 1;
      const int to = place.split < owner ? place.split : place.split - 1;
      const uint32_t rank = owner * Shape::kShare + place.share;
      copy_to_cluster(cluster_address(parts + to * kSlotBytes, rank), staged + from * kSlotBytes,
                      Shape::kPartBytes, cluster_address(barriers.received, rank));
    }
  }
  barrier_wait(barriers.received, 0);
#pragma unroll
  for (int owner = 0; owner < Shape::kSplits; ++owner) {
    if (owner != place.split) continue;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int i = 4 * (owner * kColumns + j);
      float sum[4];
#pragma unroll
      for (int part = 0; part < Shape::kSplits; ++part) {
        float4 value = {d[i], d[i + 1], d[i + 2], d[i + 3]};
        if (part != owner) {
          const int slot = part < owner ? part : part - 1;
          const uint4 bits = load_shared_128(parts + slot * kSlotBytes + j * 2048 + thread * 16);
          value = {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                   __uint_as_float(bits.w)};
        }
        sum[0] = part == 0 ? value.x : sum[0] + value.x;
        sum[1] = part == 0 ? value.y : sum[1] + value.y;
        sum[2] = part == 0 ? value.z : sum[2] + value.z;
        sum[3] = part == 0 ? value.w : sum[3] + value.w;
      }
#pragma unroll
      for (int l = 0; l < 4; ++l) d[i + l] = sum[l];
    }
  }
}

// Results of one warpgroup: 64 outputs x kTokens tokens, d as wgmma leaves it.
template <class Shape>
__device__ __forceinline__ void fp4_store(const Fp4GemmParams& p, float (&d)[Shape::kTokens / 2],
                                          const Fp4OutputFactors& f, int split, int first_row,
                                          int first_token, int panel, uint32_t shared,
                                          uint32_t token_scales) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int t = lane % 4;
  const uint32_t buffer = shared + Shape::kOutputOffset + panel * Shape::kOutputBytes;
  const int row = first_row + warp * 16 + lane / 4;
#pragma unroll
  for (int chunk = 0; chunk < Shape::kTokens / Shape::kChunk; ++chunk) {
    if (Shape::kSplits > 1 && chunk / (Shape::kOwned / Shape::kChunk) != split) continue;
    constexpr int kColumns = Shape::kChunk / 8;
    const int chunk_token = first_token + chunk * Shape::kChunk;
#pragma unroll
    for (int j = chunk * kColumns; j < (chunk + 1) * kColumns; ++j) {
      const uint2 bits = load_shared_64(token_scales + (8 * j + 2 * t) * 4);
      const float2 scale = {__uint_as_float(bits.x), __uint_as_float(bits.y)};
      d[4 * j] = fmaf(d[4 * j] * f.factor[0], scale.x, f.bias[0]);
      d[4 * j + 1] = fmaf(d[4 * j + 1] * f.factor[0], scale.y, f.bias[0]);
      d[4 * j + 2] = fmaf(d[4 * j + 2] * f.factor[1], scale.x, f.bias[1]);
      d[4 * j + 3] = fmaf(d[4 * j + 3] * f.factor[1], scale.y, f.bias[1]);
    }
    if (p.path == Fp4OutputPath::kBf16Tiles) {
      if (thread == 0) store_wait_read<0>();  // the chunk before has left the buffer
      named_barrier(kPanelBarrier + panel, 128);
#pragma unroll
      for (int j = chunk * kColumns; j < (chunk + 1) * kColumns; j += 2) {
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const __nv_bfloat162 pair = __floats2bfloat162_rn(d[4 * (j + i / 2) + 2 * (i % 2)],
                                                            d[4 * (j + i / 2) + 2 * (i % 2) + 1]);
          pairs[i] = *reinterpret_cast<const uint32_t*>(&pair);
        }
        // Matrix i: outputs 8 (i % 2), tokens 8 (j + i / 2); lane l gives the address of line l %
        // 8, a token, of matrix l / 8. 16-byte pieces of a line are swizzled as the map says.
        const int token = 8 * (j - chunk * kColumns) + lane / 16 * 8 + lane % 8;
        const int piece = (warp * 2 + lane / 8 % 2) ^ (lane % 8);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         buffer + token * 128 + piece * 16),
                     "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                     : "memory");
      }
      fence_async_proxy();
      named_barrier(kPanelBarrier + panel, 128);
      if (thread == 0) {
        if (first_row < p.n && chunk_token < p.m) {
          store_tile(&p.y_map, first_row, chunk_token, buffer);
        }
        store_commit();
      }
    } else {
#pragma unroll
      for (int j = chunk * kColumns; j < (chunk + 1) * kColumns; ++j) {
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
  if (p.path != Fp4OutputPath::kBf16Tiles)
    named_barrier(kPanelBarrier + panel, 128);  // token_scales are read
}

template <class Decode, class Shape>
__device__ __forceinline__ void fp4_consume(const Fp4GemmParams& p, uint32_t shared,
                                            const Fp4Barriers& barriers) {
  using Product = Wgmma<Decode::kType, Shape::kTokens>;
  const Fp4Place<Shape> place(p);
  const int panel = threadIdx.x / 128 - 1;
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int num_tiles = p.row_tiles * p.token_tiles;
  constexpr int kStageCodeBytes = Shape::kPanels * Shape::kPanelCodeBytes;
  constexpr int kStageScaleBytes = Shape::kPanels * Shape::kPanelScaleBytes;
  const uint64_t x_descriptor = wgmma_descriptor(shared + Shape::kXOffset);
  const uint32_t codes = shared + Shape::kCodeOffset + panel * Shape::kPanelCodeBytes + thread * 16;
  const uint32_t scales = shared + Shape::kScaleOffset + panel * Shape::kPanelScaleBytes +
                          thread / 4 * Decode::kThreadScaleBytes;
  const uint32_t token_scales = shared + Shape::kTokenScaleOffset + panel * Shape::kTokens * 4;
  // One lane of each warp tells every block that writes to this block's stages that it is done.
  const uint32_t empty = Shape::kShare > 1
                             ? cluster_address(barriers.empty, place.split * Shape::kShare +
                                                                   min(lane, Shape::kShare - 1))
                             : barriers.empty;
  const auto release = [&](uint32_t stage) {
    if (lane < Shape::kShare) {
      if constexpr (Shape::kShare > 1) {
        barrier_arrive_cluster(empty + stage * 8);
      } else {
        barrier_arrive(empty + stage * 8);
      }
    }
  };
  wait_for_earlier_grids();
  if (panel % 2 == 1 && p.skew_ns > 0) __nanosleep(p.skew_ns);

  uint32_t stage = 0, phase = 0;
  for (int index = blockIdx.x / Shape::kCluster; index < num_tiles;
       index += gridDim.x / Shape::kCluster) {
    const Fp4Tile tile = fp4_tile(p, index);
    const int global_panel = (tile.row * Shape::kShare + place.share) * Shape::kPanels + panel;
    const int first_token = tile.token * Shape::kTokens;
    // Beyond the last panel codes are zero, and any row's table will do.
    const typename Decode::Row row = Decode::begin_row(
        p.exponents, min(global_panel, p.num_panels - 1) * 64 + warp * 16 + lane / 4);
    for (int i = thread; i < Shape::kTokens; i += 128) {
      const int token = first_token + i;
      const float scale = p.x_row_scales == nullptr ? 1.0f
                          : token < p.m             ? p.x_row_scales[token]
                                                    : 0.0f;
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(token_scales + i * 4), "f"(scale) : "memory");
    }
    Fp4OutputFactors factors;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int output = global_panel * 64 + warp * 16 + lane / 4 + 8 * i;
      const bool inside = output < p.n;
      factors.factor[i] = !inside ? 0.0f
                                  : Decode::row_factor(p.exponents, output) *
                                        (p.row_scales == nullptr ? 1.0f : p.row_scales[output]);
      factors.bias[i] = inside && p.bias != nullptr ? p.bias[output] : 0.0f;
    }

    float d[Shape::kTokens / 2];
    int steps = place.end_step - place.first_step;
    int accumulate = 0;
    uint32_t previous = 0;
    barrier_wait(barriers.full + stage * 8, phase);
    auto first_raw = Decode::template load<0>(codes + stage * kStageCodeBytes,
                                              scales + stage * kStageScaleBytes);
    auto second_raw = Decode::template load<1>(codes + stage * kStageCodeBytes,
                                               scales + stage * kStageScaleBytes);
    for (;;) {
      const uint64_t x = x_descriptor + uint64_t{stage * (Shape::kXBytes / 16)};
      uint32_t first[2][4], second[2][4];
      Decode::template decode<0>(first_raw, row, first);
      wgmma_fence(first);
      Product::run(d, first[0], x, accumulate);
      Product::run(d, first[1], x + 2, 1);
      wgmma_commit();
      wgmma_wait<1>();  // the second half of the stage before: its registers and stage are free
      if (accumulate) release(previous);
      accumulate = 1;
      --steps;
      previous = stage;
      if (++stage == Shape::kStages) stage = 0, phase ^= 1;
      const uint32_t next_codes = codes + stage * kStageCodeBytes;
      const uint32_t next_scales = scales + stage * kStageScaleBytes;
      if (steps > 0) {
        barrier_wait(barriers.full + stage * 8, phase);
        first_raw = Decode::template load<0>(next_codes, next_scales);
      }
      Decode::template decode<1>(second_raw, row, second);
      wgmma_fence(second);
      Product::run(d, second[0], x + 4, 1);
      Product::run(d, second[1], x + 6, 1);
      wgmma_commit();
      if (steps > 0) second_raw = Decode::template load<1>(next_codes, next_scales);
      wgmma_wait<1>();  // the first half of this stage
      if (steps == 0) break;
    }
    wgmma_wait<0>();
    release(previous);
    if constexpr (Shape::kSplits > 1) fp4_exchange<Shape>(d, place, panel, shared, barriers);
    named_barrier(kPanelBarrier + panel, 128);  // token_scales are written
    fp4_store<Shape>(p, d, factors, place.split, global_panel * 64, first_token, panel, shared,
                     token_scales);
  }
  if (thread == 0) store_wait<0>();
}

// With kSplits > 1 a cluster has one tile: gridDim.x = kCluster * tiles. p.steps is at least
// kSplits.
template <class Decode, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    fp4_gemm(const __grid_constant__ Fp4GemmParams p) {
  extern __shared__ __align__(1024) std::byte shared_bytes[];
  const uint32_t shared = shared_address(shared_bytes);
  Fp4Barriers barriers;
  barriers.full = shared + Shape::kBarrierOffset;
  barriers.empty = barriers.full + Shape::kStages * 8;
  barriers.received = barriers.empty + Shape::kStages * 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kStages; ++i) {
      barrier_init(barriers.full + i * 8, 2);  // two producers
      // The four warps of every consumer that reads the stage.
      barrier_init(barriers.empty + i * 8, Shape::kShare * Shape::kPanels * 4);
    }
    barrier_init(barriers.received, 1);
    barrier_init_fence();
  }
  if constexpr (Shape::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  // The next grid may start where blocks of this one have gone; it waits for our results itself.
  let_next_grid_start();
  if (threadIdx.x < 128) {
    give_registers<Shape::kProducerRegisters>();
    if (threadIdx.x == 0) fp4_produce<Decode, Shape, false>(p, shared, barriers);
    if (threadIdx.x == 32) fp4_produce<Decode, Shape, true>(p, shared, barriers);
    __syncwarp();
  } else {
    take_registers<Shape::kConsumerRegisters>();
    fp4_consume<Decode, Shape>(p, shared, barriers);
  }
  // No block leaves while another may still write to it or arrive at its barriers.
  if constexpr (Shape::kCluster > 1) cluster_sync();
}

}  // namespace lathe
