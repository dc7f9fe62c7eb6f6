#include "kernels/attention/attention_codes_avx2.h"
#include "kernels/attention/attention_simd.h"

namespace lathe {
namespace {

struct Traits {
  using Simd = Avx2;
  using Narrow = Avx2;
  using Matrix = NoMatrix;
  static constexpr int kVectors = 2;  // 12 sums, two columns, a factor: 15 of 16 registers
  using Codes = CodesAvx2;
  using NarrowCodes = CodesAvx2;
  static constexpr int kPairRows = 6;  // the same 15 of 16
  static constexpr int kWideRows = 2;  // 8 sums, four columns, a factor, a product
};

}  // namespace

AttentionSteps attention_steps_avx2() { return {partial_simd<Traits>, merge_simd<Avx2>}; }

}  // namespace lathe
