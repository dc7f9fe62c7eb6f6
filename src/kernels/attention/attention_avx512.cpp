#include "kernels/attention/attention_codes_avx2.h"
#include "kernels/attention/attention_codes_avx512.h"
#include "kernels/attention/attention_simd.h"

namespace lathe {
namespace {

struct Traits {
  using Simd = Avx512;
  using Narrow = Avx2;
  using Matrix = NoMatrix;
  static constexpr int kVectors = 4;  // 24 sums, four columns, a factor: 29 of 32 registers
  using Codes = CodesAvx512;
  using NarrowCodes = CodesAvx2;
  static constexpr int kPairRows = 8;
  static constexpr int kWideRows = 6;
};

}  // namespace

AttentionSteps attention_steps_avx512() { return {partial_simd<Traits>, merge_simd<Avx2>}; }

}  // namespace lathe
