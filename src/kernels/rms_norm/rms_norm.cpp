#include "kernels/rms_norm/rms_norm.h"

#include "base/error.h"
#include "kernels/features.h"

namespace lathe {
namespace {

constexpr Kernel<RmsNormArgs> kKernels[] = {
#if defined(__x86_64__)
    {"avx512", Device::kCpu, kAvx2 | kAvx512 | kAvx512Vnni | kAvx512Vbmi, rms_norm_avx512},
    {"avx2", Device::kCpu, kAvx2, rms_norm_avx2},
#endif
    {"ref", Device::kCpu, 0, rms_norm_ref},
};

}  // namespace

std::span<const Kernel<RmsNormArgs>> rms_norm_kernels() { return kKernels; }

void rms_norm(const RmsNormArgs& args, Exec& exec) {
  RmsNormArgs checked = args;
  if (checked.x_stride == 0) checked.x_stride = args.num_heads * args.norm_size;
  if (checked.y_stride == 0) checked.y_stride = args.num_heads * args.norm_size;
  if (args.num_tokens < 0 || args.num_heads < 1 || args.norm_size < 1 ||
      checked.x_stride < args.num_heads * args.norm_size ||
      checked.y_stride < args.num_heads * args.norm_size || !(args.eps > 0)) {
    fail(ErrorCode::kInvalidArgument, "rms_norm: ", args.num_tokens, " tokens of ", args.num_heads,
         " x ", args.norm_size, ", strides ", args.x_stride, " and ", args.y_stride, ", eps ",
         args.eps);
  }
  if (args.num_tokens == 0) return;
  best_kernel(rms_norm_kernels()).run(checked, exec);
}

}  // namespace lathe
