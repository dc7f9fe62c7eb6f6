#include "kernels/linear/fp4_gemm_check.h"
#include "kernels/linear/linear_fp4_small_sm90.h"
#include "kernels/linear/small_linear_sm90.h"

namespace lathe {

SmallLinearConfig choose_fp4_small_config(int64_t m, int64_t n, int64_t k, int num_sms) {
  return choose_small_linear_config(m, n, k, kTileCodeBytes + 256, num_sms);
}

void linear_fp4_small_sm90(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                           const SmallLinearConfig& config, bool split, std::byte* workspace,
                           CudaStream stream) {
  check_fp4_gemm(w, x, y, CudaElement::kBF16);
  if (x.m == 0) return;
  const SmallLinearArgs args =
      small_linear_args(w.codes, w.scales, w.row_scales, w.bias, w.n, w.k, x, y, config, workspace);
  if (split) return run_split_linear(w, args, config, stream);
  switch (w.scale) {
    case ScaleType::kE8M0:
      return run_small_linear<SmallDecodeMxfp4>(args, config, stream);
    case ScaleType::kE4M3:
      return run_small_linear<SmallDecodeNvfp4>(args, config, stream);
    case ScaleType::kBF16:
      return run_small_linear<SmallDecodeInt4>(args, config, stream);
    default:
      fail(ErrorCode::kInvalidArgument, "4-bit tiles with a scale type that they do not have");
  }
}

}  // namespace lathe
