#include "quant/mx_scale.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "quant/encode.h"
#include "quant/fp8.h"
#include "quant/golden_vectors.h"
#include "support/all_close.h"

namespace lathe {
namespace {

const WeightFormat kMxfp4 = weight_format_from_name("mxfp4");

constexpr MxScaleRule kAllRules[] = {
    MxScaleRule::kOcpFloor, MxScaleRule::kCtEven, MxScaleRule::kCeil,    MxScaleRule::kAbsmaxX3,
    MxScaleRule::kPaperEq1, MxScaleRule::kQuest,  MxScaleRule::kMsePow2, MxScaleRule::kMsePow2X3};

double squared_error(const QuantizedMatrix& matrix, const std::vector<float>& x) {
  std::vector<float> decoded(x.size());
  dequantize_rows(matrix, 0, matrix.rows, decoded.data());
  double error = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += (double{x[i]} - double{decoded[i]}) * (double{x[i]} - double{decoded[i]});
  }
  return error;
}

// Scale byte, codes and error of 5 groups x 7 rules, bit for bit.
TEST(MxScale, ReproducesTheGoldenVectors) {
  int num_cases = 0;
  for (const Json& vector : golden_vectors()["mxfp4"]["vectors"]) {
    const auto x = vector["x"].get<std::vector<float>>();
    for (const auto& [name, expected] : vector["results"].items()) {
      SCOPED_TRACE(vector["name"].get<std::string>() + " " + name);
      const MxScaleRule rule = mx_scale_rule_from_name(name);
      const QuantizedMatrix matrix = quantize_absmax(kMxfp4, x.data(), 1, 32, rule);
      EXPECT_EQ(matrix.scales.as<uint8_t>()[0], expected["scale_byte"].get<int>());
      EXPECT_EQ(to_vector(matrix.codes), bytes_from_hex(expected["bytes"].get<std::string>()));
      // The file decodes in double, dequantize_rows rounds to float once.
      EXPECT_NEAR(squared_error(matrix, x) / 32, expected["mse"].get<double>(),
                  1e-6 * expected["mse"].get<double>());
      if (expected.contains("decoded")) {
        std::vector<float> decoded(32);
        dequantize_rows(matrix, 0, 1, decoded.data());
        EXPECT_EQ(decoded, expected["decoded"].get<std::vector<float>>());
      }
      if (expected.contains("clip_mask_bytes")) {
        const auto mask = bytes_from_hex(expected["clip_mask_bytes"].get<std::string>());
        for (std::size_t i = 0; i < 32; ++i) {
          const bool kept = std::fabs(x[i] / effective_scale(matrix, 0, 0)) < 6;
          EXPECT_EQ(kept, ((mask[i / 8] >> (i % 8)) & 1) != 0) << i;
        }
      }
      ++num_cases;
    }
  }
  EXPECT_EQ(num_cases, 35);
}

TEST(MxScale, NamesRoundTrip) {
  for (const MxScaleRule rule : kAllRules) {
    EXPECT_EQ(mx_scale_rule_from_name(mx_scale_rule_name(rule)), rule);
  }
  EXPECT_THROW(mx_scale_rule_from_name("round"), Error);
}

// The range of |x|/s that each rule promises (spec 1.5), on group maxima over every exponent.
TEST(MxScale, LargestElementLandsInTheRulesRange) {
  struct Range {
    MxScaleRule rule;
    double low, high;
  };
  // Half-open ranges are widened by one float epsilon on the open side.
  const Range ranges[] = {{MxScaleRule::kOcpFloor, 4, 8},
                          {MxScaleRule::kCtEven, 3.5, 7},
                          {MxScaleRule::kCeil, 3, 6},
                          {MxScaleRule::kAbsmaxX3, 3, 6},
                          {MxScaleRule::kPaperEq1, 3.18, 6.37}};
  for (const Range& range : ranges) {
    SCOPED_TRACE(mx_scale_rule_name(range.rule));
    for (int exponent = -100; exponent <= 120; exponent += 5) {
      for (int step = 0; step < 64; ++step) {
        std::vector<float> x(32, 0.0f);
        x[7] = std::ldexp(1.0f + static_cast<float>(step) / 64, exponent);
        const uint8_t byte = mx_scale_byte(range.rule, x);
        const double scale = double{e8m0_to_float(byte)} / double{mx_global_scale(range.rule)};
        const double ratio = double{x[7]} / scale;
        EXPECT_GE(ratio, range.low) << x[7];
        EXPECT_LE(ratio, range.high) << x[7];
      }
    }
  }
}

// The search is never worse than any fixed rule on the same grid.
TEST(MxScale, SearchedPowerOfTwoIsBest) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const auto x = normal_values(32, seed, seed % 2 == 0 ? 1.0 : 1e-4);
    const double best =
        squared_error(quantize_absmax(kMxfp4, x.data(), 1, 32, MxScaleRule::kMsePow2), x);
    for (const MxScaleRule rule :
         {MxScaleRule::kOcpFloor, MxScaleRule::kCtEven, MxScaleRule::kCeil, MxScaleRule::kQuest}) {
      EXPECT_LE(best, squared_error(quantize_absmax(kMxfp4, x.data(), 1, 32, rule), x));
    }
    const double best_x3 =
        squared_error(quantize_absmax(kMxfp4, x.data(), 1, 32, MxScaleRule::kMsePow2X3), x);
    EXPECT_LE(best_x3,
              squared_error(quantize_absmax(kMxfp4, x.data(), 1, 32, MxScaleRule::kAbsmaxX3), x));
  }
}

TEST(MxScale, ZeroGroupsDecodeToZero) {
  const std::vector<float> zeros(64, 0.0f);
  for (const MxScaleRule rule : kAllRules) {
    const QuantizedMatrix matrix = quantize_absmax(kMxfp4, zeros.data(), 2, 32, rule);
    std::vector<float> decoded(64, 1.0f);
    dequantize_rows(matrix, 0, 2, decoded.data());
    EXPECT_EQ(decoded, zeros) << mx_scale_rule_name(rule);
  }
}

}  // namespace
}  // namespace lathe
