// The vectorised functions of kernels/simd/exp_simd.h over arrays, from files built for one
// instruction set each. num is a multiple of 16.
#pragma once
#include <cstdint>

namespace lathe {
void exp_probe_avx2(const float* x, float* y, int64_t num);
void exp_probe_avx512(const float* x, float* y, int64_t num);
void tanh_probe_avx2(const float* x, float* y, int64_t num);
void tanh_probe_avx512(const float* x, float* y, int64_t num);
}  // namespace lathe
