#include "kernels/linear/w8_small_sm90.h"

namespace lathe {

void run_w8_small_bf16(const W8SmallArgs& args, const W8SmallConfig& config, CudaStream stream) {
  run_w8_small<w8_small::DecodeInt8, w8_small::ScaleBf16>(args, config, stream);
}

}  // namespace lathe
