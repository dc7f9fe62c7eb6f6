// What attention on AVX-512 is made of, with AMX or without (attention_simd.h says what is missing:
// Matrix).
#pragma once
#include "kernels/attention/attention_codes_avx2.h"
#include "kernels/attention/attention_codes_avx512.h"
#include "kernels/attention/attention_simd.h"

namespace lathe {
namespace {

struct TraitsAvx512 {
  using Simd = Avx512;
  using Narrow = Avx2;
  static constexpr int kVectors = 4;  // 24 sums, four columns, a factor: 29 of 32 registers
  using Codes = CodesAvx512;
  using NarrowCodes = CodesAvx2;
  static constexpr int kPairRows = 8;
  static constexpr int kWideRows = 6;
};

}  // namespace
}  // namespace lathe
