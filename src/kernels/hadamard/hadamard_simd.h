// One row of the block Hadamard rotation in vectors (V is IntAvx2 or IntAvx512): the butterflies of
// quant/hadamard.h in the same order (distance 1, 2, 4, ...), so with the same bits. Distances
// below the vector length exchange lanes, the others pair registers.
#pragma once
#include <cstdint>

namespace lathe {
namespace {

// a + b in the lower lane of each pair, a - b in the upper one.
template <typename V, int kDistance>
typename V::F butterfly(typename V::F v) {
  return V::add(V::template swap_lanes<kDistance>(v), V::template negate_lanes<kDistance>(v));
}

// out = H x * factor for one block, H without its normalisation. out may be x.
template <typename V, int kBlock>
void transform_block(const float* x, float* out, typename V::F factor) {
  constexpr int kVectors = kBlock / V::kWidth;
  typename V::F v[kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    v[i] = V::load(x + i * V::kWidth);
    v[i] = butterfly<V, 1>(v[i]);
    v[i] = butterfly<V, 2>(v[i]);
    v[i] = butterfly<V, 4>(v[i]);
    if constexpr (V::kWidth == 16) v[i] = butterfly<V, 8>(v[i]);
  }
#pragma GCC unroll 8
  for (int distance = 1; distance < kVectors; distance *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      if ((i & distance) != 0) continue;
      const auto a = v[i];
      const auto b = v[i + distance];
      v[i] = V::add(a, b);
      v[i + distance] = V::sub(a, b);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) V::store(out + i * V::kWidth, V::mul(v[i], factor));
}

template <typename V, int kBlock>
void rotate_blocks(const float* x, float* out, int64_t k) {
  const auto normalisation = V::set(kBlock == 16   ? 0.25f
                                    : kBlock == 64 ? 0.125f
                                    : kBlock == 32 ? 0.17677669529663689f
                                                   : 0.08838834764831845f);
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    transform_block<V, kBlock>(x + begin, out + begin, normalisation);
  }
}

// block: 16, 32, 64 or 128, a divisor of k. out may be x.
template <typename V>
void rotate_row(const float* x, float* out, int64_t k, int64_t block) {
  switch (block) {
    case 16:
      return rotate_blocks<V, 16>(x, out, k);
    case 32:
      return rotate_blocks<V, 32>(x, out, k);
    case 64:
      return rotate_blocks<V, 64>(x, out, k);
    default:
      return rotate_blocks<V, 128>(x, out, k);
  }
}

}  // namespace
}  // namespace lathe
