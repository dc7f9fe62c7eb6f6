// Random numbers that are a function of (request seed, position, stream) alone, so that what a
// request samples depends neither on its companions in the batch nor on what else drew before it,
// and a draft that is thrown away consumes nothing.
// Source: Philox4x32-10, Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
#pragma once
#include <array>
#include <cstdint>

namespace lathe {

// What the number is for. New uses get new values; old ones never change.
enum class RandomStream : uint32_t {
  kSample = 0,
  kDraft = 1,
  kAccept = 2,
  kResidual = 3,
  kBonus = 4,   // free: the token behind a fully accepted window is an ordinary sample
  kRace = 5,    // one number a token, from here on (token_noise.h)
  kRaceLow = 6  // its lower bits
};

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                          std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

// Uniform in [0, 1), 53 random bits. position: of the token that is chosen, in its sequence.
inline double uniform_at(uint64_t seed, int64_t position, RandomStream stream) {
  const auto p = static_cast<uint64_t>(position);
  const std::array<uint32_t, 4> words = philox4x32(
      {static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), static_cast<uint32_t>(stream), 0},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = uint64_t{words[0]} << 32 | words[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace lathe
