#include "quant/higgs.h"

#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "base/sha256.h"
#include "quant/higgs_grid_tables.h"

namespace lathe {
namespace {

// search: [dim + 1][num_points], filled here and kept by the caller.
HiggsGrid make_grid(std::string_view name, int64_t dim, int64_t num_points, double mse,
                    const float* points, float* search) {
  HiggsGrid grid{.name = name,
                 .dim = dim,
                 .num_points = num_points,
                 .code_bits = std::countr_zero(static_cast<uint64_t>(num_points)),
                 .mse = mse,
                 .points = points,
                 .hash = {},
                 .twice_points = search,
                 .minus_norms = search + dim * num_points};
  static_assert(std::endian::native == std::endian::little);
  const std::span<const float> all(points, static_cast<std::size_t>(dim * num_points));
  grid.hash = sha256_hex(std::as_bytes(all));
  for (int64_t j = 0; j < dim; ++j) {
    for (int64_t i = 0; i < num_points; ++i) {
      *search++ = 2 * points[i * dim + j];
    }
  }
  for (int64_t i = 0; i < num_points; ++i) {
    double norm = 0;
    for (int64_t j = 0; j < dim; ++j) norm += double{points[i * dim + j]} * points[i * dim + j];
    *search++ = static_cast<float>(-norm);
  }
  return grid;
}

struct Grids {
  // Room for the search tables of the largest grid, each.
  std::array<std::array<float, 5 * 256>, 7> search;
  // The errors stand in the tables, with how they were computed.
  std::array<HiggsGrid, 7> grids = {
      make_grid("d1n4", 1, 4, 0.117482, kHiggsGridD1N4, search[0].data()),
      make_grid("d1n8", 1, 8, 0.034548, kHiggsGridD1N8, search[1].data()),
      make_grid("d1n16", 1, 16, 0.009501, kHiggsGridD1N16, search[2].data()),
      make_grid("d2n16", 2, 16, 0.107598, kHiggsGridD2N16, search[3].data()),
      make_grid("d2n64", 2, 64, 0.029593, kHiggsGridD2N64, search[4].data()),
      make_grid("d2n256", 2, 256, 0.007741, kHiggsGridD2N256, search[5].data()),
      make_grid("d4n256", 4, 256, 0.096279, kHiggsGridD4N256, search[6].data()),
  };
  std::array<const HiggsGrid*, 7> pointers = {&grids[0], &grids[1], &grids[2], &grids[3],
                                              &grids[4], &grids[5], &grids[6]};
};

const Grids& all_grids() {
  static const Grids grids{};
  return grids;
}

}  // namespace

std::span<const HiggsGrid* const> higgs_grids() { return all_grids().pointers; }

const HiggsGrid& higgs_grid(int bits, int64_t dim) {
  for (const HiggsGrid* grid : higgs_grids()) {
    if (grid->bits() == bits && grid->dim == dim) return *grid;
  }
  fail(ErrorCode::kInvalidArgument, "no grid of ", bits, " bits in ", dim,
       " dimensions; there are 2, 3, 4 bits in 1 and 2 dimensions and 2 bits in 4");
}

int nearest_point(const HiggsGrid& grid, const float* y) {
  int best = 0;
  float best_score = -INFINITY;
  for (int64_t i = 0; i < grid.num_points; ++i) {
    float score = grid.minus_norms[i];
    for (int64_t j = 0; j < grid.dim; ++j) {
      score = std::fma(y[j], grid.twice_points[j * grid.num_points + i], score);
    }
    if (score > best_score) {
      best = static_cast<int>(i);
      best_score = score;
    }
  }
  return best;
}

}  // namespace lathe
