#include "base/error.h"
#include "kernels/quantize_activations/quantize_row.cuh"
#include "quant/hadamard.h"

namespace lathe {
namespace {

template <typename T>
struct PlainSource {
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

// Few rows: as many threads as there are vectors, for the shortest way through. Many rows: several
// vectors in a thread, so that more loads are under way than a thread's fixed costs.
RowConfig choose_row_config(int64_t m, int64_t k, bool whole_row) {
  constexpr int64_t kManyRows = 264;  // two for each multiprocessor
  const int64_t vectors = k / kVectorCols;
  const auto config = [&](int slots, int64_t segments, bool is_cluster) {
    const int64_t in_segment = (vectors + segments - 1) / segments;
    return RowConfig{slots, static_cast<int>(round_up((in_segment + slots - 1) / slots, 32)),
                     static_cast<int>(segments), is_cluster && segments > 1};
  };
  if (!whole_row) {
    const int slots = m * vectors >= kManyRows * 1024 ? 2 : 1;
    return config(slots, (vectors + 128 * slots - 1) / (128 * slots), false);
  }
  int slots = m >= kManyRows && vectors >= 256 ? 2 : 1;
  while (round_up((vectors + slots - 1) / slots, 32) > max_row_threads(slots)) slots *= 2;
  return config(slots, 1, false);
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
