// The 8-bit floats.
//   E4M3 ("fn"): bias 7, largest 448 (0x7e), 0x7f and 0xff are NaN, no infinity.
//   E5M2: bias 15, largest 57344 (0x7b), 0x7c is infinity, above it NaN.
//   E8M0: a scale, 2^(b - 127) for b in 0..254; 255 is NaN; no sign, no zero.
// Source: Micikevicius et al., "FP8 formats for deep learning" (2022), table 1; OCP Microscaling
// Formats v1.0, 5.4; spec/mr-gptq.md 1.3, 1.4.
#pragma once
#include <cstdint>

namespace lathe {

inline constexpr double kE4m3Max = 448;
inline constexpr double kE5m2Max = 57344;

float e4m3_to_float(uint8_t byte);
float e5m2_to_float(uint8_t byte);
// 2^-127 (byte 0) is a subnormal float; 255 gives NaN.
float e8m0_to_float(uint8_t byte);

// Nearest, ties to even, saturating: everything beyond the largest number, infinity too, becomes
// the largest number of its sign. NaN becomes NaN (0x7f).
uint8_t e4m3_from_double(double value);
uint8_t e5m2_from_double(double value);

// floor(log2(value)) from the exponent bits, for value > 0 and finite, subnormals included. Never
// take the logarithm in floating point: just below a power of two it rounds up to the integer.
int floor_log2(float value);

// 2^exponent as an E8M0 byte, exponent limited to -127..127.
uint8_t e8m0_from_exponent(int exponent);

}  // namespace lathe
