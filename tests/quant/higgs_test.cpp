#include "quant/higgs.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "support/all_close.h"

namespace lathe {
namespace {

TEST(HiggsGrid, NumbersOfPointsAndBits) {
  for (const int bits : {2, 3, 4}) {
    for (const int64_t dim : {1, 2}) {
      const HiggsGrid& grid = higgs_grid(bits, dim);
      EXPECT_EQ(grid.bits(), bits);
      EXPECT_EQ(grid.dim, dim);
      EXPECT_EQ(grid.num_points, int64_t{1} << (bits * dim));
      EXPECT_EQ(grid.hash.size(), 64u);
    }
  }
  EXPECT_THROW(higgs_grid(5, 2), Error);
  EXPECT_THROW(higgs_grid(2, 3), Error);
}

// The error on the normal law is the one computed when the grid was made (spec/aqua-kv.md 3.2). The
// squared error of one number has a standard deviation below twice its mean (the error is roughly
// uniform over a cell, and cells differ), so over n numbers the mean is known to 2 / sqrt(n): at 5
// standard errors and n = 2^20, 1 %.
TEST(HiggsGrid, ErrorOnTheNormalLawIsThePublishedOne) {
  const auto x = normal_values(int64_t{1} << 20, 7);
  for (const HiggsGrid* grid : higgs_grids()) {
    SCOPED_TRACE(std::string(grid->name));
    // Brute force over 256 points: a part of the samples will do, at a larger tolerance.
    const std::size_t count = grid->num_points > 64 ? x.size() / 8 : x.size();
    double error = 0;
    for (std::size_t i = 0; i < count; i += std::size_t(grid->dim)) {
      const float* point = grid->points + nearest_point(*grid, x.data() + i) * grid->dim;
      for (std::size_t j = 0; j < std::size_t(grid->dim); ++j) {
        error += (double{x[i + j]} - point[j]) * (double{x[i + j]} - point[j]);
      }
    }
    EXPECT_NEAR(error / double(count) / grid->mse, 1, 10 / std::sqrt(double(count)));
  }
}

TEST(HiggsGrid, SearchFindsTheNearestPoint) {
  const auto x = normal_values(4096, 3, 1.5);
  for (const HiggsGrid* grid : higgs_grids()) {
    for (std::size_t i = 0; i + std::size_t(grid->dim) <= x.size(); i += std::size_t(grid->dim)) {
      const int found = nearest_point(*grid, x.data() + i);
      double found_distance = 0, best = INFINITY;
      for (int64_t p = 0; p < grid->num_points; ++p) {
        double distance = 0;
        for (int64_t j = 0; j < grid->dim; ++j) {
          const double d = double{x[i + std::size_t(j)]} - grid->points[p * grid->dim + j];
          distance += d * d;
        }
        best = std::min(best, distance);
        if (p == found) found_distance = distance;
      }
      // Scores of up to 2 * 6 * 3.5 + 12 = 54 in magnitude, rounded dim + 1 times to 2^-24 of that.
      EXPECT_LE(found_distance, best + 2 * 5 * 54 * 0x1p-24);
    }
  }
}

TEST(HiggsGrid, PointsAreTheirOwnNearest) {
  for (const HiggsGrid* grid : higgs_grids()) {
    for (int64_t p = 0; p < grid->num_points; ++p) {
      EXPECT_EQ(nearest_point(*grid, grid->points + p * grid->dim), p) << grid->name;
    }
  }
}

}  // namespace
}  // namespace lathe
