#include "compress/linear_group.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "quant/hadamard.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

class LinearGroup : public testing::Test {
 protected:
  static constexpr int64_t kCols = 96;
  OwnedExec owned_{2};
  Exec& exec_ = owned_.exec;

  InputStatistics statistics(uint64_t seed, int64_t tokens = 400) {
    auto x = normal_values(tokens * kCols, seed, 0.4);
    const auto direction = normal_values(3 * kCols, 77);
    const auto strength = normal_values(3 * tokens, seed + 1);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < kCols; ++j) {
        for (int64_t r = 0; r < 3; ++r) {
          x[static_cast<std::size_t>(t * kCols + j)] +=
              strength[static_cast<std::size_t>(3 * t + r)] *
              direction[static_cast<std::size_t>(r * kCols + j)];
        }
      }
    }
    InputStatistics out(kCols, true);
    out.add(x.data(), tokens, exec_);
    return out;
  }

  static std::vector<LinearTask> tasks() {
    std::vector<LinearTask> out;
    for (const int64_t rows : {40, 24}) {
      LinearTask task;
      task.module = str("linear of ", rows);
      task.weight = Tensor(DType::kF32, {rows, kCols});
      const auto w = normal_values(rows * kCols, static_cast<uint64_t>(rows), 0.05);
      std::memcpy(task.weight.data(), w.data(), w.size() * sizeof(float));
      out.push_back(std::move(task));
    }
    return out;
  }

  static QuantizeOptions options_for(const char* format) {
    return recommended_options(weight_format_from_name(format), QuantizeMethod::kMrGptq,
                               ActivationFormat::kNone);
  }

  double total_error(const QuantizeOptions& options, bool held_out = false) {
    auto group = tasks();
    InputStatistics calibration = statistics(1);
    InputStatistics other = statistics(9);
    double sum = 0;
    for (const LinearReport& report :
         quantize_group(group, &calibration, held_out ? &other : nullptr, options, true, exec_)) {
      sum += report.error;
    }
    return sum;
  }
};

TEST_F(LinearGroup, RefinementsAndSweepsLowerTheError) {
  for (const char* format : {"mxfp4", "nvfp4", "int4"}) {
    SCOPED_TRACE(format);
    QuantizeOptions options = options_for(format);
    options.refinements = 0;
    options.sweeps = 0;
    const double plain = total_error(options);
    options.refinements = 2;
    const double refined = total_error(options);
    options.sweeps = 3;
    const double swept = total_error(options);
    EXPECT_LE(refined, plain * (1 + 1e-5));
    EXPECT_LT(swept, refined);
  }
}

// What is reported for held-out tokens is the error on them, and the best candidate has the least.
TEST_F(LinearGroup, TheChosenCandidateHasTheLeastHeldOutError) {
  QuantizeOptions options = options_for("mxfp4");
  double least = 1e9;
  for (const int64_t block : {0, 16, 32}) {
    for (const double damping : {0.01, 0.3}) {
      options.hadamard = {block};
      options.damping = {damping};
      least = std::min(least, total_error(options, true));
    }
  }
  options.hadamard = {0, 16, 32, 64};  // 64 does not divide 96: left out
  options.damping = {0.01, 0.3};
  EXPECT_NEAR(total_error(options, true), least, 0.02 * least);
}

// The codes decode to the weights rotated by the block that is reported, and the group shares it
// and NVFP4's global scale.
TEST_F(LinearGroup, CodesBelongToTheReportedRotation) {
  QuantizeOptions options = options_for("nvfp4");
  options.hadamard = {0, 16, 32};
  auto group = tasks();
  const auto plain = tasks();
  InputStatistics calibration = statistics(1);
  InputStatistics held_out = statistics(9);
  const auto reports = quantize_group(group, &calibration, &held_out, options, true, exec_);
  EXPECT_EQ(reports[0].hadamard, reports[1].hadamard);
  EXPECT_EQ(group[0].quantized.global_scale, group[1].quantized.global_scale);
  for (std::size_t i = 0; i < group.size(); ++i) {
    const QuantizedMatrix& matrix = group[i].quantized;
    Tensor decoded(DType::kF32, {matrix.rows, matrix.cols});
    dequantize_rows(matrix, 0, matrix.rows, decoded.as<float>());
    hadamard_rows(decoded.as<float>(), matrix.rows, matrix.cols, reports[i].hadamard);
    double distance = 0, norm = 0;
    for (int64_t j = 0; j < decoded.num_elements(); ++j) {
      const double a = plain[i].weight.as<float>()[j];
      distance += (decoded.as<float>()[j] - a) * (decoded.as<float>()[j] - a);
      norm += a * a;
    }
    EXPECT_LT(distance / norm, 0.03);
  }
}

TEST_F(LinearGroup, WithoutCalibrationTheWeightsAloneAreRounded) {
  QuantizeOptions options = options_for("int4");
  options.method = QuantizeMethod::kRtn;
  auto group = tasks();
  const auto reports = quantize_group(group, nullptr, nullptr, options, false, exec_);
  for (const LinearReport& report : reports) {
    EXPECT_EQ(report.tokens, 0);
    EXPECT_EQ(report.damping, 0);
    EXPECT_GT(report.error, 0.002);
    EXPECT_LT(report.error, 0.012);
  }
}

TEST_F(LinearGroup, NoFittingRotationIsAnError) {
  QuantizeOptions options = options_for("mxfp4");
  for (const std::vector<int64_t>& blocks : {std::vector<int64_t>{64}, {64, 128}}) {
    options.hadamard = blocks;
    auto group = tasks();
    InputStatistics calibration = statistics(1);
    EXPECT_THROW(quantize_group(group, &calibration, nullptr, options, true, exec_), Error);
  }
}

}  // namespace
}  // namespace lathe
