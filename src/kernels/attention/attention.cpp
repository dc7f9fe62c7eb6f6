#include "kernels/attention/attention.h"

#include "base/error.h"
#include "kernels/attention/attention_partial.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/features.h"

namespace lathe {
namespace {

void attention_avx2(const AttentionArgs& args, Exec& exec) {
  run_attention_plan(args, attention_steps_avx2(), exec);
}

void attention_avx512(const AttentionArgs& args, Exec& exec) {
  run_attention_plan(args, attention_steps_avx512(), exec);
}

void attention_amx(const AttentionArgs& args, Exec& exec) {
  run_attention_plan(args, attention_steps_amx(), exec);
}

constexpr Kernel<AttentionArgs> kKernels[] = {
#if defined(__x86_64__)
    {"amx", Device::kCpu, kAmxFeatures, attention_amx},
    {"avx512", Device::kCpu, kAvx2 | kAvx512 | kAvx512Vnni | kAvx512Vbmi, attention_avx512},
    {"avx2", Device::kCpu, kAvx2, attention_avx2},
#endif
    {"ref", Device::kCpu, 0, attention_ref},
};

}  // namespace

std::span<const Kernel<AttentionArgs>> attention_kernels() { return kKernels; }

void attention(const AttentionArgs& args, Exec& exec) {
  AttentionArgs checked = args;
  if (checked.q_stride == 0) checked.q_stride = args.num_heads * args.head_dim;
  if (args.num_heads < 1 || args.num_kv_heads < 1 || args.num_heads % args.num_kv_heads != 0 ||
      args.head_dim < 2 || args.head_dim % 2 != 0 ||
      checked.q_stride < args.num_heads * args.head_dim || args.sliding_window < 0) {
    fail(ErrorCode::kInvalidArgument, "attention: ", args.num_heads, " heads on ",
         args.num_kv_heads, " KV heads of ", args.head_dim, " (an even number), q stride ",
         args.q_stride, ", window ", args.sliding_window);
  }
  for (const AttentionSegment& segment : args.segments) {
    if (segment.row_begin < 0 || segment.num_rows < 0 || segment.first_position < 0) {
      fail(ErrorCode::kInvalidArgument, "attention: segment of ", segment.num_rows,
           " rows from row ", segment.row_begin, " at position ", segment.first_position);
    }
    if (segment.sinks.keys != nullptr && !kv_keeps_sinks(args.element)) {
      fail(ErrorCode::kInvalidArgument, "attention: exact sinks of a format that keeps none");
    }
    const int64_t end = segment.first_position + segment.num_rows;
    if (args.key_offset.offset != nullptr && end > args.key_offset.num_blocks * kBlockSize) {
      fail(ErrorCode::kInvalidArgument, "attention: position ", end - 1, ", angles for ",
           args.key_offset.num_blocks * kBlockSize);
    }
  }
  const int64_t rotary_dim = args.key_offset.rotary_dim;
  if (args.key_offset.offset != nullptr &&
      (rotary_dim < 2 || rotary_dim % 2 != 0 || rotary_dim > args.head_dim)) {
    fail(ErrorCode::kInvalidArgument, "attention: keys without ", rotary_dim, " rotated of ",
         args.head_dim, " numbers");
  }
  check_kv_element(args.element, args.head_dim);
  // The fast versions read whole vectors of a head.
  const bool fits_vectors = args.head_dim % 8 == 0;
  (fits_vectors ? best_kernel(attention_kernels()) : attention_kernels().back()).run(checked, exec);
}

}  // namespace lathe
