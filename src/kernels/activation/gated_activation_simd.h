#pragma once
#include "kernels/activation/gated_activation.h"
#include "kernels/simd/exp_simd.h"

namespace lathe {
namespace {

template <typename S, GateFunction function>
inline typename S::F gated(typename S::F gate, typename S::F up) {
  return S::mul(function == GateFunction::kSilu ? silu_of<S>(gate) : gelu_tanh_of<S>(gate), up);
}

template <typename S, GateFunction function>
inline void gate_row(const float* gate, const float* up, float* y, int64_t size) {
  int64_t j = 0;
  for (; j + S::kWidth <= size; j += S::kWidth) {
    S::store(y + j, gated<S, function>(S::load(gate + j), S::load(up + j)));
  }
  if (j < size) {
    const int64_t rest = size - j;
    S::store_first(y + j,
                   gated<S, function>(S::load_first(gate + j, rest), S::load_first(up + j, rest)),
                   rest);
  }
}

// Pieces of a row too, so that a single wide row is shared by the threads.
template <typename S>
inline void gated_activation_simd(const GatedActivationArgs& a, Exec& exec) {
  constexpr int64_t kPiece = 4096;  // floats: two microseconds at a vector of exp per 10 cycles
  const int64_t pieces = (a.size + kPiece - 1) / kPiece;
  const int64_t grain = 1 + kPiece / a.size;
  exec.threads.parallel_for(a.num_rows * pieces, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / pieces;
      const int64_t first = i % pieces * kPiece;
      const int64_t size = a.size - first < kPiece ? a.size - first : kPiece;
      const float* gate = a.gate + row * a.gate_stride + first;
      const float* up = a.up + row * a.up_stride + first;
      float* y = a.y + row * a.y_stride + first;
      if (a.function == GateFunction::kSilu) {
        gate_row<S, GateFunction::kSilu>(gate, up, y, size);
      } else {
        gate_row<S, GateFunction::kGeluTanh>(gate, up, y, size);
      }
    }
  });
}

}  // namespace
}  // namespace lathe
