// Constant tables of attention_codes_simd.h.
#pragma once
#include <cstdint>

namespace lathe {

// The bf16 of the E4M3 magnitudes 0..127, low and high bytes; 127 is NaN.
struct E4m3Table {
  uint8_t low[128];
  uint8_t high[128];
};
constexpr E4m3Table make_e4m3_table() {
  E4m3Table table = {};
  for (unsigned m = 0; m < 128; ++m) {
    const unsigned exponent = m >> 3, mantissa = m & 7;
    unsigned bits = (exponent + 127 - 7) << 7 | mantissa << 4;
    if (exponent == 0) {  // mantissa * 2^-9
      bits = mantissa == 0  ? 0
             : mantissa < 2 ? 118u << 7
             : mantissa < 4 ? 119u << 7 | (mantissa & 1) << 6
                            : 120u << 7 | (mantissa & 3) << 5;
    }
    if (m == 127) bits = 0x7fc0;
    table.low[m] = static_cast<uint8_t>(bits);
    table.high[m] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}
alignas(64) inline constexpr E4m3Table kE4m3Table = make_e4m3_table();
alignas(64) inline constexpr int8_t kQ4Table[16] = {-8, -7, -6, -5, -4, -3, -2, -1,
                                                    0,  1,  2,  3,  4,  5,  6,  7};

}  // namespace lathe
