#include "kernels/activation/gated_activation.h"

#include "base/error.h"
#include "kernels/features.h"

namespace lathe {
namespace {

constexpr Kernel<GatedActivationArgs> kKernels[] = {
#if defined(__x86_64__)
    {"avx512", Device::kCpu, kAvx2 | kAvx512 | kAvx512Vnni | kAvx512Vbmi, gated_activation_avx512},
    {"avx2", Device::kCpu, kAvx2, gated_activation_avx2},
#endif
    {"ref", Device::kCpu, 0, gated_activation_ref},
};

}  // namespace

std::span<const Kernel<GatedActivationArgs>> gated_activation_kernels() { return kKernels; }

void gated_activation(const GatedActivationArgs& args, Exec& exec) {
  GatedActivationArgs checked = args;
  if (checked.gate_stride == 0) checked.gate_stride = args.size;
  if (checked.up_stride == 0) checked.up_stride = args.size;
  if (checked.y_stride == 0) checked.y_stride = args.size;
  if (args.num_rows < 0 || args.size < 0 || checked.gate_stride < args.size ||
      checked.up_stride < args.size || checked.y_stride < args.size) {
    fail(ErrorCode::kInvalidArgument, "gated_activation: ", args.num_rows, " rows of ", args.size,
         ", strides ", args.gate_stride, ", ", args.up_stride, " and ", args.y_stride);
  }
  if (args.num_rows == 0 || args.size == 0) return;
  best_kernel(gated_activation_kernels()).run(checked, exec);
}

}  // namespace lathe
