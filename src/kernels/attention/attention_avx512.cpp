#include "kernels/attention/attention_traits_avx512.h"

namespace lathe {
namespace {

struct Traits : TraitsAvx512 {
  using Matrix = NoMatrix;
};

}  // namespace

AttentionSteps attention_steps_avx512() { return {partial_simd<Traits>, merge_simd<Avx2>}; }

}  // namespace lathe
