#include "kernels/activation/gated_activation_simd.h"
#include "kernels/simd/simd_avx512.h"

namespace lathe {
void gated_activation_avx512(const GatedActivationArgs& args, Exec& exec) {
  gated_activation_simd<Avx512>(args, exec);
}
}  // namespace lathe
