#include "kernels/attention/attention_simd.h"
#include "kernels/simd/simd_avx2.h"

namespace lathe {
namespace {

struct Traits {
  using Simd = Avx2;
  using Narrow = Avx2;
  static constexpr int kVectors = 2;  // 12 sums, two columns, a factor: 15 of 16 registers
};

}  // namespace

AttentionSteps attention_steps_avx2() { return {partial_simd<Traits>, merge_simd<Avx2>}; }

}  // namespace lathe
