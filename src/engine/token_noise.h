// Exponential random numbers, one for every token of a position: a function of (seed, position,
// token) alone, and the same bits on every machine.
#pragma once
#include <bit>
#include <cstdint>

#include "engine/counter_rng.h"

namespace lathe {

// log(x) for 0 < x <= 1 and normal, from additions, multiplications and one division: the C library
// does not promise the same bits everywhere. x = m 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2
// atanh(s) with s = (m - 1) / (m + 1), |s| <= 0.1716, whose series is cut behind s^15: an absolute
// error of 2 s^17 / 17 < 1.2e-14.
inline double portable_log(double x) {
  const auto bits = std::bit_cast<uint64_t>(x);
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u);  // [1, 2)
  if (m >= 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1) / (m + 1);
  const double s2 = s * s;
  double series = 0;
  for (int i = 15; i >= 1; i -= 2) series = series * s2 + 1.0 / i;
  return static_cast<double>(exponent) * 0.69314718055994531 + 2 * s * series;
}

class TokenNoise {
 public:
  TokenNoise(uint64_t seed, int64_t position)
      : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
        position_(static_cast<uint64_t>(position)) {}

  // Four tokens share one evaluation.
  struct Words {
    int32_t first_token = -1;
    std::array<uint32_t, 4> words = {};
  };
  // -log(u) for the token's u in (0, 1), to 53 bits.
  double exponential(int32_t token) const {
    Words words;
    const double high = high_bits(token, words);
    words.first_token = -1;
    const double low = low_bits(token, words);
    // 1 - u is exact where it matters, near 0: -log(u) of u near 1 comes from it.
    const double rest = (4294967295.0 - high) * 0x1p-32 + (1 - (low + 0.5) * 0x1p-32) * 0x1p-32;
    if (rest < 1e-4) return rest * (1 + rest * (0.5 + rest * (1.0 / 3 + rest * 0.25)));
    return -portable_log((high + (low + 0.5) * 0x1p-32) * 0x1p-32);
  }
  // A lower bound of it, cheap when tokens come in ascending order. `words`: the caller's, kept
  // between calls.
  double least(int32_t token, Words& words) const {
    return (4294967295.0 - high_bits(token, words)) * 0x1p-32;
  }

 private:
  double high_bits(int32_t token, Words& words) const {
    return bits(token, words, RandomStream::kRace);
  }
  double low_bits(int32_t token, Words& words) const {
    return bits(token, words, RandomStream::kRaceLow);
  }
  double bits(int32_t token, Words& words, RandomStream stream) const {
    const int32_t first = token & ~3;
    if (words.first_token != first) {
      words.first_token = first;
      words.words =
          philox4x32({static_cast<uint32_t>(position_), static_cast<uint32_t>(position_ >> 32),
                      static_cast<uint32_t>(stream), static_cast<uint32_t>(first)},
                     key_);
    }
    return static_cast<double>(words.words[static_cast<std::size_t>(token & 3)]);
  }

  std::array<uint32_t, 2> key_;
  uint64_t position_;
};

}  // namespace lathe
