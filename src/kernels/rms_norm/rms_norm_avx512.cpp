#include "kernels/rms_norm/rms_norm_simd.h"
#include "kernels/simd/simd_avx512.h"

namespace lathe {
void rms_norm_avx512(const RmsNormArgs& args, Exec& exec) { rms_norm_simd<Avx512>(args, exec); }
}  // namespace lathe
