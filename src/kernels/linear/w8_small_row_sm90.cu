#include "kernels/linear/w8_small_sm90.h"

namespace lathe {

void run_w8_small_row(const W8SmallArgs& args, ElementType element, const W8SmallConfig& config,
                      CudaStream stream) {
  using w8_small::NoScale;
  if (element == ElementType::kInt8) {
    run_w8_small<w8_small::DecodeInt8, NoScale>(args, config, stream);
  } else {
    run_w8_small<w8_small::DecodeE4m3, NoScale>(args, config, stream);
  }
}

}  // namespace lathe
