#include "base/error.h"
#include "kernels/quantize_activations/quantize_row.cuh"

namespace lathe {
namespace {

// x / (1 + exp(-s)): silu with s = x, gelu_tanh with s = 2 sqrt(2 / pi) (x + 0.044715 x^3), since
// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)). bf16 inputs carry 8 bits, so the fast exponential and
// reciprocal (2 ulp each) do for them; where exp() overflows, the reciprocal is 0.
template <typename T>
__device__ float gate_of(float x, GateFunction function) {
  constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
  const float s =
      function == GateFunction::kSilu ? x : kTwoSqrt2OverPi * (x + 0.044715f * x * x * x);
  if constexpr (std::is_same_v<T, float>) {
    return __fdiv_rn(x, 1.0f + expf(-s));
  } else {
    constexpr float kLog2e = 1.4426950408889634f;
    float exponential, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exponential) : "f"(s * -kLog2e));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + exponential));
    return x * inverse;
  }
}

template <typename T>
struct GatedSource {
  static constexpr int kManyRowsSlots = 1;
  static int many_whole_rows_slots(int64_t) { return 4; }
  struct Scratch {};
  template <int kSlots>
  struct Prefetched {};

  const T* gate_up;
  int64_t stride;
  int64_t size;
  GateFunction function;

  template <int kSlots>
  __device__ void prefetch(const RowPlace&, Prefetched<kSlots>&) const {}

  template <int kSlots>
  __device__ void load(const RowPlace& place, const Prefetched<kSlots>&, RowVectors<kSlots>& v,
                       Scratch&) const {
    const T* gate = gate_up + place.row * stride;
    PackedVector<T> gates[kSlots] = {};
    PackedVector<T> ups[kSlots] = {};
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      if (!place.has(slot)) continue;
      gates[slot] = load_packed(gate + place.column(slot));
      ups[slot] = load_packed(gate + size + place.column(slot));
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      float up[kVectorCols];
      unpack(gates[slot], v.x[slot]);
      unpack(ups[slot], up);
#pragma unroll
      for (int i = 0; i < kVectorCols; ++i) {
        v.x[slot][i] = __fmul_rn(gate_of<T>(v.x[slot][i], function), up[i]);
      }
    }
  }
};

}  // namespace

void gated_quantize_cuda(const GatedQuantizeArgs& args, CudaStream stream) {
  check_target(args.target, args.m, args.size);
  check_aligned(args.gate_up, "gate_up");
  if (args.element == CudaElement::kE4M3) {
    fail(ErrorCode::kInvalidArgument, "gated_quantize_cuda() reads fp32 or bf16");
  }
  const int64_t stride = args.stride == 0 ? 2 * args.size : args.stride;
  if (stride < 2 * args.size || stride % kVectorCols != 0) {
    fail(ErrorCode::kInvalidArgument, "a row stride of ", stride, " for gate and up of ", args.size,
         " columns each");
  }
  if (args.m == 0 || args.target.data == nullptr) return;
  if (args.element == CudaElement::kF32) {
    const GatedSource<float> source = {static_cast<const float*>(args.gate_up), stride, args.size,
                                       args.function};
    launch_rows(source, args.target, args.m, args.size, false, stream);
  } else {
    const GatedSource<__nv_bfloat16> source = {static_cast<const __nv_bfloat16*>(args.gate_up),
                                               stride, args.size, args.function};
    launch_rows(source, args.target, args.m, args.size, false, stream);
  }
}

}  // namespace lathe
