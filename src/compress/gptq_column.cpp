#include "compress/gptq_column.h"

#include "kernels/features.h"
#include "quant/encode.h"

namespace lathe {

void round_column_ref(const WeightFormat& format, const RoundColumnArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    const uint8_t code =
        args.scale[i] > 0
            ? encode_element(format, double{args.target[i]} * args.global_scale / args.scale[i])
            : uint8_t{0};
    args.codes[i] = code;
    args.values[i] = element_value(format.element, code) * args.effective[i];
  }
}

void round_column(const WeightFormat& format, const RoundColumnArgs& args) {
  static const bool has_avx2 = (cpu_features() & kAvx2) != 0;
  const int64_t done = has_avx2 ? round_column_avx2(format, args) : 0;
  if (done == args.n) return;
  RoundColumnArgs rest = args;
  rest.target += done;
  rest.scale += done;
  rest.effective += done;
  rest.codes += done;
  rest.values += done;
  rest.n -= done;
  round_column_ref(format, rest);
}

void add_outer(float* t, const float* factor, const float* error, int64_t begin, int64_t end) {
  static const bool has_avx2 = (cpu_features() & kAvx2) != 0;
  if (has_avx2) {
    add_outer_avx2(t, factor, error, begin, end);
    return;
  }
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t i = 0; i < kSlab; ++i) t[j * kSlab + i] += factor[j] * error[i];
  }
}

}  // namespace lathe
