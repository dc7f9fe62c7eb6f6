#include "kernels/quantize_activations/quantize_activations_kernels.h"
#include "kernels/quantize_activations/quantize_activations_simd.h"
#include "kernels/simd/simd_int_avx512.h"

namespace lathe {

void quantize_activations_avx512(const QuantizeActivationsArgs& args, Exec& exec) {
  run_quantize_activations<IntAvx512>(args, exec);
}

}  // namespace lathe
