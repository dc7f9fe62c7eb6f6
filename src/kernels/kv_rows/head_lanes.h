// A decoded head in the registers of head_dim / 16 lanes of a warp, head_dim a power of two.
// Written once for the device and for the host, where a test runs it on threads.
//
//   lane l holds numbers 8 l .. 8 l + 7 and those half a head further on
//
// so a lane's numbers are two loads or stores of 16 bytes in bf16, their codes begin on a byte, and
// both of a pair that RoPE turns are its own. Butterflies at distances 1, 2, 4 and head_dim / 2
// stay in a lane, the others are exchanges with lane l ^ (distance / 8). The arithmetic is that of
// quant/row_codes.h, bit for bit.
//
// `Lane` is what the hardware does:
//   int id() const                             lane of the head
//   float exchange(float x, int mask) const    with lane id ^ mask
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/attention/kv_codes_cuda.h"

namespace lathe {

// A point of a grid, one load.
template <int kDim>
struct alignas(4 * kDim) GridPoint {
  float at[kDim];
};

// The value of a log8 scale, neither zero nor NaN: 2^(eighths / 8) where `step` is
// 2^(eighths mod 8 / 8). Exponents are -16 to 15, so adding to the bits is exact.
LATHE_HOST_DEVICE inline float log8_from_step(float step, int eighths) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(step) +
                              (static_cast<uint32_t>(eighths >> 3) << 23));
}

template <int kHeadDim>
struct HeadLanes {
  static_assert(kHeadDim == 64 || kHeadDim == 128 || kHeadDim == 256);
  static constexpr int kRun = 8;  // consecutive numbers
  static constexpr int kNumbers = 2 * kRun;
  static constexpr int kLanes = kHeadDim / kNumbers;
  static constexpr int kHalf = kHeadDim / 2;

  // Where number i of a lane is in the head.
  LATHE_HOST_DEVICE static constexpr int dim(int lane, int i) {
    return i / kRun * kHalf + lane * kRun + i % kRun;
  }

  // The points of eight numbers' codes, `word`'s bits from the lowest on.
  template <int kGridDim, int kCodeBits>
  LATHE_HOST_DEVICE static void look_up(uint32_t word, const GridPoint<kGridDim>* points,
                                        float* x) {
    LATHE_UNROLL
    for (int i = 0; i < kRun / kGridDim; ++i) {
      const GridPoint<kGridDim> point = points[word >> i * kCodeBits & ((1u << kCodeBits) - 1)];
      LATHE_UNROLL
      for (int j = 0; j < kGridDim; ++j) x[i * kGridDim + j] = point.at[j];
    }
  }

  template <typename Lane>
  LATHE_HOST_DEVICE static void butterflies(const Lane& lane, float (&x)[kNumbers]) {
    LATHE_UNROLL
    for (int distance = 1; distance < kRun; distance *= 2) {
      LATHE_UNROLL
      for (int i = 0; i < kNumbers; ++i) {
        if ((i & distance) == 0) butterfly(x[i], x[i + distance]);
      }
    }
    LATHE_UNROLL
    for (int mask = 1; mask < kLanes; mask *= 2) {
      // a + b for the lower lane, a - b for the upper: a product with +-1 rounds nothing.
      const float sign = (lane.id() & mask) != 0 ? -1.0f : 1.0f;
      LATHE_UNROLL
      for (int i = 0; i < kNumbers; ++i) {
        x[i] = std::fma(x[i], sign, lane.exchange(x[i], mask));
      }
    }
    LATHE_UNROLL
    for (int i = 0; i < kRun; ++i) butterfly(x[i], x[i + kRun]);
  }

  // words: the codes of both runs. factor: decode_factor() of the head's only piece.
  template <int kGridDim, int kCodeBits, typename Lane>
  LATHE_HOST_DEVICE static void decode(const Lane& lane, const uint32_t (&words)[2],
                                       const GridPoint<kGridDim>* points, bool hadamard,
                                       float factor, float (&x)[kNumbers]) {
    look_up<kGridDim, kCodeBits>(words[0], points, x);
    look_up<kGridDim, kCodeBits>(words[1], points, x + kRun);
    if (hadamard) butterflies(lane, x);
    LATHE_UNROLL
    for (int i = 0; i < kNumbers; ++i) x[i] = product_rn(x[i], factor);
  }

  // Pairs (j, j + head_dim / 2); cos and sin of this lane's first run.
  LATHE_HOST_DEVICE static void rope(const float (&cos)[kRun], const float (&sin)[kRun],
                                     float (&x)[kNumbers]) {
    LATHE_UNROLL
    for (int i = 0; i < kRun; ++i) {
      const float a = x[i], b = x[i + kRun];
      x[i] = std::fma(a, cos[i], -product_rn(b, sin[i]));
      x[i + kRun] = std::fma(b, cos[i], product_rn(a, sin[i]));
    }
  }

 private:
  LATHE_HOST_DEVICE static void butterfly(float& a, float& b) {
    const float first = a;
    a = sum_rn(first, b);
    b = sum_rn(first, -b);
  }
};

}  // namespace lathe
