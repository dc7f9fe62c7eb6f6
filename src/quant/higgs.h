// HIGGS: vector quantization of numbers that a Hadamard transform has made nearly normal. A grid is
// a codebook of points in `dim` dimensions that is optimal for the standard normal law; `dim`
// consecutive numbers become the index of their nearest point. What surrounds it (transform, scale,
// packing) is row_codes.h.
// Source: spec/aqua-kv.md 3.1 and 3.2; Malinovskii et al., "Pushing the Limits of Large Language
// Model Quantization via the Linearity Theorem" (2024); the tables by scripts/make_higgs_grids.py.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace lathe {

struct HiggsGrid {
  std::string_view name;          // "d2n16"
  int64_t dim = 0;                // 1, 2, 4
  int64_t num_points = 0;         // a power of two
  int code_bits = 0;              // log2(num_points), of one index; code_bits / dim bits per number
  double mse = 0;                 // expected squared error per number of the standard normal law
  const float* points = nullptr;  // [num_points][dim]
  std::string hash;  // SHA-256 of the points as little-endian fp32: files name grids by it

  // For the search, one row of num_points per coordinate and one more: twice the points, and minus
  // their squared norms. All exact or rounded once, the same on every machine.
  const float* twice_points = nullptr;  // [dim][num_points]
  const float* minus_norms = nullptr;   // [num_points]

  int bits() const { return code_bits / static_cast<int>(dim); }  // per number
};

// The grid of 2, 3 or 4 bits per number in 1 or 2 dimensions, or of 2 bits in 4. Throws
// kInvalidArgument for another. The reference lives as long as the program.
const HiggsGrid& higgs_grid(int bits, int64_t dim);
// Every grid there is.
std::span<const HiggsGrid* const> higgs_grids();

// The index of the nearest point to y [dim]: the largest 2<y, point> - |point|^2, the first of
// equals. Every version of the search computes
//   fma(y[dim-1], 2 p[dim-1], ... fma(y[0], 2 p[0], -|p|^2))
// in fp32, so that all of them choose alike. 0 when y has a NaN.
int nearest_point(const HiggsGrid& grid, const float* y);

}  // namespace lathe
