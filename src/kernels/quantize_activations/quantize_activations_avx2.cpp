#include "kernels/quantize_activations/quantize_activations_kernel.h"
#include "kernels/quantize_activations/quantize_activations_kernels.h"
#include "kernels/simd_avx2.h"

namespace lathe {

void quantize_activations_avx2(const QuantizeActivationsArgs& args, Exec& exec) {
  run_quantize_activations<Avx2>(args, exec);
}

}  // namespace lathe
