#include "kernels/attention/attention_simd.h"
#include "kernels/simd/simd_avx2.h"
#include "kernels/simd/simd_avx512.h"

namespace lathe {
namespace {

struct Traits {
  using Simd = Avx512;
  using Narrow = Avx2;
  static constexpr int kVectors = 4;  // 24 sums, four columns, a factor: 29 of 32 registers
};

}  // namespace

AttentionSteps attention_steps_avx512() { return {partial_simd<Traits>, merge_simd<Avx2>}; }

}  // namespace lathe
