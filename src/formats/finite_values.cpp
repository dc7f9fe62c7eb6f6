#include "formats/finite_values.h"

#include <algorithm>
#include <cstdint>

#include "base/error.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

// NaNs and infinities have all bits of the exponent: one more carries into the sign's place. In
// runs of a constant length, which the compiler turns into vector code.
template <typename Bits, Bits kExponent>
int64_t first_not_finite(const Bits* values, int64_t n) {
  constexpr int64_t kRun = 512;
  constexpr Bits kLowest = kExponent & -kExponent;
  constexpr Bits kSign = static_cast<Bits>(kExponent + kLowest);
  int64_t i = 0;
  for (; i + kRun <= n; i += kRun) {
    const Bits* run = values + i;
    Bits found = 0;
    for (int64_t j = 0; j < kRun; ++j) {
      found |= static_cast<Bits>((run[j] & kExponent) + kLowest);
    }
    if ((found & kSign) != 0) break;
  }
  while (i < n && (values[i] & kExponent) != kExponent) ++i;
  return i;
}

}  // namespace

void check_finite(const Tensor& tensor, const std::string& what) {
  const int64_t n = tensor.num_elements();
  int64_t found = n;
  float value = 0;
  switch (tensor.dtype()) {
    case DType::kF32:
      found = first_not_finite<uint32_t, 0x7f800000>(tensor.as<uint32_t>(), n);
      if (found < n) value = tensor.as<float>()[found];
      break;
    case DType::kBF16:
      found = first_not_finite<uint16_t, 0x7f80>(tensor.as<uint16_t>(), n);
      if (found < n) value = float_from_bf16(tensor.as<uint16_t>()[found]);
      break;
    case DType::kF16:
      found = first_not_finite<uint16_t, 0x7c00>(tensor.as<uint16_t>(), n);
      if (found < n) value = float_from_f16(tensor.as<uint16_t>()[found]);
      break;
    default:
      break;
  }
  if (found == n) return;
  fail(ErrorCode::kCorruptData, what, ": element ", found, " of ", to_string(tensor.shape()),
       " is ", value, " in ", dtype_name(tensor.dtype()),
       "; weights must be finite numbers: get the file again");
}

}  // namespace lathe
