#include "compress/scale_search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"
#include "compress/group_error.h"
#include "quant/encode.h"
#include "support/all_close.h"

namespace lathe {
namespace {

const char* const kAllFormats[] = {"mxfp4",  "mxfp4-fitted", "nvfp4", "int4", "nvint4",
                                   "mxint4", "int8",         "fp8",   "mxfp8"};

class ScaleSearchTest : public testing::Test {
 protected:
  ThreadPool threads_{2};
  Workspace workspace_;
  Exec exec_{threads_, workspace_};

  QuantizedMatrix searched(const char* format, const std::vector<float>& w, int64_t rows,
                           const ScaleSearchOptions& options,
                           const float* column_weights = nullptr) {
    const auto cols = static_cast<int64_t>(w.size()) / rows;
    QuantizedMatrix matrix = make_quantized_matrix(weight_format_from_name(format), rows, cols);
    const ScaleProblem problem{&matrix, w.data(), column_weights};
    choose_scales({&problem, 1}, options, exec_);
    for (int64_t row = 0; row < rows; ++row) encode_row(matrix, row, w.data() + row * cols);
    return matrix;
  }
};

// Squared error of each group (a whole row where there are none), weighted.
std::vector<double> group_errors(const QuantizedMatrix& matrix, const std::vector<float>& w,
                                 const float* column_weights = nullptr) {
  std::vector<float> decoded(w.size());
  dequantize_rows(matrix, 0, matrix.rows, decoded.data());
  const int64_t n = matrix.format.group_size == 0 ? matrix.cols : matrix.format.group_size;
  std::vector<double> errors(w.size() / static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double d = double{w[i]} - double{decoded[i]};
    const double h = column_weights != nullptr
                         ? double{column_weights[static_cast<int64_t>(i) % matrix.cols]}
                         : 1.0;
    errors[i / static_cast<std::size_t>(n)] += h * d * d;
  }
  return errors;
}

double sum(const std::vector<double>& values) {
  double total = 0;
  for (const double v : values) total += v;
  return total;
}

// The fast error against the reference: fp32 sums of n terms.
TEST_F(ScaleSearchTest, FastGroupErrorMatchesTheReference) {
  for (const char* name : kAllFormats) {
    const WeightFormat format = weight_format_from_name(name);
    for (const int64_t n : {16, 32, 256}) {
      if (!group_error_avx2_fits(format, n, 2)) continue;
      const auto x = normal_values(n, static_cast<uint64_t>(n));
      auto weights = normal_values(n, 9);
      for (float& v : weights) v = v * v;
      for (const double scale : {0.01, 0.1, 0.37, 0.5, 1.0, 3.0}) {
        for (const float* h : {static_cast<const float*>(nullptr), std::as_const(weights).data()}) {
          const GroupErrorArgs args{.x = x.data(), .weights = h, .n = n, .scale = scale};
          const double expected = group_error_ref(format, args, 2);
          EXPECT_NEAR(group_error(format, args, 2), expected, 1e-5 * expected + 1e-9)
              << name << " " << n << " " << scale;
        }
      }
    }
  }
}

// Spec 9.3.9: never worse than absmax in any group (the same global scale on both sides). The
// search compares fp32 sums, hence the slack.
TEST_F(ScaleSearchTest, ExhaustiveIsNeverWorseThanAbsmaxInAnyGroup) {
  const int64_t rows = 12, cols = 256;
  auto w = normal_values(rows * cols, 21);
  for (std::size_t i = 0; i < w.size(); i += 97) w[i] *= 6;  // outliers
  auto weights = normal_values(cols, 22);
  for (float& v : weights) v = v * v + 0.01f;
  for (const char* name : kAllFormats) {
    SCOPED_TRACE(name);
    for (const float* h : {static_cast<const float*>(nullptr), std::as_const(weights).data()}) {
      ScaleSearchOptions options;
      options.alternate_global = false;
      const QuantizedMatrix best = searched(name, w, rows, options, h);
      options.search = ScaleSearch::kAbsmax;
      const QuantizedMatrix absmax = searched(name, w, rows, options, h);
      const auto best_errors = group_errors(best, w, h);
      const auto absmax_errors = group_errors(absmax, w, h);
      for (std::size_t i = 0; i < best_errors.size(); ++i) {
        EXPECT_LE(best_errors[i], absmax_errors[i] * (1 + 1e-5)) << i;
      }
    }
  }
}

// The published figures for standard normal weights (spec 2.4), 4 % for 2^15 samples. The
// exhaustive search of NVFP4 is better than its figure (.00698) because ours also looks above the
// absmax scale.
TEST_F(ScaleSearchTest, ErrorsMatchThePublishedFigures) {
  const auto w = normal_values(1 << 15, 23);
  double energy = 0;
  for (const float v : w) energy += double{v} * double{v};
  const auto relative = [&](const char* format, ScaleSearch search, MxScaleRule rule) {
    ScaleSearchOptions options;
    options.search = search;
    options.mx_rule = rule;
    options.alternate_global = false;
    return sum(group_errors(searched(format, w, 64, options), w)) / energy;
  };
  EXPECT_NEAR(relative("nvfp4", ScaleSearch::kAbsmax, MxScaleRule::kCtEven), .00909, .0003);
  EXPECT_NEAR(relative("nvfp4", ScaleSearch::kPaperGrid, MxScaleRule::kCtEven), .00791, .0003);
  EXPECT_NEAR(relative("nvfp4", ScaleSearch::kExhaustive, MxScaleRule::kCtEven), .00660, .0002);
  EXPECT_NEAR(relative("mxfp4", ScaleSearch::kPaperGrid, MxScaleRule::kAbsmaxX3), .01347, .0005);
  EXPECT_NEAR(relative("mxfp4", ScaleSearch::kExhaustive, MxScaleRule::kCtEven), .01246, .0004);
  EXPECT_LT(relative("int4", ScaleSearch::kExhaustive, MxScaleRule::kCtEven), .0085);
  EXPECT_LT(relative("mxfp4-fitted", ScaleSearch::kExhaustive, MxScaleRule::kCtEven), .0090);
}

TEST_F(ScaleSearchTest, SearchOnMxfp4IsTheGoldenMseRule) {
  const auto w = normal_values(64 * 32, 24);
  for (const auto& [grid, rule] : {std::pair{MxScaleRule::kCtEven, MxScaleRule::kMsePow2},
                                   std::pair{MxScaleRule::kAbsmaxX3, MxScaleRule::kMsePow2X3}}) {
    ScaleSearchOptions options;
    options.mx_rule = grid;
    const QuantizedMatrix a = searched("mxfp4", w, 8, options);
    const QuantizedMatrix b =
        quantize_absmax(weight_format_from_name("mxfp4"), w.data(), 8, 256, rule);
    EXPECT_EQ(a.global_scale, b.global_scale);
    for (int64_t i = 0; i < a.scales.size(); ++i) {
      EXPECT_EQ(a.scales.as<uint8_t>()[i], b.scales.as<uint8_t>()[i]);
    }
  }
}

TEST_F(ScaleSearchTest, AlternatingTheGlobalScaleNeverRaisesTheError) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto w = normal_values(8 * 256, 300 + seed, 0.02);
    ScaleSearchOptions options;
    options.alternate_global = false;
    QuantizedMatrix fixed = searched("nvfp4", w, 8, options);
    const double before = sum(group_errors(fixed, w));
    options.alternate_global = true;
    QuantizedMatrix alternated = searched("nvfp4", w, 8, options);
    EXPECT_LE(sum(group_errors(alternated, w)), before * (1 + 1e-5));
  }
}

TEST_F(ScaleSearchTest, FusedMatricesShareTheSmallestGlobalScale) {
  const auto a = normal_values(4 * 64, 31);
  const auto b = normal_values(6 * 64, 32, 3.0);
  QuantizedMatrix ma = make_quantized_matrix(weight_format_from_name("nvfp4"), 4, 64);
  QuantizedMatrix mb = make_quantized_matrix(weight_format_from_name("nvfp4"), 6, 64);
  const ScaleProblem problems[] = {{&ma, a.data(), nullptr}, {&mb, b.data(), nullptr}};
  ScaleSearchOptions options;
  options.search = ScaleSearch::kAbsmax;
  choose_scales(problems, options, exec_);
  EXPECT_EQ(ma.global_scale, nvfp4_global_scale(max_abs(b)));
  EXPECT_EQ(ma.global_scale, mb.global_scale);
  options.search = ScaleSearch::kExhaustive;
  choose_scales(problems, options, exec_);
  EXPECT_EQ(ma.global_scale, mb.global_scale);
}

// Columns that matter more get less of the error.
TEST_F(ScaleSearchTest, ColumnWeightsShiftTheError) {
  const int64_t rows = 64, cols = 64;
  const auto w = normal_values(rows * cols, 33);
  std::vector<float> weights(64, 0.01f);
  for (std::size_t j = 0; j < 64; j += 4) weights[j] = 1;
  const QuantizedMatrix plain = searched("nvfp4", w, rows, {});
  const QuantizedMatrix weighted = searched("nvfp4", w, rows, {}, weights.data());
  EXPECT_LT(sum(group_errors(weighted, w, weights.data())),
            0.95 * sum(group_errors(plain, w, weights.data())));
}

TEST_F(ScaleSearchTest, ZerosAndBadValues) {
  for (const char* name : kAllFormats) {
    SCOPED_TRACE(name);
    std::vector<float> w(4 * 64, 0.0f);
    const QuantizedMatrix matrix = searched(name, w, 4, {});
    std::vector<float> decoded(w.size(), 1.0f);
    dequantize_rows(matrix, 0, 4, decoded.data());
    EXPECT_EQ(decoded, w);
    w[100] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_THROW(searched(name, w, 4, {}), Error);
  }
}

}  // namespace
}  // namespace lathe
