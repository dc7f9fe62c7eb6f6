// The rows of quantize_activations_kernels(); nothing else names them.
#pragma once
#include "kernels/quantize_activations/quantize_activations.h"

namespace lathe {

void quantize_activations_ref(const QuantizeActivationsArgs& args, Exec& exec);
void quantize_activations_avx512(const QuantizeActivationsArgs& args, Exec& exec);
void quantize_activations_avx2(const QuantizeActivationsArgs& args, Exec& exec);

}  // namespace lathe
