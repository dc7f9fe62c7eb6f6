#include "kernels/rms_norm/rms_norm_simd.h"
#include "kernels/simd/simd_avx2.h"

namespace lathe {
void rms_norm_avx2(const RmsNormArgs& args, Exec& exec) { rms_norm_simd<Avx2>(args, exec); }
}  // namespace lathe
