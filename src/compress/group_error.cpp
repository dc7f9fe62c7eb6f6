#include "compress/group_error.h"

#include <cmath>

#include "kernels/features.h"
#include "quant/encode.h"

namespace lathe {

double group_error_ref(const WeightFormat& format, const GroupErrorArgs& args, double norm) {
  double total = 0;
  for (int64_t i = 0; i < args.n; ++i) {
    const double x = args.x[i];
    double decoded = 0;
    if (args.scale > 0) {
      const uint8_t code = encode_element(format, x / args.scale);
      decoded = double{element_value(format.element, code)} * args.scale;
    }
    const double distance = std::fabs(x - decoded);
    const double term = norm == 2 ? distance * distance : std::pow(distance, norm);
    total += args.weights != nullptr ? double{args.weights[i]} * term : term;
  }
  return total;
}

bool group_error_avx2_fits(const WeightFormat& format, int64_t n, double norm) {
  return norm == 2 && n % 8 == 0 && format.element != ElementType::kE4M3;
}

double group_error(const WeightFormat& format, const GroupErrorArgs& args, double norm) {
  static const bool has_avx2 = (cpu_features() & kAvx2) != 0;
  // A scale below the smallest normal float has an infinite reciprocal.
  if (has_avx2 && args.scale > 1e-37 && group_error_avx2_fits(format, args.n, norm)) {
    return group_error_avx2(format, args);
  }
  return group_error_ref(format, args, norm);
}

}  // namespace lathe
