#include "kernels/linear/linear_fp4_small_sm90.h"
#include "kernels/linear/small_split_sm90.h"

namespace lathe {

// linear_fp4_small_sm90() with a split x; a file of its own for the compiler's sake.
void run_split_linear(const Fp4Tiles& w, const SmallLinearArgs& args,
                      const SmallLinearConfig& config, CudaStream stream) {
  if (w.scale != ScaleType::kE8M0 || w.element != ElementType::kE2M1 || config.rows > kSplitRows) {
    fail(ErrorCode::kInvalidArgument, "a split x is for up to ", kSplitRows,
         " rows and MXFP4 weights, not for ", to_string(config));
  }
  if (config.rows == 8) {
    return small_linear::launch<SmallDecodeMxfp4ToE5m2, 8>(args, config, stream);
  }
  small_linear::launch<SmallDecodeMxfp4ToE5m2, 16>(args, config, stream);
}

}  // namespace lathe
