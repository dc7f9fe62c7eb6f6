#include "kernels/rope/rope.h"

#include "base/error.h"
#include "kernels/features.h"

namespace lathe {
namespace {

constexpr Kernel<RopeArgs> kKernels[] = {
#if defined(__x86_64__)
    {"avx512", Device::kCpu, kAvx2 | kAvx512 | kAvx512Vnni | kAvx512Vbmi, rope_avx512},
    {"avx2", Device::kCpu, kAvx2, rope_avx2},
#endif
    {"ref", Device::kCpu, 0, rope_ref},
};

}  // namespace

std::span<const Kernel<RopeArgs>> rope_kernels() { return kKernels; }

void rope(const RopeArgs& args, Exec& exec) {
  RopeArgs checked = args;
  if (checked.x_stride == 0) checked.x_stride = args.num_heads * args.head_dim;
  if (checked.y_stride == 0) checked.y_stride = args.num_heads * args.head_dim;
  if (args.num_rows < 0 || args.num_heads < 1 || args.head_dim < 1 || args.rotary_dim < 0 ||
      args.rotary_dim % 2 != 0 || args.rotary_dim > args.head_dim ||
      checked.x_stride < args.num_heads * args.head_dim ||
      checked.y_stride < args.num_heads * args.head_dim) {
    fail(ErrorCode::kInvalidArgument, "rope: ", args.num_rows, " rows of ", args.num_heads, " x ",
         args.head_dim, ", rotary_dim ", args.rotary_dim, ", strides ", args.x_stride, " and ",
         args.y_stride);
  }
  for (int64_t row = 0; row < args.num_rows; ++row) {
    if (args.positions[row] < 0 || args.positions[row] >= args.num_positions) {
      fail(ErrorCode::kInvalidArgument, "rope: position ", args.positions[row],
           " is outside the table of ", args.num_positions, " positions");
    }
  }
  if (args.num_rows == 0) return;
  best_kernel(rope_kernels()).run(checked, exec);
}

}  // namespace lathe
