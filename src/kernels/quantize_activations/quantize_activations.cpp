#include "kernels/quantize_activations/quantize_activations.h"

#include "base/error.h"
#include "kernels/features.h"
#include "kernels/quantize_activations/quantize_activations_kernels.h"
#include "quant/hadamard.h"

namespace lathe {
namespace {

constexpr Kernel<QuantizeActivationsArgs> kKernels[] = {
#if defined(__x86_64__)
    {"avx512", Device::kCpu, kAvx512 | kAvx512Vnni, quantize_activations_avx512},
    {"avx2", Device::kCpu, kAvx2, quantize_activations_avx2},
#endif
    {"ref", Device::kCpu, 0, quantize_activations_ref},
};

}  // namespace

int64_t activation_group(ActivationFormat format, int64_t int8_group) {
  switch (format) {
    case ActivationFormat::kInt8:
      return int8_group;
    case ActivationFormat::kMxfp4:
    case ActivationFormat::kMxfp8:
      return 32;
    case ActivationFormat::kNvfp4:
      return 16;
    case ActivationFormat::kNone:
    case ActivationFormat::kFp8:
      break;
  }
  return 0;
}

std::span<const Kernel<QuantizeActivationsArgs>> quantize_activations_kernels() { return kKernels; }

void quantize_activations(const QuantizeActivationsArgs& args, Exec& exec) {
  check_hadamard(args.hadamard, args.k);
  const int64_t group = activation_group(args.format, args.group);
  if (group != 0 && args.k % group != 0) {
    fail(ErrorCode::kInvalidArgument, activation_format_name(args.format),
         " activations have groups of ", group, ", which does not divide ", args.k,
         " input features");
  }
  if (args.m == 0) return;
  best_kernel(quantize_activations_kernels()).run(args, exec);
}

}  // namespace lathe
