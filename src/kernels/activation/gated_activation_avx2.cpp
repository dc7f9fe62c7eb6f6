#include "kernels/activation/gated_activation_simd.h"
#include "kernels/simd/simd_avx2.h"

namespace lathe {
void gated_activation_avx2(const GatedActivationArgs& args, Exec& exec) {
  gated_activation_simd<Avx2>(args, exec);
}
}  // namespace lathe
