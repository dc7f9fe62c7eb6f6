// y = x W^T for up to 16 rows of x on Hopper: bound by reading W once.
//
// W is cut into tiles of 64 rows x 64 columns (fp4_tiles.h), of which a strip of 16 rows is what
// one warp multiplies at once with mma.m16n8k16. A block takes panels of one, two or four strips,
// its eight warps every eighth tile of them along k; at the end of a panel their sums are added in
// a fixed order.
//
// Every lane copies its own weights to shared memory, some tiles ahead of their use and across the
// ends of panels; nothing is shared within a panel, so no warp waits for another. As the weights
// are nobody's output, the first copies begin before the kernel in front has ended. x is small, and
// goes from the L1 or L2 cache to registers, some tiles ahead, too.
#pragma once
#include <cuda_bf16.h>

#include "base/error.h"
#include "kernels/linear/async_copy_sm90.h"
#include "kernels/linear/linear_cuda.h"
#include "kernels/linear/small_decode_sm90.h"
#include "kernels/linear/small_linear.h"
#include "tensor/cuda_launch.cuh"
#include "tensor/once_per_device.h"

namespace lathe {

struct SmallLinearArgs {
  const std::byte* codes;
  const std::byte* scales;
  const float* row_scales;  // [n] or null
  const float* bias;        // [n] or null
  const __nv_bfloat16* x;   // [m, 64 k_tiles]
  const float* x_scales;    // [m] or null
  void* y;                  // [m, y_stride], bf16 or fp32
  int64_t y_stride;
  int64_t n;
  int m;
  int k_tiles;
  int panels;  // of kStrips strips
  bool y_is_f32;
};

namespace small_linear {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

// One mma m16n8k16 of bf16 with fp32 sums.
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Bytes of a strip's tile in shared memory: every lane's share of codes, then of scales.
template <class Decode>
constexpr int strip_bytes() {
  return 32 * (16 + Decode::kScaleBytes / 32);
}
// Tiles of weights that a warp has under way, and tiles of x.
constexpr int weights_ahead(int strips) { return strips == 1 ? 8 : strips == 2 ? 4 : 2; }
constexpr int x_ahead(int token_tiles) { return token_tiles == 1 ? 4 : 2; }
template <class Decode, int kStrips>
constexpr int ring_bytes() {
  return kWarps * weights_ahead(kStrips) * kStrips * strip_bytes<Decode>();
}
// Floats between the sums of two rows of x; four more than there are spread them over the banks.
constexpr int sum_stride(int strips) { return 16 * strips + 4; }
constexpr int sum_bytes(int rows, int strips) { return kWarps * rows * sum_stride(strips) * 4; }

// The same value, which the compiler will then keep instead of computing it anew in every turn.
template <typename T>
__device__ __forceinline__ T kept(T value) {
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(value));
  }
  return value;
}

// The tiles of a warp in the order of their use, panel by panel, through a ring in shared memory.
// Each lane copies and reads its own bytes only.
template <class Decode, int kStrips>
class TileRing {
 public:
  __device__ __forceinline__ TileRing(const SmallLinearArgs& a, std::byte* shared)
      : a_(a), panel_(static_cast<int>(blockIdx.x)) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    codes_at_ = kept(shared_address(shared) + warp * kDepth * kSlot + lane * 16);
    scales_at_ = kept(shared_address(shared) + warp * kDepth * kSlot + 512 + lane * kLaneScales);
    codes_ = kept(a.codes + lane * 16);
    scales_ = kept(a.scales + lane / 4 * kLaneScales);
    begin_panel();
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      copy();
      next_slot();
    }
  }
  // Waits for the tile that is now to be used.
  __device__ __forceinline__ void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(kDepth - 1) : "memory");
  }
  __device__ __forceinline__ typename Decode::Raw load(int strip) const {
    return Decode::load(codes_at_ + slot_ + strip * strip_bytes<Decode>(),
                        scales_at_ + slot_ + strip * strip_bytes<Decode>());
  }
  // Gives the slot of that tile, which is in registers now, to the next one to be copied.
  __device__ __forceinline__ void advance() {
    copy();
    next_slot();
  }

 private:
  static constexpr int kDepth = weights_ahead(kStrips);
  static constexpr int kLaneScales = Decode::kScaleBytes / 32;
  static constexpr uint32_t kSlot = kStrips * strip_bytes<Decode>();

  __device__ __forceinline__ void next_slot() {
    slot_ = slot_ == (kDepth - 1) * kSlot ? 0 : slot_ + kSlot;
  }
  __device__ __forceinline__ void copy() {
    if (panel_ < a_.panels) {
      const std::byte* codes = codes_ + int64_t{strip_tile_} * (Decode::kCodeBytes / 4);
      const std::byte* scales = scales_ + int64_t{strip_tile_} * (Decode::kScaleBytes / 4);
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        copy_async_16(codes_at_ + slot_ + s * strip_bytes<Decode>(),
                      codes + s * (Decode::kCodeBytes / 4));
        copy_async<kLaneScales>(scales_at_ + slot_ + s * strip_bytes<Decode>(),
                                scales + s * (Decode::kScaleBytes / 4));
      }
      strip_tile_ += 4 * kWarps;
      if (strip_tile_ >= end_) {
        panel_ += static_cast<int>(gridDim.x);
        begin_panel();
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");  // empty ones keep the count
  }
  __device__ __forceinline__ void begin_panel() {
    const int strip = panel_ * kStrips, warp = threadIdx.x / 32;
    const int first = strip / 4 * a_.k_tiles;
    strip_tile_ = (first + warp) * 4 + strip % 4;
    end_ = (first + a_.k_tiles) * 4;
    if (strip_tile_ >= end_) panel_ = a_.panels;  // no tile for this warp
  }

  const SmallLinearArgs& a_;
  // The next to be copied: a tile is four strips high.
  int panel_, strip_tile_, end_;
  uint32_t slot_ = 0;  // of the tile now to be used or copied, in bytes
  uint32_t codes_at_, scales_at_;
  const std::byte* codes_;
  const std::byte* scales_;
};

// The right operands of a tile's four steps for eight rows of x. x_row: of this lane's row, at the
// tile's first column and x_lane_offset().
__device__ __forceinline__ int x_lane_offset(XOrder order, int t) {
  return order == XOrder::kHalfPairs ? 2 * t : 4 * t;
}
template <XOrder kOrder>
__device__ __forceinline__ void read_x(const __nv_bfloat16* x_row, uint32_t (&b)[4][2]) {
  if constexpr (kOrder == XOrder::kHalfPairs) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = *reinterpret_cast<const uint32_t*>(x_row + half * 32 + i * 8);
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        b[2 * half + step][0] = select_bytes(pairs[step], pairs[step + 2], 0x5410);
        b[2 * half + step][1] = select_bytes(pairs[step], pairs[step + 2], 0x7632);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 quad = *reinterpret_cast<const uint2*>(x_row + i * 16);
      b[i][0] = quad.x;
      b[i][1] = quad.y;
    }
  }
}

// y of output n and one row of x.
template <class Decode>
__device__ __forceinline__ void finish(const SmallLinearArgs& a, int64_t n, int row, float sum) {
  float y = sum * Decode::kOutputScale;
  if (a.row_scales != nullptr) y *= a.row_scales[n];
  if (a.x_scales != nullptr) y *= a.x_scales[row];
  if (a.bias != nullptr) y += a.bias[n];
  const int64_t index = row * a.y_stride + n;
  if (a.y_is_f32) {
    static_cast<float*>(a.y)[index] = y;
  } else {
    static_cast<__nv_bfloat16*>(a.y)[index] = __float2bfloat16_rn(y);
  }
}

template <class Decode, int kTokenTiles, int kStrips>
__global__ void __launch_bounds__(kThreads, kSmallLinearResidents)
    small_linear_kernel(const __grid_constant__ SmallLinearArgs a) {
  constexpr int kRows = 8 * kTokenTiles;  // of x
  constexpr int kAhead = x_ahead(kTokenTiles), kStride = sum_stride(kStrips);
  extern __shared__ std::byte shared[];
  auto* sums = reinterpret_cast<float*>(shared + ring_bytes<Decode, kStrips>());
  const int warp = kept(static_cast<int>(threadIdx.x / 32)), lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  TileRing<Decode, kStrips> ring(a, shared);
  allow_next_kernel();
  wait_for_previous_kernel();

  // Rows that there are not become columns of the product that nobody reads: any numbers will do.
  const __nv_bfloat16* x_rows[kTokenTiles];
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    const int64_t row = min(8 * i + g, a.m - 1);
    x_rows[i] = kept(a.x + row * a.k_tiles * 64 + x_lane_offset(Decode::kOrder, t));
  }
  uint32_t b[kAhead][kTokenTiles][4][2];
  const auto read_tile_x = [&](int tile, int slot) {
    if (tile >= a.k_tiles) return;
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      read_x<Decode::kOrder>(x_rows[i] + tile * 64, b[slot][i]);
    }
  };
#pragma unroll
  for (int u = 0; u < kAhead; ++u) read_tile_x(warp + u * kWarps, u);
  for (int panel = static_cast<int>(blockIdx.x); panel < a.panels;
       panel += static_cast<int>(gridDim.x)) {
    float sum[kTokenTiles][kStrips][4] = {};
#pragma unroll 1
    for (int first = warp; first < a.k_tiles; first += kAhead * kWarps) {
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int tile = first + u * kWarps;
        if (tile >= a.k_tiles) break;
        ring.wait();
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          const typename Decode::Raw raw = ring.load(s);
          if (s == kStrips - 1) ring.advance();
          const auto half = [&](auto which) {
            constexpr int kHalf = decltype(which)::value;
            uint32_t left[2][4];
            Decode::template decode<kHalf>(raw, left);
#pragma unroll
            for (int i = 0; i < kTokenTiles; ++i) {
              if constexpr (Decode::kScalesSums) {
                float part[4] = {};
                multiply(part, left[0], b[u][i][2 * kHalf]);
                multiply(part, left[1], b[u][i][2 * kHalf + 1]);
                const float2 scale = Decode::template row_scales<kHalf>(raw);
                sum[i][s][0] += part[0] * scale.x;
                sum[i][s][1] += part[1] * scale.x;
                sum[i][s][2] += part[2] * scale.y;
                sum[i][s][3] += part[3] * scale.y;
              } else {
                multiply(sum[i][s], left[0], b[u][i][2 * kHalf]);
                multiply(sum[i][s], left[1], b[u][i][2 * kHalf + 1]);
              }
            }
          };
          half(std::integral_constant<int, 0>{});
          half(std::integral_constant<int, 1>{});
        }
        // Behind the panel's last tile come the first ones again, for the next panel.
        const int next = tile + kAhead * kWarps;
        read_tile_x(next < a.k_tiles ? next : warp + u * kWarps, u);
      }
    }
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = 8 * i + 2 * t + j;
        if (row >= a.m) break;
        float* target = sums + (warp * kRows + row) * kStride + g;
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          target[16 * s] = sum[i][s][j];
          target[16 * s + 8] = sum[i][s][j + 2];
        }
      }
    }
    __syncthreads();
    const int64_t n = int64_t{panel} * (16 * kStrips);
    for (int item = threadIdx.x; item < a.m * 16 * kStrips; item += kThreads) {
      const int row = item / (16 * kStrips), output = item % (16 * kStrips);
      const float* part = sums + row * kStride + output;
      float total = part[0];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) total += part[w * kRows * kStride];
      if (n + output < a.n) finish<Decode>(a, n + output, row, total);
    }
    __syncthreads();
  }
}

template <class Decode, int kTokenTiles, int kStrips>
void launch(const SmallLinearArgs& args, const SmallLinearConfig& config, CudaStream stream) {
  constexpr int kShared = ring_bytes<Decode, kStrips>() + sum_bytes(8 * kTokenTiles, kStrips);
  static_assert(kSmallLinearResidents * (kShared + 1024) <= 228 * 1024);
  const auto kernel = small_linear_kernel<Decode, kTokenTiles, kStrips>;
  static OncePerDevice prepare;
  prepare([&] {
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
               "asking for shared memory");
  });
  launch_dependent("a linear layer of few rows", kernel, dim3(static_cast<unsigned>(config.blocks)),
                   dim3(kThreads), kShared, stream, 1, args);
}

}  // namespace small_linear

// Throws kInvalidArgument where the config does not fit the sizes.
template <class Decode>
void run_small_linear(SmallLinearArgs args, const SmallLinearConfig& config, CudaStream stream) {
  const int64_t rows = 16 * int64_t{config.strips};
  const bool is_one = (config.rows == 8 || config.rows == 16) &&
                      (config.strips == 1 || config.strips == 2 || config.strips == 4) &&
                      config.blocks >= 1;
  if (!is_one || args.m > config.rows) {
    fail(ErrorCode::kInvalidArgument, "linear layer of ", args.m, " rows: ", to_string(config));
  }
  args.panels = static_cast<int>((args.n + rows - 1) / rows);
  using small_linear::launch;
  const auto run = [&](auto token_tiles) {
    constexpr int kTokenTiles = decltype(token_tiles)::value;
    switch (config.strips) {
      case 1:
        return launch<Decode, kTokenTiles, 1>(args, config, stream);
      case 2:
        return launch<Decode, kTokenTiles, 2>(args, config, stream);
      default:
        return launch<Decode, kTokenTiles, 4>(args, config, stream);
    }
  };
  if (config.rows == 8) return run(std::integral_constant<int, 1>{});
  run(std::integral_constant<int, 2>{});
}

}  // namespace lathe
