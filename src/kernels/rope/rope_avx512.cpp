#include "kernels/rope/rope_simd.h"
#include "kernels/simd/simd_avx512.h"

namespace lathe {
void rope_avx512(const RopeArgs& args, Exec& exec) { rope_simd<Avx512>(args, exec); }
}  // namespace lathe
