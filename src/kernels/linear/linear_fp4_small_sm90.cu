#include "kernels/linear/fp4_gemm_check.h"
#include "kernels/linear/linear_fp4_small_sm90.h"
#include "kernels/linear/small_linear_sm90.h"

namespace lathe {

void linear_fp4_small_sm90(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                           const SmallLinearConfig& config, CudaStream stream) {
  check_fp4_gemm(w, x, y, CudaElement::kBF16);
  if (x.m == 0) return;
  SmallLinearArgs args = {};
  args.codes = w.codes;
  args.scales = w.scales;
  args.row_scales = w.row_scales;
  args.bias = w.bias;
  args.x = static_cast<const __nv_bfloat16*>(x.data);
  args.x_scales = x.row_scales;
  args.y = y.data;
  args.y_stride = y.stride;
  args.n = w.n;
  args.k_tiles = static_cast<int>(w.k / kTileColumns);
  args.m = static_cast<int>(x.m);
  args.y_is_f32 = y.element == CudaElement::kF32;
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
