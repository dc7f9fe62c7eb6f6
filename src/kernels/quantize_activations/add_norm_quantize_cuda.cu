#include "base/error.h"
#include "kernels/quantize_activations/quantize_row.cuh"

namespace lathe {
namespace {

// hidden (+ branch) behind its norm. The gain is read ahead of the other kernels' results where the
// registers allow it.
struct HiddenSource {
  static constexpr int kManyRowsSlots = 2;
  static int many_whole_rows_slots(int64_t vectors) { return vectors <= kMaxRowThreads ? 1 : 2; }
  struct Scratch {
    RowScratch branch;
    RowScratch hidden;
  };
  template <int kSlots>
  struct Prefetched {
    static constexpr bool kHeld = kSlots <= 2;
    float gain[kHeld ? kSlots : 1][kVectorCols];
  };

  float* hidden;
  const float* branch_f32;  // at most one of the two
  const __nv_bfloat16* branch_bf16;
  const float* branch_gain;
  const float* gain;
  const int32_t* rows;
  float eps;
  int cols;

  template <int kSlots>
  __device__ void prefetch(const RowPlace& place, Prefetched<kSlots>& constants) const {
    if constexpr (Prefetched<kSlots>::kHeld) {
      if (gain == nullptr) return;
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        if (place.has(slot)) load_vector(gain + place.column(slot), constants.gain[slot]);
      }
    }
  }

  template <int kSlots>
  __device__ void load(const RowPlace& place, const Prefetched<kSlots>& constants,
                       RowVectors<kSlots>& v, Scratch& scratch) const {
    const int64_t row = rows == nullptr ? place.row : int64_t{rows[place.row]};
    float* from = hidden + row * cols;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
      for (int i = 0; i < kVectorCols; ++i) v.x[slot][i] = 0;
      if (place.has(slot)) load_vector(from + place.column(slot), v.x[slot]);
    }
    if (branch_f32 != nullptr) {
      add_branch(place, branch_f32 + row * cols, from, v, scratch.branch);
    } else if (branch_bf16 != nullptr) {
      add_branch(place, branch_bf16 + row * cols, from, v, scratch.branch);
    }
    if (gain == nullptr) return;
    const float scale = norm_scale(place, v, scratch.hidden);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      if (!place.has(slot)) continue;
      if constexpr (Prefetched<kSlots>::kHeld) {
        scale_vector(v.x[slot], scale, constants.gain[slot]);
      } else {
        float own_gain[kVectorCols];
        load_vector(gain + place.column(slot), own_gain);
        scale_vector(v.x[slot], scale, own_gain);
      }
    }
  }

 private:
  // 1 / sqrt(mean of x^2 + eps).
  template <int kSlots>
  __device__ float norm_scale(const RowPlace& place, const RowVectors<kSlots>& v,
                              RowScratch& scratch) const {
    const float mean_sq =
        __fdiv_rn(row_sum_of_squares(place, v, scratch), static_cast<float>(cols));
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean_sq, eps)));
  }

  __device__ static void scale_vector(float (&x)[kVectorCols], float scale,
                                      const float (&own_gain)[kVectorCols]) {
#pragma unroll
    for (int i = 0; i < kVectorCols; ++i) x[i] = __fmul_rn(__fmul_rn(x[i], scale), own_gain[i]);
  }

  template <int kSlots, typename T>
  __device__ void add_branch(const RowPlace& place, const T* branch, float* to,
                             RowVectors<kSlots>& v, RowScratch& scratch) const {
    RowVectors<kSlots> added;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
      for (int i = 0; i < kVectorCols; ++i) added.x[slot][i] = 0;
      if (place.has(slot)) load_vector(branch + place.column(slot), added.x[slot]);
    }
    if (branch_gain != nullptr) {
      const float scale = norm_scale(place, added, scratch);
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        if (!place.has(slot)) continue;
        float own_gain[kVectorCols];
        load_vector(branch_gain + place.column(slot), own_gain);
        scale_vector(added.x[slot], scale, own_gain);
      }
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
      for (int i = 0; i < kVectorCols; ++i) {
        v.x[slot][i] = __fadd_rn(v.x[slot][i], added.x[slot][i]);
      }
      if (place.has(slot)) store_vector(to + place.column(slot), v.x[slot]);
    }
  }
};

}  // namespace

void add_norm_quantize_cuda(const AddNormQuantizeArgs& args, CudaStream stream) {
  check_target(args.target, args.m, args.k);
  check_aligned(args.hidden, "hidden");
  check_aligned(args.branch, "branch");
  check_aligned(args.branch_gain, "branch_gain");
  check_aligned(args.gain, "gain");
  if (args.branch != nullptr && args.rows != nullptr) {
    fail(ErrorCode::kInvalidArgument, "add_norm_quantize_cuda() adds to all rows or reads some");
  }
  if (args.branch != nullptr && args.branch_element == CudaElement::kE4M3) {
    fail(ErrorCode::kInvalidArgument, "add_norm_quantize_cuda() adds fp32 or bf16");
  }
  if ((args.gain != nullptr || args.branch_gain != nullptr) && !(args.eps > 0)) {
    fail(ErrorCode::kInvalidArgument, "rms_norm with eps ", args.eps);
  }
  if (args.m == 0 || (args.branch == nullptr && args.target.data == nullptr)) return;
  const bool is_f32 = args.branch_element == CudaElement::kF32;
  const HiddenSource source = {
      .hidden = args.hidden,
      .branch_f32 = is_f32 ? static_cast<const float*>(args.branch) : nullptr,
      .branch_bf16 = is_f32 ? nullptr : static_cast<const __nv_bfloat16*>(args.branch),
      .branch_gain = args.branch_gain,
      .gain = args.gain,
      .rows = args.rows,
      .eps = args.eps,
      .cols = static_cast<int>(args.k)};
  const bool whole_row = args.gain != nullptr || args.branch_gain != nullptr;
  launch_rows(source, args.target, args.m, args.k, whole_row, stream);
}

}  // namespace lathe
