#include "quant/fp8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quant/golden_vectors.h"

namespace lathe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(E4m3, DecodesTheGoldenTable) {
  const Json& values = golden_vectors()["e4m3fn"]["positive_decode_bytes_0_to_126"];
  ASSERT_EQ(values.size(), 127u);
  for (int byte = 0; byte < 127; ++byte) {
    EXPECT_EQ(e4m3_to_float(static_cast<uint8_t>(byte)), values[byte].get<float>()) << byte;
    EXPECT_EQ(e4m3_to_float(static_cast<uint8_t>(byte | 0x80)), -values[byte].get<float>());
  }
  EXPECT_TRUE(std::isnan(e4m3_to_float(0x7f)));
  EXPECT_TRUE(std::isnan(e4m3_to_float(0xff)));
}

TEST(E4m3, EncodesTheGoldenCases) {
  for (const Json& c : golden_vectors()["e4m3fn"]["encode_cases"]) {
    EXPECT_EQ(e4m3_from_double(c["x"].get<double>()), c["byte"].get<int>()) << c;
  }
  EXPECT_EQ(e4m3_from_double(double{kInfinity}), 0x7e);
  EXPECT_EQ(e4m3_from_double(-double{kInfinity}), 0xfe);
  EXPECT_EQ(e4m3_from_double(std::nan("")), 0x7f);
}

// Every finite byte comes back, and each midpoint between neighbours goes to the even byte.
TEST(Fp8, EncodeInvertsDecodeAndTiesGoToEven) {
  for (int byte = 0; byte < 256; ++byte) {
    const auto b = static_cast<uint8_t>(byte);
    if (!std::isnan(e4m3_to_float(b))) {
      EXPECT_EQ(e4m3_from_double(double{e4m3_to_float(b)}), b);
    }
    if (std::isfinite(e5m2_to_float(b))) {
      EXPECT_EQ(e5m2_from_double(double{e5m2_to_float(b)}), b);
    }
  }
  for (int byte = 0; byte < 0x7e; ++byte) {
    const double below = double{e4m3_to_float(static_cast<uint8_t>(byte))};
    const double above = double{e4m3_to_float(static_cast<uint8_t>(byte + 1))};
    const double middle = (below + above) / 2;
    EXPECT_EQ(e4m3_from_double(middle), byte + (byte & 1)) << byte;
    EXPECT_EQ(e4m3_from_double(std::nextafter(middle, 0.0)), byte);
    EXPECT_EQ(e4m3_from_double(std::nextafter(middle, 1e9)), byte + 1);
  }
  for (int byte = 0; byte < 0x7b; ++byte) {
    const double below = double{e5m2_to_float(static_cast<uint8_t>(byte))};
    const double above = double{e5m2_to_float(static_cast<uint8_t>(byte + 1))};
    EXPECT_EQ(e5m2_from_double((below + above) / 2), byte + (byte & 1)) << byte;
  }
  EXPECT_EQ(e5m2_from_double(1e9), 0x7b);
}

TEST(E8m0, DecodesTheGoldenCases) {
  for (const Json& c : golden_vectors()["e8m0"]["decode_cases"]) {
    EXPECT_EQ(e8m0_to_float(c["byte"].get<uint8_t>()), c["value"].get<float>()) << c;
  }
  EXPECT_TRUE(std::isnan(e8m0_to_float(255)));
  EXPECT_GT(e8m0_to_float(0), 0.0f);  // a subnormal, not flushed
}

// Just below a power of two the logarithm in floating point rounds up; the exponent bits do not.
TEST(E8m0, FloorLog2IsExact) {
  for (int exponent = -149; exponent <= 127; ++exponent) {
    const float power = std::ldexp(1.0f, exponent);
    EXPECT_EQ(floor_log2(power), exponent);
    if (exponent > -149) {
      EXPECT_EQ(floor_log2(std::nextafter(power, 0.0f)), exponent - 1);
    }
  }
  EXPECT_EQ(e8m0_from_exponent(-500), 0);
  EXPECT_EQ(e8m0_from_exponent(500), 254);
}

}  // namespace
}  // namespace lathe
