#include "kernels/rope/rope_simd.h"
#include "kernels/simd/simd_avx2.h"

namespace lathe {
void rope_avx2(const RopeArgs& args, Exec& exec) { rope_simd<Avx2>(args, exec); }
}  // namespace lathe
