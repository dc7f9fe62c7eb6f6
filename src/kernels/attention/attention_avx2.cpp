#include "kernels/attention/attention_simd.h"
#include "kernels/simd/simd_avx2.h"

namespace lathe {
namespace {

struct Traits {
  using Simd = Avx2;
  using Narrow = Avx2;
  // 3 x 4 accumulators, four columns and a factor: 17 of 16 registers, of which the compiler takes
  // one from memory.
  static constexpr int kMaxRows = 3;
};

}  // namespace

AttentionSteps attention_steps_avx2() { return {partial_simd<Traits>, merge_simd<Avx2>}; }

}  // namespace lathe
