#include "kernels/exp_probe.h"
#include "kernels/simd/exp_simd.h"
#include "kernels/simd/simd_avx512.h"

namespace lathe {

void exp_probe_avx512(const float* x, float* y, int64_t num) {
  for (int64_t i = 0; i < num; i += Avx512::kWidth)
    Avx512::store(y + i, exp_of<Avx512>(Avx512::load(x + i)));
}

void tanh_probe_avx512(const float* x, float* y, int64_t num) {
  for (int64_t i = 0; i < num; i += Avx512::kWidth)
    Avx512::store(y + i, tanh_of<Avx512>(Avx512::load(x + i)));
}

}  // namespace lathe
