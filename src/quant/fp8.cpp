#include "quant/fp8.h"

#include <bit>
#include <cmath>
#include <limits>

namespace lathe {
namespace {

template <int kMantissaBits, int kBias>
float decode_finite(uint8_t byte) {
  const int magnitude = byte & 0x7f;
  const int mantissa = magnitude & ((1 << kMantissaBits) - 1);
  const int exponent = magnitude >> kMantissaBits;
  const float value = exponent == 0
                          ? std::ldexp(static_cast<float>(mantissa), 1 - kBias - kMantissaBits)
                          : std::ldexp(static_cast<float>(mantissa + (1 << kMantissaBits)),
                                       exponent - kBias - kMantissaBits);
  return (byte & 0x80) != 0 ? -value : value;
}

// `magnitude` is finite and at most the largest number of the format, so the result is finite.
template <int kMantissaBits, int kBias>
uint8_t encode_magnitude(double magnitude) {
  // Below the smallest normal number the grid is uniform; the rounded integer is the code, and
  // becomes the smallest normal number by itself when it rounds up to it.
  if (magnitude < std::ldexp(1.0, 1 - kBias)) {
    return static_cast<uint8_t>(std::nearbyint(std::ldexp(magnitude, kBias - 1 + kMantissaBits)));
  }
  // Round the 52 mantissa bits to kMantissaBits, half to even, letting the carry run into the
  // exponent; then move the exponent from bias 1023 to kBias.
  constexpr int kShift = 52 - kMantissaBits;
  auto bits = std::bit_cast<uint64_t>(magnitude);
  bits += ((uint64_t{1} << (kShift - 1)) - 1) + ((bits >> kShift) & 1);
  return static_cast<uint8_t>((bits >> kShift) - (uint64_t{1023 - kBias} << kMantissaBits));
}

}  // namespace

float e4m3_to_float(uint8_t byte) {
  if ((byte & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  return decode_finite<3, 7>(byte);
}

float e5m2_to_float(uint8_t byte) {
  if ((byte & 0x7f) > 0x7c) return std::numeric_limits<float>::quiet_NaN();
  if ((byte & 0x7f) == 0x7c) {
    const float infinity = std::numeric_limits<float>::infinity();
    return (byte & 0x80) != 0 ? -infinity : infinity;
  }
  return decode_finite<2, 15>(byte);
}

float e8m0_to_float(uint8_t byte) {
  if (byte == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::ldexp(1.0f, byte - 127);
}

uint8_t e4m3_from_double(double value) {
  if (std::isnan(value)) return 0x7f;
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
  return sign | encode_magnitude<3, 7>(std::fmin(std::fabs(value), kE4m3Max));
}

uint8_t e5m2_from_double(double value) {
  if (std::isnan(value)) return 0x7f;
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
  return sign | encode_magnitude<2, 15>(std::fmin(std::fabs(value), kE5m2Max));
}

int floor_log2(float value) { return std::ilogb(value); }

uint8_t e8m0_from_exponent(int exponent) {
  if (exponent < -127) exponent = -127;
  if (exponent > 127) exponent = 127;
  return static_cast<uint8_t>(exponent + 127);
}

}  // namespace lathe
