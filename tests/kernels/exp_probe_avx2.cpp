#include "kernels/exp_probe.h"
#include "kernels/simd/exp_simd.h"
#include "kernels/simd/simd_avx2.h"

namespace lathe {

void exp_probe_avx2(const float* x, float* y, int64_t num) {
  for (int64_t i = 0; i < num; i += Avx2::kWidth)
    Avx2::store(y + i, exp_of<Avx2>(Avx2::load(x + i)));
}

void tanh_probe_avx2(const float* x, float* y, int64_t num) {
  for (int64_t i = 0; i < num; i += Avx2::kWidth)
    Avx2::store(y + i, tanh_of<Avx2>(Avx2::load(x + i)));
}

}  // namespace lathe
