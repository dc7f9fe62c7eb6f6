#include "kernels/linear/block_scaled_tiles.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "kernels/block_scaled_cases.h"
#include "kernels/block_scaled_model.h"
#include "support/all_close.h"

namespace lathe {
namespace {

BlockScaledHost as_the_kernel_gets_it(const QuantizedMatrix& matrix) {
  const auto* codes = matrix.codes.as<uint8_t>();
  return {static_cast<int>(matrix.format.group_size), matrix.rows, matrix.cols,
          std::vector<uint8_t>(codes, codes + matrix.codes.size()), swizzled_scales(matrix)};
}

std::vector<float> model(const QuantizedMatrix& w, const QuantizedMatrix& x) {
  return block_scaled_model(as_the_kernel_gets_it(w), as_the_kernel_gets_it(x));
}

std::vector<float> reference(const QuantizedMatrix& w, const QuantizedMatrix& x) {
  const std::vector<double> y = product(w, x);
  return {y.begin(), y.end()};
}

struct Size {
  int64_t m, n, k;
};
// Around the block of 128 x 128, with and without half a stage of k.
constexpr Size kSizes[] = {{1, 1, 64},    {5, 130, 128},   {128, 128, 192},
                           {129, 33, 64}, {257, 129, 320}, {70, 200, 512}};

TEST(BlockScaledTiles, ModelOfTheKernelMatchesTheReference) {
  for (const std::string format : {"mxfp4", "nvfp4"}) {
    for (const Size& size : kSizes) {
      SCOPED_TRACE(testing::Message()
                   << format << " m " << size.m << " n " << size.n << " k " << size.k);
      const QuantizedMatrix w = random_fp4(format, size.n, size.k, 1);
      const QuantizedMatrix x = random_fp4(format, size.m, size.k, 2);
      EXPECT_TRUE(all_close(model(w, x), reference(w, x), 0, 0));  // sums are exact
    }
  }
}

// A scale that is NaN reaches its row of y, all of it and nothing else, and the comparison sees it.
TEST(BlockScaledTiles, NanStaysInItsRow) {
  for (const std::string format : {"mxfp4", "nvfp4"}) {
    SCOPED_TRACE(format);
    const int64_t m = 40, n = 24, k = 192;
    const QuantizedMatrix w = random_fp4(format, n, k, 3);
    QuantizedMatrix x = random_fp4(format, m, k, 4);
    const auto clean = reference(w, x);
    x.scales.as<uint8_t>()[33 * x.num_groups() + 5] = format == "mxfp4" ? 0xff : 0x7f;
    const auto y = model(w, x);
    for (int64_t i = 0; i < m * n; ++i) {
      if (i / n == 33) {
        EXPECT_TRUE(std::isnan(y[i])) << i;
      } else {
        EXPECT_EQ(y[i], clean[i]) << i;
      }
    }
    EXPECT_TRUE(all_close(y, reference(w, x), 0, 0));
    EXPECT_FALSE(all_close(y, clean, 0, 0));
  }
}

// ldmatrix reads the eight rows of a matrix at once: no two in the same four of the 32 banks.
TEST(BlockScaledTiles, RowsOfAMatrixAreInDifferentBanks) {
  using namespace block_scaled;
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    for (int step = 0; step < kSteps; ++step) {
      for (int tile = 0; tile < kTilesOfA + kTilesOfB / 2; ++tile) {
        for (int matrix = 0; matrix < 4; ++matrix) {
          std::set<int> banks;
          for (int lane = 8 * matrix; lane < 8 * matrix + 8; ++lane) {
            const int address = tile < kTilesOfA
                                    ? a_matrix_row_at(warp, lane, tile, step)
                                    : b_matrix_row_at(warp, lane, tile - kTilesOfA, step);
            banks.insert(address / 16 % 8);
          }
          EXPECT_EQ(banks.size(), 8u) << warp << " " << step << " " << tile << " " << matrix;
        }
      }
    }
  }
}

}  // namespace
}  // namespace lathe
