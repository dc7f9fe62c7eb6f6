#include "quant/fp4_e2m1.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quant/golden_vectors.h"

namespace lathe {
namespace {

TEST(E2m1, DecodesTheGoldenTable) {
  const Json& values = golden_vectors()["e2m1"]["decode"];
  for (int code = 0; code < 16; ++code) {
    EXPECT_EQ(e2m1_to_float(static_cast<uint8_t>(code)), values[code].get<float>()) << code;
  }
}

TEST(E2m1, RoundsTheGoldenCases) {
  for (const Json& c : golden_vectors()["e2m1"]["round_cases"]) {
    EXPECT_EQ(e2m1_from_double(c["x"].get<double>()), c["code"].get<int>()) << c;
  }
}

TEST(E2m1, KeepsTheSignOfZeroAndSaturates) {
  EXPECT_EQ(e2m1_from_double(-0.0), 8);
  EXPECT_EQ(e2m1_from_double(-0.1), 8);
  EXPECT_EQ(e2m1_from_double(std::numeric_limits<double>::infinity()), 7);
  EXPECT_EQ(e2m1_from_double(-1e30), 15);
  EXPECT_EQ(e2m1_from_double(std::nan("")), 7);
}

TEST(E2m1, PackingRoundTripsForEveryByte) {
  for (int byte = 0; byte < 256; ++byte) {
    const auto b = static_cast<uint8_t>(byte);
    EXPECT_EQ(pack_nibbles(low_nibble(b), high_nibble(b)), b);
  }
}

}  // namespace
}  // namespace lathe
