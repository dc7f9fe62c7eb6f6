#include "kernels/kv_rows/kv_rows.h"

#include "base/check.h"
#include "kernels/features.h"

namespace lathe {
namespace {

// Every file for AVX-512 is built for all of these; pdep and pext come with AVX2 on every CPU.
constexpr uint32_t kNeedsAvx512 = kAvx2 | kAvx512 | kAvx512Vnni | kAvx512Vbmi;
constexpr uint32_t kNeedsAvx2 = kAvx2;

constexpr Kernel<MultiplyAddRowsArgs> kMultiplyAdd[] = {
#if defined(__x86_64__)
    {"avx512", Device::kCpu, kNeedsAvx512, multiply_add_rows_avx512},
    {"avx2", Device::kCpu, kNeedsAvx2, multiply_add_rows_avx2},
#endif
    {"ref", Device::kCpu, 0, multiply_add_rows_ref},
};
constexpr Kernel<KvRowsArgs> kEncode[] = {
#if defined(__x86_64__)
    {"avx512", Device::kCpu, kNeedsAvx512, encode_kv_rows_avx512},
    {"avx2", Device::kCpu, kNeedsAvx2, encode_kv_rows_avx2},
#endif
    {"ref", Device::kCpu, 0, encode_kv_rows_ref},
};
constexpr Kernel<KvRowsArgs> kDecode[] = {
#if defined(__x86_64__)
    {"avx512", Device::kCpu, kNeedsAvx512, decode_kv_rows_avx512},
    {"avx2", Device::kCpu, kNeedsAvx2, decode_kv_rows_avx2},
#endif
    {"ref", Device::kCpu, 0, decode_kv_rows_ref},
};

}  // namespace

std::span<const Kernel<MultiplyAddRowsArgs>> multiply_add_rows_kernels() { return kMultiplyAdd; }
std::span<const Kernel<KvRowsArgs>> encode_kv_rows_kernels() { return kEncode; }
std::span<const Kernel<KvRowsArgs>> decode_kv_rows_kernels() { return kDecode; }

void pack_multiply_add_weight(const float* w, int64_t n, int64_t k, int64_t stride, float* packed) {
  for (int64_t first = 0; first < n; first += kMultiplyAddPanel) {
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = first; j < first + kMultiplyAddPanel; ++j) {
        *packed++ = j < n ? w[j * stride + i] : 0;
      }
    }
  }
}

void multiply_add_rows(const MultiplyAddRowsArgs& args, Exec& exec) {
  LATHE_CHECK(args.x_stride >= args.k && args.y_stride >= args.n);
  if (args.num_rows == 0) return;
  best_kernel(multiply_add_rows_kernels()).run(args, exec);
}

void encode_kv_rows(const KvRowsArgs& args, Exec& exec) {
  LATHE_CHECK(args.code_stride >= row_bytes(args.format, args.shape));
  if (args.num_rows == 0) return;
  best_kernel(encode_kv_rows_kernels()).run(args, exec);
}

void decode_kv_rows(const KvRowsArgs& args, Exec& exec) {
  LATHE_CHECK(args.code_stride >= row_bytes(args.format, args.shape));
  if (args.num_rows == 0) return;
  best_kernel(decode_kv_rows_kernels()).run(args, exec);
}

}  // namespace lathe
