// Layout and index functions: block_scaled_tiles.h. A ring of stages is filled by cp.async ahead of
// its use; a stage's slot is given away once all threads have passed the barrier behind its use.
#include <cuda_bf16.h>

#include <limits>

#include "kernels/attention/sm90_memory.cuh"
#include "kernels/linear/block_scaled_tiles.h"
#include "kernels/linear/linear_fp4_sm120.h"
#include "tensor/cuda_check.h"
#include "tensor/cuda_numbers.cuh"
#include "tensor/once_per_device.h"

namespace lathe {
namespace {

using namespace block_scaled;
// Instructions that compute capability 12.0 has, too.
using sm90::async_copy;
using sm90::load_four;
using sm90::load_matrices;

// 68 or 72 KiB of the 99 KiB that a block of sm_120 may have.
constexpr int kStages = 4;

struct OperandArgs {
  const std::byte* codes;
  const std::byte* scales;
  const float* row_scales;  // [rows] or null
  int64_t rows;
};
struct Args {
  OperandArgs operands[2];  // x, w
  const float* bias;        // [w.rows] or null
  void* y;                  // [x.rows, y_stride]
  int64_t y_stride;
  int64_t k;
};

constexpr int group_of(ScaleType scale) { return scale == ScaleType::kE8M0 ? 32 : 16; }

__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// d += (a * scales) (b * scales). kByte: where the scales begin in their 32 bits.
template <ScaleType kScale, int kByte>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1, uint32_t a_scales, uint32_t b_scales) {
  if constexpr (kScale == ScaleType::kE8M0) {
    asm volatile(
        "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32."
        "ue8m0 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {%12, 0}, "
        "{%11}, {%12, 0};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(a_scales),
          "r"(b_scales), "n"(kByte));
  } else {
    static_assert(kByte == 0);
    asm volatile(
        "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1."
        "f32.ue4m3 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {0, 0}, "
        "{%11}, {0, 0};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(a_scales),
          "r"(b_scales));
  }
}

// Begins the copies of one stage into its slot.
template <int kGroup>
__device__ __forceinline__ void copy_stage(const Args& a, const int64_t (&first_rows)[2],
                                           int64_t stage, uint32_t slot) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int operand = 0; operand < 2; ++operand) {
    const OperandArgs& from = a.operands[operand];
#pragma unroll
    for (int i = 0; i < kCodeCopies; ++i) {
      const Copy copy =
          code_copy(operand, thread, i, first_rows[operand], from.rows, a.k / 2, stage);
      async_copy(slot + copy.target, from.codes + (copy.is_inside ? copy.source : 0),
                 copy.is_inside ? 16 : 0);
    }
  }
  if (thread < scale_copies(kGroup)) {
    const int operand = scale_copy_operand(thread, kGroup);
    constexpr int kTileCodes = kScaleTileColumns * kGroup;
    const Copy copy = scale_copy(thread, kGroup, operand == 0 ? first_rows[0] : first_rows[1],
                                 (a.k + kTileCodes - 1) / kTileCodes, stage);
    const std::byte* scales = operand == 0 ? a.operands[0].scales : a.operands[1].scales;
    async_copy(slot + copy.target, scales + (copy.is_inside ? copy.source : 0),
               copy.is_inside ? 16 : 0);
  }
}

using Sums = float[kTilesOfA][kTilesOfB][4];

template <ScaleType kScale, int kStep>
__device__ __forceinline__ void multiply_step(Sums& sums, uint32_t slot, int warp, int lane) {
  constexpr int kGroup = group_of(kScale);
  constexpr int kTile = scale_tile_of_step(kStep, kGroup);
  uint32_t a_scales[4], b_scales[4], b[kTilesOfB / 2][4];
  load_four(a_scales, slot + a_scales_at(warp, lane, kTile, kGroup));
  load_four(b_scales, slot + b_scales_at(warp, lane, kTile, kGroup));
#pragma unroll
  for (int pair = 0; pair < kTilesOfB / 2; ++pair) {
    load_matrices(b[pair], slot + b_matrix_row_at(warp, lane, pair, kStep));
  }
#pragma unroll
  for (int i = 0; i < kTilesOfA; ++i) {
    uint32_t a[4];
    load_matrices(a, slot + a_matrix_row_at(warp, lane, i, kStep));
#pragma unroll
    for (int j = 0; j < kTilesOfB; ++j) {
      multiply<kScale, scale_byte_of_step(kStep, kGroup)>(
          sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], a_scales[i], b_scales[j]);
    }
  }
}

template <ScaleType kScale, typename Y>
__global__ void __launch_bounds__(kThreads) linear_kernel(const __grid_constant__ Args a) {
  constexpr int kGroup = group_of(kScale), kSlot = stage_bytes(kGroup);
  extern __shared__ __align__(16) std::byte shared[];
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first_rows[2] = {int64_t{blockIdx.x} * kBlockRows,
                                 int64_t{blockIdx.y} * kBlockRows};
  const int64_t stages = (a.k + kStageColumns - 1) / kStageColumns;

  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < stages) copy_stage<kGroup>(a, first_rows, stage, ring + stage * kSlot);
    copy_commit();  // empty groups keep the count
  }
  Sums sums = {};
  for (int64_t stage = 0; stage < stages; ++stage) {
    copy_wait<kStages - 2>();  // this thread's copies of the stage
    __syncthreads();           // everyone's; and nobody reads the stage before it any more
    const int64_t ahead = stage + kStages - 1;
    if (ahead < stages) {
      copy_stage<kGroup>(a, first_rows, ahead, ring + static_cast<int>(ahead % kStages) * kSlot);
    }
    copy_commit();
    const uint32_t slot = ring + static_cast<int>(stage % kStages) * kSlot;
    static_assert(kSteps == 2);
    multiply_step<kScale, 0>(sums, slot, warp, lane);
    multiply_step<kScale, 1>(sums, slot, warp, lane);
  }

#pragma unroll
  for (int i = 0; i < kTilesOfA; ++i) {
#pragma unroll
    for (int j = 0; j < kTilesOfB; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int64_t row = first_rows[0] + y_row(warp, lane, i, r);
        const int64_t column = first_rows[1] + y_column(warp, lane, j, r);
        if (row >= a.operands[0].rows || column >= a.operands[1].rows) continue;
        float value = sums[i][j][r];
        if (a.operands[0].row_scales != nullptr) value *= a.operands[0].row_scales[row];
        if (a.operands[1].row_scales != nullptr) value *= a.operands[1].row_scales[column];
        if (a.bias != nullptr) value += a.bias[column];
        store(static_cast<Y*>(a.y) + row * a.y_stride + column, value);
      }
    }
  }
}

void check_operand(const char* name, const BlockScaledFp4& matrix) {
  // Rows: what a grid may have along y. Columns: far beyond any model.
  constexpr int64_t kMaxRows = 65535 * int64_t{kBlockRows}, kMaxColumns = int64_t{1} << 24;
  const auto is_aligned = [](const void* pointer) {
    return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  if (matrix.scale != ScaleType::kE8M0 && matrix.scale != ScaleType::kE4M3) {
    fail(ErrorCode::kInvalidArgument, "linear_fp4_sm120: ", name,
         " has scales that are neither E8M0 (MXFP4) nor E4M3 (NVFP4)");
  }
  if (matrix.rows < 0 || matrix.rows > kMaxRows || matrix.k < kStepColumns ||
      matrix.k > kMaxColumns || matrix.k % kStepColumns != 0) {
    fail(ErrorCode::kInvalidArgument, "linear_fp4_sm120: ", name, " is ", matrix.rows, " x ",
         matrix.k, "; the columns must be a multiple of ", kStepColumns);
  }
  if (matrix.rows > 0 && (!is_aligned(matrix.codes) || !is_aligned(matrix.scales))) {
    fail(ErrorCode::kInvalidArgument, "linear_fp4_sm120: codes and scales of ", name,
         " must be 16-byte aligned");
  }
}

void check_device() {
  int device = 0, major = 0, minor = 0;
  cuda_check(cudaGetDevice(&device), "asking for the current GPU");
  cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
             "asking for the GPU's compute capability");
  cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
             "asking for the GPU's compute capability");
  if (major != 12 || minor != 0) {
    fail(ErrorCode::kUnsupported, "linear_fp4_sm120 is for compute capability 12.0; GPU ", device,
         " has ", major, ".", minor);
  }
}

template <ScaleType kScale, typename Y>
void launch(const Args& args, CudaStream stream) {
  constexpr int kBytes = kStages * stage_bytes(group_of(kScale));
  static OncePerDevice shared_memory;
  shared_memory([] {
    cuda_check(cudaFuncSetAttribute(linear_kernel<kScale, Y>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
               "shared memory of linear_fp4_sm120");
  });
  const auto blocks = [](int64_t rows) {
    return static_cast<unsigned>((rows + kBlockRows - 1) / kBlockRows);
  };
  linear_kernel<kScale, Y><<<dim3(blocks(args.operands[0].rows), blocks(args.operands[1].rows)),
                             kThreads, kBytes, stream>>>(args);
  cuda_check_launch("linear_fp4_sm120");
}

}  // namespace

void linear_fp4_sm120(const BlockScaledFp4& w, const float* bias, const BlockScaledFp4& x,
                      const CudaLinearOutput& y, CudaStream stream) {
  check_operand("w", w);
  check_operand("x", x);
  if (x.k != w.k || x.scale != w.scale) {
    fail(ErrorCode::kInvalidArgument, "linear_fp4_sm120: an input of ", x.k,
         " columns for a weight of ", w.k, ", or of the other format");
  }
  if ((y.element != CudaElement::kBF16 && y.element != CudaElement::kF32) || y.stride < w.rows) {
    fail(ErrorCode::kInvalidArgument, "linear_fp4_sm120: an output of ", w.rows,
         " columns with row stride ", y.stride, "; it must be bf16 or f32");
  }
  if (x.rows == 0 || w.rows == 0) return;
  if (y.data == nullptr) fail(ErrorCode::kInvalidArgument, "linear_fp4_sm120: no output");
  check_device();

  Args args = {};
  args.operands[0] = {x.codes, x.scales, x.row_scales, x.rows};
  args.operands[1] = {w.codes, w.scales, w.row_scales, w.rows};
  args.bias = bias;
  args.y = y.data;
  args.y_stride = y.stride;
  args.k = w.k;
  const bool is_f32 = y.element == CudaElement::kF32;
  if (w.scale == ScaleType::kE8M0) {
    is_f32 ? launch<ScaleType::kE8M0, float>(args, stream)
           : launch<ScaleType::kE8M0, __nv_bfloat16>(args, stream);
  } else {
    is_f32 ? launch<ScaleType::kE4M3, float>(args, stream)
           : launch<ScaleType::kE4M3, __nv_bfloat16>(args, stream);
  }
}

}  // namespace lathe
