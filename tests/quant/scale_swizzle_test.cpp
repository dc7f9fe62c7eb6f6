#include "quant/scale_swizzle.h"

#include <gtest/gtest.h>

#include <numeric>

#include "quant/golden_vectors.h"

namespace lathe {
namespace {

TEST(ScaleSwizzle, OffsetsMatchTheGoldenCases) {
  for (const Json& c : golden_vectors()["scale_swizzle_128x4"]["cases_C8"]) {
    EXPECT_EQ(swizzled_scale_offset(c["r"].get<int64_t>(), c["c"].get<int64_t>(), 8),
              c["offset"].get<int64_t>())
        << c;
  }
}

TEST(ScaleSwizzle, RoundTripsAndPadsWithZeros) {
  for (const int64_t rows : {1, 127, 128, 129, 300}) {
    for (const int64_t cols : {1, 3, 4, 5, 8}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << cols);
      std::vector<uint8_t> scales(static_cast<std::size_t>(rows * cols));
      for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<uint8_t>(1 + i % 255);
      const auto swizzled = swizzle_scales(scales, rows, cols);
      EXPECT_EQ(static_cast<int64_t>(swizzled.size()),
                (rows + 127) / 128 * 128 * ((cols + 3) / 4 * 4));
      EXPECT_EQ(unswizzle_scales(swizzled, rows, cols), scales);
      // All scales are there, and nothing else is.
      EXPECT_EQ(std::accumulate(swizzled.begin(), swizzled.end(), int64_t{0}),
                std::accumulate(scales.begin(), scales.end(), int64_t{0}));
    }
  }
}

}  // namespace
}  // namespace lathe
