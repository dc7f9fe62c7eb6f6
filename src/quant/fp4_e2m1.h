// E2M1, the four-bit float: sign, two exponent bits (bias 1), one mantissa bit; no infinity, no
// NaN. Code 8 is -0.   Source: OCP Microscaling Formats v1.0, 5.3.3; spec/mr-gptq.md 1.1, 1.2.
#pragma once
#include <cmath>
#include <cstdint>

namespace lathe {

inline constexpr float kE2m1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                          -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
inline constexpr double kE2m1Max = 6;

// The low four bits of `code`.
inline float e2m1_to_float(uint8_t code) { return kE2m1Values[code & 15]; }

// Nearest, ties to the code whose mantissa bit is 0, saturating: what cvt.rn.satfinite.e2m1x2 does.
// The sign of the input is kept, so a small negative number becomes code 8. NaN becomes code 7, as
// the conversion instruction has it; callers that must reject it check before.
inline uint8_t e2m1_from_double(double r) {
  const double a = std::fabs(r);
  if (std::isnan(r)) return 7;
  // Seven midpoints; at .25, 1.25, 2.5 and 5 the lower neighbour is the even one.
  const int code =
      (a > 0.25) + (a >= 0.75) + (a > 1.25) + (a >= 1.75) + (a > 2.5) + (a >= 3.5) + (a > 5.0);
  return static_cast<uint8_t>(code | (std::signbit(r) ? 8 : 0));
}

// Two codes per byte: the even column in bits 3..0, the odd one in bits 7..4.
inline uint8_t pack_nibbles(uint8_t even, uint8_t odd) {
  return static_cast<uint8_t>((even & 15) | (odd << 4));
}
inline uint8_t low_nibble(uint8_t byte) { return byte & 15; }
inline uint8_t high_nibble(uint8_t byte) { return byte >> 4; }

}  // namespace lathe
