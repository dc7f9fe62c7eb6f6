#include "base/error.h"
#include "kernels/quantize_activations/quantize_row.cuh"
#include "quant/hadamard.h"

namespace lathe {
namespace {

template <typename T>
struct PlainSource {
  static constexpr int kManyRowsSlots = 2;
  static int many_whole_rows_slots(int64_t) { return 4; }
  struct Scratch {};
  template <int kSlots>
  struct Prefetched {};

  const T* x;
  int64_t stride;

  template <int kSlots>
  __device__ void prefetch(const RowPlace&, Prefetched<kSlots>&) const {}

  template <int kSlots>
  __device__ void load(const RowPlace& place, const Prefetched<kSlots>&, RowVectors<kSlots>& v,
                       Scratch&) const {
    const T* from = x + place.row * stride;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      if (place.has(slot)) {
        load_vector(from + place.column(slot), v.x[slot]);
      } else {
#pragma unroll
        for (int i = 0; i < kVectorCols; ++i) v.x[slot][i] = 0;
      }
    }
  }
};

// The columns that share a scale: the whole row for fp8, 0 for none.
int64_t group_cols(ActivationFormat format) {
  switch (format) {
    case ActivationFormat::kInt8:
    case ActivationFormat::kMxfp4:
    case ActivationFormat::kMxfp8:
      return 32;
    case ActivationFormat::kNvfp4:
      return 16;
    default:
      return 0;
  }
}

int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

}  // namespace

bool needs_whole_row(const QuantizedTarget& target) {
  return target.format == ActivationFormat::kFp8 || target.element == CudaElement::kE4M3 ||
         (target.format == ActivationFormat::kNvfp4 && target.global_scale == 0);
}

RowConfig choose_row_config(int64_t m, int64_t k, bool whole_row, const ManyRowsSlots& many) {
  constexpr int64_t kMultiprocessors = 132;
  const int64_t vectors = k / kVectorCols;
  const auto config = [&](int slots, int64_t segments) {
    const auto threads_for = [&] {
      return round_up(((vectors + segments - 1) / segments + slots - 1) / slots, 32);
    };
    while (threads_for() > max_row_threads(slots)) slots *= 2;
    return RowConfig{slots, static_cast<int>(threads_for()), static_cast<int>(segments),
                     whole_row && segments > 1};
  };
  if (!whole_row) {
    const int slots = m * vectors >= 2 * kMultiprocessors * 1024 ? many.of_segments : 1;
    return config(slots, (vectors + 128 * slots - 1) / (128 * slots));
  }
  // Clusters are for rows that 1024 threads hold only with several vectors each, while all of them
  // run at once.
  if (vectors > kMaxRowThreads && m <= kMultiprocessors / 4) return config(1, 8);
  if (vectors > kMaxRowThreads && m <= kMultiprocessors / 2) return config(1, 2);
  const bool is_many = m > kMultiprocessors || vectors > kMaxRowThreads;
  return config(is_many && vectors >= 256 ? many.of_rows : 1, 1);
}

void check_aligned(const void* pointer, const char* name) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) {
    fail(ErrorCode::kInvalidArgument, name, " is not aligned to 16 bytes");
  }
}

void check_target(const QuantizedTarget& target, int64_t m, int64_t k) {
  constexpr int64_t kMaxRows = int64_t{1} << 24;
  if (k < kVectorCols || k % kVectorCols != 0 || k > kMaxQuantizeCols || m < 0 || m > kMaxRows) {
    fail(ErrorCode::kInvalidArgument, "a row kernel for ", m, " rows of ", k,
         " columns: columns have to be a multiple of ", kVectorCols, ", at most ", kMaxQuantizeCols,
         ", rows at most ", kMaxRows);
  }
  check_hadamard(target.hadamard, k);
  const int64_t group = group_cols(target.format);
  if (group != 0 && k % group != 0) {
    fail(ErrorCode::kInvalidArgument, activation_format_name(target.format),
         " activations have groups of ", group, ", which does not divide ", k, " input features");
  }
  if (target.element == CudaElement::kE4M3) {
    if (target.format != ActivationFormat::kFp8 && target.format != ActivationFormat::kMxfp4) {
      fail(ErrorCode::kInvalidArgument, activation_format_name(target.format),
           " activations do not travel as E4M3 codes");
    }
    if (target.data != nullptr && target.row_scales == nullptr) {
      fail(ErrorCode::kInvalidArgument, "E4M3 codes without room for the factors of their rows");
    }
  }
  check_aligned(target.data, "the target of a row kernel");
}

void quantize_cuda(const QuantizeCudaArgs& args, CudaStream stream) {
  check_target(args.target, args.m, args.k);
  check_aligned(args.x, "x");
  if (args.element == CudaElement::kE4M3) {
    fail(ErrorCode::kInvalidArgument, "quantize_cuda() reads fp32 or bf16");
  }
  const int64_t stride = args.stride == 0 ? args.k : args.stride;
  if (stride < args.k || stride % kVectorCols != 0) {
    fail(ErrorCode::kInvalidArgument, "a row stride of ", stride, " for ", args.k, " columns");
  }
  if (args.m == 0 || args.target.data == nullptr) return;
  if (args.element == CudaElement::kF32) {
    const PlainSource<float> source = {static_cast<const float*>(args.x), stride};
    launch_rows(source, args.target, args.m, args.k, false, stream);
  } else {
    const PlainSource<__nv_bfloat16> source = {static_cast<const __nv_bfloat16*>(args.x), stride};
    launch_rows(source, args.target, args.m, args.k, false, stream);
  }
}

}  // namespace lathe
