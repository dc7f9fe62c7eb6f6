#include <algorithm>

#include "compress/cuda_blas.h"
#include "compress/cuda_column_block.cuh"
#include "compress/cuda_coordinate_descent.h"
#include "compress/cuda_gptq.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

struct SweepArgs {
  const float* w;  // [rows, cols]
  float* d;        // [rows, cols], w - w^
  const float* g;  // [rows, kBlockColumns]: D H of the block's columns, D as before the block
  const float* h;  // [cols, cols]
  uint8_t* codes;  // packed
  unsigned long long* changed;
  CudaScales scales;
  int64_t rows;
  int64_t cols;
  int64_t groups;
  int64_t group_width;
  int64_t first;
  int width;
  double lowest;
  float added;
};

// The columns of one block, as gptq_block_kernel() goes through them.
template <ElementType kElement>
__global__ void __launch_bounds__(kColumnThreads) sweep_block_kernel(SweepArgs args) {
  constexpr bool kNibbles = kElement == ElementType::kE2M1 || kElement == ElementType::kInt4;
  extern __shared__ float factor[];
  load_block_factor(args.h, args.cols, args.first, args.width, factor);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t num_warps = int64_t{gridDim.x} * (kColumnThreads / 32);
  float curvature[kLaneColumns] = {};
  float inverse[kLaneColumns] = {};
#pragma unroll
  for (int q = 0; q < kLaneColumns; ++q) {
    if (32 * q + lane >= args.width) continue;
    const int64_t c = args.first + 32 * q + lane;
    curvature[q] = args.h[c * args.cols + c];
    inverse[q] = __frcp_rn(__fadd_rn(curvature[q], args.added));
  }
  unsigned changes = 0;
  for (int64_t row = int64_t{blockIdx.x} * (kColumnThreads / 32) + threadIdx.x / 32;
       row < args.rows; row += num_warps) {
    const int64_t base = row * args.cols + args.first + lane;
    float w[kLaneColumns] = {};
    float d[kLaneColumns] = {};
    float g[kLaneColumns] = {};
    double stored[kLaneColumns] = {};
    float effective[kLaneColumns] = {};
#pragma unroll
    for (int q = 0; q < kLaneColumns; ++q) {
      if (32 * q + lane >= args.width) continue;
      w[q] = args.w[base + 32 * q];
      d[q] = args.d[base + 32 * q];
      g[q] = args.g[row * kBlockColumns + 32 * q + lane];
      const int64_t group = (args.first + 32 * q + lane) / args.group_width;
      stored[q] = args.scales.stored(row * args.groups + group);
      effective[q] = static_cast<float>(stored[q] / args.scales.global_scale);
    }
    const auto code_of = [&](int q) {
      const float slope = __fsub_rn(g[q], __fmul_rn(d[q], curvature[q]));
      return round_target<kElement>(__fadd_rn(w[q], __fmul_rn(slope, inverse[q])), stored[q],
                                    args.scales.global_scale, args.lowest);
    };
    const auto error_of = [&](uint8_t code, int q) {
      return __fsub_rn(w[q], __fmul_rn(code_value<kElement>(code), effective[q]));
    };
#pragma unroll
    for (int q = 0; q < kLaneColumns; ++q) {
      const int steps = min(32, args.width - 32 * q);
      for (int l = 0; l < steps; ++l) {
        const float mine = __fsub_rn(error_of(code_of(q), q), d[q]);
        const float step = __shfl_sync(0xffffffffu, mine, l);
        const float* factor_row = factor + (32 * q + l) * kBlockColumns + lane;
#pragma unroll
        for (int p = q; p < kLaneColumns; ++p) {
          g[p] = __fmaf_rn(factor_row[32 * p], step, g[p]);
        }
      }
    }
#pragma unroll
    for (int q = 0; q < kLaneColumns; ++q) {
      const bool inside = 32 * q + lane < args.width;
      const uint8_t code = inside ? code_of(q) : 0;
      const int64_t at = base + 32 * q;
      if (kNibbles) {
        // The even lane has the low nibble of the byte, its neighbour the high one.
        const unsigned next = __shfl_down_sync(0xffffffffu, static_cast<unsigned>(code), 1);
        const uint8_t byte = static_cast<uint8_t>((code & 15) | (next & 15) << 4);
        if (inside && lane % 2 == 0) {
          const uint8_t before = args.codes[at / 2];
          changes += ((before ^ byte) & 15) != 0;
          changes += ((before ^ byte) >> 4) != 0;
          args.codes[at / 2] = byte;
        }
      } else if (inside) {
        changes += args.codes[at] != code;
        args.codes[at] = code;
      }
      if (inside) args.d[at] = error_of(code, q);
    }
  }
  changes = __reduce_add_sync(0xffffffffu, changes);
  if (lane == 0 && changes > 0) atomicAdd(args.changed, changes);
}

}  // namespace

int cuda_coordinate_descent(CudaQuantizedMatrix& matrix, const float* w, const float* h,
                            double added, int max_sweeps, CudaStream stream) {
  if (max_sweeps <= 0) return 0;
  const int64_t rows = matrix.rows;
  const int64_t cols = matrix.cols;
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  DeviceBuffer d(rows * cols * kFloat);
  DeviceBuffer g(rows * kBlockColumns * kFloat);
  DeviceBuffer changed(sizeof(unsigned long long));
  cuda_weight_error(matrix, w, d.as<float>(), stream);
  SweepArgs args = {.w = w,
                    .d = d.as<float>(),
                    .g = g.as<float>(),
                    .h = h,
                    .codes = matrix.codes.as<uint8_t>(),
                    .changed = changed.as<unsigned long long>(),
                    .scales = scales_of(matrix),
                    .rows = rows,
                    .cols = cols,
                    .groups = matrix.num_groups(),
                    .group_width = matrix.group_width(),
                    .first = 0,
                    .width = 0,
                    .lowest = lowest_integer(matrix.format),
                    .added = static_cast<float>(added)};
  constexpr int kRowsPerBlock = kColumnThreads / 32;
  const auto grid = static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
  int sweeps = 0;
  while (sweeps < max_sweeps) {
    cuda_check(cudaMemsetAsync(changed.data(), 0, sizeof(unsigned long long), stream),
               "clearing memory of the GPU");
    with_element(matrix.format.element, [&](auto element) {
      auto* kernel = sweep_block_kernel<decltype(element)::value>;
      cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(kFactorBytes)),
                 "preparing coordinate descent");
      for (int64_t first = 0; first < cols; first += kBlockColumns) {
        args.first = first;
        args.width = static_cast<int>(std::min<int64_t>(kBlockColumns, cols - first));
        cuda_gemm_a_b(rows, args.width, cols, d.as<float>(), cols, h + first, cols, 0.0f,
                      g.as<float>(), kBlockColumns, stream);
        kernel<<<grid, kColumnThreads, kFactorBytes, stream>>>(args);
        cuda_check_launch("coordinate descent");
      }
    });
    ++sweeps;
    unsigned long long total = 0;
    changed.to_host(&total, sizeof total, stream);
    if (static_cast<int64_t>(total) * 1000 < rows * cols) break;
  }
  return sweeps;
}

}  // namespace lathe
