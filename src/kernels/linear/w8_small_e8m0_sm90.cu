#include "kernels/linear/w8_small_sm90.h"

namespace lathe {

void run_w8_small_e8m0(const W8SmallArgs& args, const W8SmallConfig& config, CudaStream stream) {
  run_w8_small<w8_small::DecodeE4m3, w8_small::ScaleE8m0>(args, config, stream);
}

}  // namespace lathe
