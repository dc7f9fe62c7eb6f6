// Calibration on a GPU against calibration on the CPU, from the statistics to whole groups.
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/json.h"
#include "compress/coordinate_descent.h"
#include "compress/cuda_coordinate_descent.h"
#include "compress/cuda_gptq.h"
#include "compress/cuda_hessian_factor.h"
#include "compress/cuda_input_statistics.h"
#include "compress/cuda_layer_statistics.h"
#include "compress/cuda_linear_group.h"
#include "compress/cuda_rotation.h"
#include "compress/cuda_scale_search.h"
#include "quant/encode.h"
#include "quant/hadamard.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

constexpr double kEps = FLT_EPSILON / 2;  // unit roundoff of fp32

const char* const kAllFormats[] = {"mxfp4",  "mxfp4-fitted", "nvfp4", "int4", "nvint4",
                                   "mxint4", "int8",         "fp8",   "mxfp8"};

DeviceBuffer to_device(const std::vector<float>& values) {
  return DeviceBuffer::from_host(values.data(),
                                 static_cast<int64_t>(values.size() * sizeof(float)));
}

std::vector<float> to_host(const DeviceBuffer& buffer) {
  std::vector<float> values(static_cast<std::size_t>(buffer.size()) / sizeof(float));
  buffer.to_host(values.data(), buffer.size());
  return values;
}

std::vector<float> floats_of(const Buffer& buffer) {
  const auto* begin = buffer.as<float>();
  return {begin, begin + buffer.size() / static_cast<int64_t>(sizeof(float))};
}

std::vector<uint8_t> bytes_of(const Buffer& buffer) {
  const auto* begin = buffer.as<uint8_t>();
  return {begin, begin + buffer.size()};
}

uint8_t code_at(const QuantizedMatrix& matrix, int64_t row, int64_t col) {
  const uint8_t* codes = matrix.codes.as<uint8_t>() + row * matrix.code_row_bytes();
  if (element_bits(matrix.format.element) == 8) return codes[col];
  return col % 2 == 0 ? codes[col / 2] & 15 : codes[col / 2] >> 4;
}

int64_t count_different(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  EXPECT_EQ(a.size(), b.size());
  int64_t count = 0;
  for (std::size_t i = 0; i < a.size(); ++i) count += a[i] != b[i];
  return count;
}

// What calibration meets. Each has its own way to make fp32 hard.
enum class Inputs {
  kCorrelated,     // a few strong directions, as hidden states have them
  kDeadColumns,    // every fifth channel always 0
  kRankDeficient,  // half as many tokens as channels
  kDynamicRange,   // channels scaled from 1e-4 to 1e4
};
const Inputs kAllInputs[] = {Inputs::kCorrelated, Inputs::kDeadColumns, Inputs::kRankDeficient,
                             Inputs::kDynamicRange};

std::vector<float> make_inputs(Inputs kind, int64_t tokens, int64_t k, uint64_t seed) {
  const int64_t rank = std::max<int64_t>(2, k / 8);
  const auto basis = normal_values(rank * k, seed * 3 + 1);
  const auto strength = normal_values(tokens * rank, seed * 3 + 2);
  auto x = normal_values(tokens * k, seed * 3 + 3, 0.3);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < k; ++j) {
      float& value = x[static_cast<std::size_t>(t * k + j)];
      for (int64_t r = 0; r < rank; ++r) {
        value += strength[static_cast<std::size_t>(t * rank + r)] *
                 basis[static_cast<std::size_t>(r * k + j)];
      }
      if (kind == Inputs::kDeadColumns && j % 5 == 3) value = 0;
      if (kind == Inputs::kDynamicRange) {
        value *= static_cast<float>(
            std::pow(10.0, 8.0 * static_cast<double>(j) / static_cast<double>(k) - 4));
      }
    }
  }
  return x;
}

int64_t tokens_for(Inputs kind, int64_t k) {
  return kind == Inputs::kRankDeficient ? k / 2 : 3 * k;
}

class CudaCalibration : public testing::Test {
 protected:
  void SetUp() override { LATHE_NEEDS_GPU(); }

  OwnedExec owned_{4};
  Exec& exec_ = owned_.exec;

  Buffer hessian(Inputs kind, int64_t k, uint64_t seed = 1) {
    const int64_t tokens = tokens_for(kind, k);
    InputStatistics statistics(k, true);
    statistics.add(make_inputs(kind, tokens, k, seed).data(), tokens, exec_);
    return statistics.take_hessian(exec_);
  }
};

TEST_F(CudaCalibration, GramIsExactUpToTheRoundingOfItsSums) {
  for (const int64_t k : {1, 33, 200, 1100}) {
    SCOPED_TRACE(k);
    CudaInputStatistics device(k, true, {0, 16, 128});
    InputStatistics host(k, true);
    std::vector<float> all;
    float rotated[3] = {};
    for (const int64_t tokens : {1, 0, 37, 128}) {
      auto x = normal_values(tokens * k, static_cast<uint64_t>(tokens + k));
      for (std::size_t i = 0; i < x.size(); i += 3) x[i] *= 100;  // outlier channels, some shared
      const DeviceBuffer device_x = to_device(x);
      device.add(device_x.as<float>(), tokens, nullptr);
      cudaDeviceSynchronize();
      host.add(x.data(), tokens, exec_);
      all.insert(all.end(), x.begin(), x.end());
      rotated[0] = std::max(rotated[0], max_abs(x));
      for (const int i : {1, 2}) {
        const int64_t block = i == 1 ? 16 : 128;
        if (k % block != 0) continue;
        auto y = x;
        hadamard_rows(y.data(), tokens, k, block);
        rotated[i] = std::max(rotated[i], max_abs(y));
      }
    }
    const auto tokens = static_cast<int64_t>(all.size()) / k;
    EXPECT_EQ(device.tokens(), tokens);
    EXPECT_EQ(device.amax(), host.amax());
    // Sums of floats in double: the order changes the last bits of a double, seldom of a float.
    EXPECT_TRUE(all_close(device.mean_abs(), host.mean_abs(), 2 * kEps));
    EXPECT_EQ(device.rotated_amax(), std::vector<float>(rotated, rotated + 3));

    InputStatistics copy = device.to_host();
    EXPECT_EQ(copy.tokens(), tokens);
    EXPECT_EQ(copy.amax(), host.amax());
    EXPECT_EQ(copy.mean_abs(), device.mean_abs());
    const auto h = to_host(device.take_hessian());
    EXPECT_FALSE(device.has_gram());
    EXPECT_TRUE(same_bits(floats_of(copy.take_hessian(exec_)), h));

    int64_t wrong = 0;
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        double exact = 0;
        double magnitude = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          const double term = double{all[static_cast<std::size_t>(t * k + i)]} *
                              double{all[static_cast<std::size_t>(t * k + j)]};
          exact += term;
          magnitude += std::fabs(term);
        }
        const double factor = 2.0 / static_cast<double>(tokens);
        // A sum of `tokens` products rounds at most once for each (fused or not: twice), then the
        // factor and its own rounding.
        const double bound = factor * magnitude * kEps * static_cast<double>(2 * tokens + 3);
        const double actual = h[static_cast<std::size_t>(i * k + j)];
        wrong += !(std::fabs(actual - factor * exact) <= bound);
      }
    }
    EXPECT_EQ(wrong, 0);
  }
}

TEST_F(CudaCalibration, StatisticsRefuseWhatIsNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(5 * 40, 1.0f);
    x[3 * 40 + 17] = bad;
    CudaInputStatistics statistics(40, true);
    const DeviceBuffer device_x = to_device(x);
    statistics.add(device_x.as<float>(), 5, nullptr);
    try {
      statistics.take_hessian();
      ADD_FAILURE() << "accepted " << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(error.what()).find("channel 17"), std::string::npos) << error.what();
    }
  }
}

TEST_F(CudaCalibration, RotationsAreTheSameBits) {
  for (const int64_t block : {0, 16, 32, 64, 128}) {
    for (const int64_t k : {128, 384, 640}) {
      SCOPED_TRACE(testing::Message() << block << " in " << k);
      const auto x = normal_values(7 * k, 5);
      auto expected = x;
      hadamard_rows(expected.data(), 7, k, block);
      DeviceBuffer device_x = to_device(x);
      cuda_hadamard_rows(device_x.as<float>(), 7, k, block, nullptr);
      EXPECT_TRUE(same_bits(to_host(device_x), expected));

      Buffer h = hessian(Inputs::kCorrelated, k);
      DeviceBuffer device_h = DeviceBuffer::from_host(h.data(), h.size());
      rotate_hessian(h.as<float>(), k, block, exec_);
      cuda_rotate_hessian(device_h.as<float>(), k, block, nullptr);
      EXPECT_TRUE(same_bits(to_host(device_h), floats_of(h)));
    }
  }
  DeviceBuffer x(48 * sizeof(float));
  EXPECT_THROW(cuda_hadamard_rows(x.as<float>(), 1, 48, 32, nullptr), Error);
}

TEST_F(CudaCalibration, FactorMultipliesBackToTheHessian) {
  for (const Inputs kind : kAllInputs) {
    for (const int64_t k : {16, 130, 400}) {
      for (const ColumnOrder order : {ColumnOrder::kNatural, ColumnOrder::kActivation}) {
        SCOPED_TRACE(testing::Message() << "inputs " << static_cast<int>(kind) << " k " << k);
        const Buffer h = hessian(kind, k);
        const DeviceBuffer device_h = DeviceBuffer::from_host(h.data(), h.size());
        const HessianFactor expected = factor_hessian(h.as<float>(), k, order, 0.01, exec_);
        const CudaHessianFactor factor =
            cuda_factor_hessian(device_h.as<float>(), k, order, 0.01, nullptr);
        EXPECT_EQ(factor.order, expected.order);
        EXPECT_EQ(factor.damping, expected.damping);
        EXPECT_EQ(factor.added, expected.added);
        EXPECT_EQ(factor.escalations, expected.escalations);
        EXPECT_EQ(factor.dead_columns, expected.dead_columns);
        EXPECT_EQ(factor.dead_columns, kind == Inputs::kDeadColumns ? (k + 1) / 5 : 0);
        EXPECT_TRUE(same_bits(to_host(factor.device_pivot), factor.pivot));

        const std::vector<float> normalised = to_host(factor.normalised);
        const auto r = [&](int64_t i, int64_t c) {
          const double pivot = factor.pivot[static_cast<std::size_t>(c)];
          return i == c ? pivot : double{normalised[static_cast<std::size_t>(i * k + c)]} * pivot;
        };
        double mean = 0;
        for (int64_t j = 0; j < k; ++j) mean += double{h.as<float>()[j * k + j]};
        mean /= static_cast<double>(k);
        int64_t wrong = 0;
        for (int64_t i = 0; i < k; ++i) {
          for (int64_t j = i; j < k; ++j) {
            double product = 0;
            double magnitude = 0;
            for (int64_t c = j; c < k; ++c) {
              product += r(i, c) * r(j, c);
              magnitude += std::fabs(r(i, c) * r(j, c));
            }
            double wanted = h.as<float>()[int64_t{factor.order[static_cast<std::size_t>(i)]} * k +
                                          factor.order[static_cast<std::size_t>(j)]];
            if (i == j) wanted = (wanted == 0 ? mean : wanted) + factor.added;
            // Cholesky: |A - R R^T| <= gamma_(k+1) |R| |R^T| element by element (Higham, theorem
            // 10.3). Dividing by the pivot and multiplying by it again adds three roundings, the
            // diagonal two.
            const double bound = kEps * static_cast<double>(k + 6) * magnitude;
            wrong += !(std::fabs(product - wanted) <= bound);
          }
        }
        EXPECT_EQ(wrong, 0);
      }
    }
  }
}

// Whether a factorisation fails must not hang on the last bit here: the smallest eigenvalue is
// -0.5 of a mean of 1, so damping 0.01 and 0.1 fail and 1 works; or -50, which nothing repairs.
TEST_F(CudaCalibration, EscalatesTheDampingAsTheCpuDoes) {
  for (const float off_diagonal : {1.5f, 51.0f}) {
    std::vector<float> h(16 * 16, 0.0f);
    for (int64_t j = 0; j < 16; ++j) h[static_cast<std::size_t>(j * 17)] = 1;
    h[1] = h[16] = off_diagonal;
    const DeviceBuffer device_h = to_device(h);
    if (off_diagonal < 2) {
      const CudaHessianFactor factor =
          cuda_factor_hessian(device_h.as<float>(), 16, ColumnOrder::kNatural, 0.01, nullptr);
      const HessianFactor expected =
          factor_hessian(h.data(), 16, ColumnOrder::kNatural, 0.01, exec_);
      EXPECT_EQ(factor.escalations, 2);
      EXPECT_EQ(factor.escalations, expected.escalations);
      EXPECT_EQ(factor.damping, expected.damping);
    } else {
      try {
        cuda_factor_hessian(device_h.as<float>(), 16, ColumnOrder::kNatural, 0.01, nullptr);
        ADD_FAILURE() << "an indefinite matrix has no factor";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      }
    }
  }
}

TEST_F(CudaCalibration, RoundsAndDecodesToTheSameBits) {
  const int64_t rows = 37, cols = 192;
  auto w = normal_values(rows * cols, 8);
  for (int64_t j = 0; j < cols; ++j) {
    w[static_cast<std::size_t>(2 * cols + j)] = 0;  // scales 0
    w[static_cast<std::size_t>(3 * cols + j)] *= 1e-30f;
    w[static_cast<std::size_t>(4 * cols + j)] *= 1e20f;
  }
  const DeviceBuffer device_w = to_device(w);
  for (const char* name : kAllFormats) {
    SCOPED_TRACE(name);
    QuantizedMatrix matrix = quantize_absmax(weight_format_from_name(name), w.data(), rows, cols);
    CudaQuantizedMatrix device = upload(matrix);
    cuda_round_to_nearest(device, device_w.as<float>(), nullptr);
    const QuantizedMatrix back = download(device, nullptr);
    EXPECT_EQ(bytes_of(back.codes), bytes_of(matrix.codes));
    EXPECT_EQ(bytes_of(back.scales), bytes_of(matrix.scales));

    std::vector<float> d(w.size());
    dequantize_rows(matrix, 0, rows, d.data());
    for (std::size_t i = 0; i < d.size(); ++i) d[i] = w[i] - d[i];
    DeviceBuffer device_d(device_w.size());
    cuda_weight_error(device, device_w.as<float>(), device_d.as<float>(), nullptr);
    EXPECT_TRUE(same_bits(to_host(device_d), d));
  }
}

// Under scales of 1, all eighths: every tie of E2M1 and of the integers, and E4M3's up to 16;
// beyond the largest code, and both zeros.
TEST_F(CudaCalibration, TiesFallTheSameWay) {
  const int64_t rows = 5, cols = 32 * 32;
  std::vector<float> w;
  for (int64_t i = 0; i < rows * cols; ++i) w.push_back(static_cast<float>(i - 2600) / 8);
  w[0] = -0.0f;
  w[1] = 1e30f;
  w[2] = -1e30f;
  w[3] = std::numeric_limits<float>::denorm_min();
  const DeviceBuffer device_w = to_device(w);
  for (const char* name : kAllFormats) {
    SCOPED_TRACE(name);
    QuantizedMatrix matrix = make_quantized_matrix(weight_format_from_name(name), rows, cols);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < matrix.num_groups(); ++g) store_scale(matrix, row, g, 1);
    }
    CudaQuantizedMatrix device = upload(matrix);
    round_to_nearest(matrix, w.data(), exec_);
    cuda_round_to_nearest(device, device_w.as<float>(), nullptr);
    EXPECT_EQ(bytes_of(download(device, nullptr).codes), bytes_of(matrix.codes));
  }
}

TEST_F(CudaCalibration, OutputErrorAgrees) {
  const int64_t k = 320;
  const Buffer h = hessian(Inputs::kCorrelated, k);
  const DeviceBuffer device_h = DeviceBuffer::from_host(h.data(), h.size());
  for (const int64_t n : {1, 77, 4099}) {  // one piece, and a tail
    const auto d = normal_values(n * k, 3);
    const DeviceBuffer device_d = to_device(d);
    const double expected = output_error(d.data(), n, h.as<float>(), k, exec_);
    // fp32 rounds the products of a row with H: k terms whose magnitudes are some times the sum.
    EXPECT_NEAR(cuda_output_error(device_d.as<float>(), n, device_h.as<float>(), k, nullptr),
                expected, 2 * kEps * static_cast<double>(k) * expected);
    double sum = 0;
    for (const float x : d) sum += double{x} * double{x};
    EXPECT_NEAR(cuda_output_error(device_d.as<float>(), n, nullptr, k, nullptr), sum, 1e-12 * sum);
  }
}

// Given equal factors, the two column loops differ by the rounding of their targets only: up to the
// first code that differs in a row, its targets must agree within the bound of an fp32 sum, which
// makes that code a near-tie; and so must the errors of the rows that agree throughout.
TEST_F(CudaCalibration, GptqDiffersAtNearTiesOnly) {
  const int64_t rows = 96;
  int64_t rows_compared = 0;
  int64_t rows_with_ties = 0;
  for (const Inputs kind : kAllInputs) {
    for (const int64_t k : {64, 160, 416}) {
      const Buffer h = hessian(kind, k);
      for (const char* name : kAllFormats) {
        const ColumnOrder order = k == 160 ? ColumnOrder::kNatural : ColumnOrder::kActivation;
        SCOPED_TRACE(testing::Message()
                     << name << " inputs " << static_cast<int>(kind) << " k " << k);
        const HessianFactor factor = factor_hessian(h.as<float>(), k, order, 0.01, exec_);
        const auto w = normal_values(rows * k, 4);
        QuantizedMatrix matrix = make_quantized_matrix(weight_format_from_name(name), rows, k);
        const ScaleProblem problem{&matrix, w.data(), nullptr};
        choose_scales({&problem, 1}, {}, exec_);
        CudaQuantizedMatrix device = upload(matrix);

        std::vector<float> targets(w.size());
        const GptqResult expected = gptq(matrix, w.data(), factor, exec_, 128, targets.data());
        const DeviceBuffer device_w = to_device(w);
        DeviceBuffer device_targets = to_device(std::vector<float>(w.size(), NAN));
        const GptqResult actual = cuda_gptq(device, device_w.as<float>(), upload_factor(factor),
                                            nullptr, device_targets.as<float>());
        const std::vector<float> other_targets = to_host(device_targets);
        const QuantizedMatrix back = download(device, nullptr);
        EXPECT_EQ(bytes_of(back.scales), bytes_of(matrix.scales));

        std::vector<float> d(w.size());
        dequantize_rows(matrix, 0, rows, d.data());
        for (std::size_t i = 0; i < d.size(); ++i) d[i] = w[i] - d[i];
        int64_t wrong = 0;
        int64_t ties = 0;
        for (int64_t row = 0; row < rows; ++row) {
          double error_bound = 0;
          bool tie = false;
          for (int64_t c = 0; c < k && !tie; ++c) {
            const int64_t col = factor.order[static_cast<std::size_t>(c)];
            const auto at = static_cast<std::size_t>(row * k + col);
            double magnitude = std::fabs(w[at]);
            for (int64_t i = 0; i < c; ++i) {
              magnitude += std::fabs(double{d[static_cast<std::size_t>(
                                         row * k + factor.order[static_cast<std::size_t>(i)])]} *
                                     double{factor.normalised.as<float>()[i * k + c]});
            }
            // c products and additions on each side, in whatever order.
            const double bound = 2 * kEps * static_cast<double>(c + 1) * magnitude;
            const double distance = std::fabs(double{targets[at]} - double{other_targets[at]});
            wrong += !(distance <= bound);
            tie = code_at(matrix, row, col) != code_at(back, row, col);
            const double pivot = factor.pivot[static_cast<std::size_t>(c)];
            const double residual =
                std::fabs(double{targets[at]} - (double{w[at]} - double{d[at]}));
            // Also the rounding of d = w - w^ to fp32, once from the decoded double, once from the
            // product of floats.
            const double moved = bound + 4 * kEps * (std::fabs(w[at]) + std::fabs(d[at]));
            error_bound += pivot * pivot * moved * (2 * residual + moved) +
                           factor.added * moved * (2 * std::fabs(d[at]) + moved);
          }
          ties += tie;
          if (tie) continue;
          const auto r = static_cast<std::size_t>(row);
          wrong += !(std::fabs(actual.row_errors[r] - expected.row_errors[r]) <=
                     error_bound + 1e-9 * expected.row_errors[r]);
        }
        EXPECT_EQ(wrong, 0);
        // Another code at a tie is as good there, and what follows is another rounding of the same
        // row: a few rows may end some per cent better or worse, in sum next to nothing.
        EXPECT_NEAR(actual.output_error, expected.output_error, 0.01 * expected.output_error);
        rows_compared += rows;
        rows_with_ties += ties;
      }
    }
  }
  RecordProperty("rows", static_cast<int>(rows_compared));
  RecordProperty("rows_with_ties", static_cast<int>(rows_with_ties));
  std::printf("near-ties that fell differently: %d of %d rows\n", static_cast<int>(rows_with_ties),
              static_cast<int>(rows_compared));
  // A target is off by some 1e-6 of a step, a row has some hundred: one row in 10^4, and more where
  // the dynamic range spends the digits.
  EXPECT_LE(rows_with_ties * 50, rows_compared);
}

TEST_F(CudaCalibration, GptqReproducesTheGoldenBytes) {
  const Json golden = read_json_file(golden_path("quant/mr-gptq-vectors.json"))["gptq"];
  const auto rows = golden["rows"].get<int64_t>();
  const auto cols = golden["cols"].get<int64_t>();
  int num_results = 0;
  for (const auto& [name, expected] : golden["cases"].items()) {
    auto w = golden["W_times_1024"].get<std::vector<float>>();
    auto x = golden["X_times_64"].get<std::vector<float>>();
    for (float& v : w) v /= 1024;
    for (float& v : x) v /= 64;
    const auto block = expected["rot"].get<int64_t>();
    DeviceBuffer device_w = to_device(w);
    const DeviceBuffer device_x = to_device(x);
    cuda_hadamard_rows(device_w.as<float>(), rows, cols, block, nullptr);
    CudaInputStatistics statistics(cols, true);
    statistics.add(device_x.as<float>(), static_cast<int64_t>(x.size()) / cols, nullptr);
    DeviceBuffer h = statistics.take_hessian();
    cuda_rotate_hessian(h.as<float>(), cols, block, nullptr);
    const bool nv = expected["format"].get<std::string>() == "nvfp4";
    CudaQuantizedMatrix matrix =
        make_cuda_quantized_matrix(weight_format_from_name(nv ? "nvfp4" : "mxfp4"), rows, cols);
    const CudaScaleProblem problem{&matrix, device_w.as<float>(), nullptr};
    ScaleSearchOptions options;
    options.search = ScaleSearch::kAbsmax;
    options.mx_rule = MxScaleRule::kAbsmaxX3;
    cuda_choose_scales({&problem, 1}, options, nullptr);
    for (const bool activation : {false, true}) {
      SCOPED_TRACE(name);
      const ColumnOrder order = activation ? ColumnOrder::kActivation : ColumnOrder::kNatural;
      const CudaHessianFactor factor =
          cuda_factor_hessian(h.as<float>(), cols, order, 0.01, nullptr);
      const Json& wanted = expected[activation ? "gptq_activation" : "gptq_default"];
      const double loss = wanted["loss"].get<double>();
      EXPECT_NEAR(cuda_gptq(matrix, device_w.as<float>(), factor, nullptr).output_error, loss,
                  1e-3 * loss);
      const QuantizedMatrix back = download(matrix, nullptr);
      for (int64_t row = 0; row < rows; ++row) {
        const auto hex = wanted["bytes_rows"][static_cast<std::size_t>(row)].get<std::string>();
        for (int64_t i = 0; i < cols / 2; ++i) {
          const int byte = std::stoi(hex.substr(static_cast<std::size_t>(2 * i), 2), nullptr, 16);
          // The file does not keep the sign of zero (gptq_test.cpp says why).
          const auto plain = [](int code) { return code == 8 ? 0 : code; };
          EXPECT_EQ(plain(code_at(back, row, 2 * i)), plain(byte & 15));
          EXPECT_EQ(plain(code_at(back, row, 2 * i + 1)), plain(byte >> 4));
        }
      }
      ++num_results;
    }
  }
  EXPECT_EQ(num_results, 8);
}

// Scales and global scales of every search; `weighted`: with column weights. Where the CPU's search
// is fp32 the bytes are the same; where it is double, only its last bits may tell candidates apart.
TEST_F(CudaCalibration, ScalesAreTheSame) {
  const int64_t rows = 64, cols = 512;
  auto w = normal_values(rows * cols, 12);
  auto more = normal_values(32 * cols, 13, 3.0);
  for (int64_t j = 0; j < 32; ++j) w[static_cast<std::size_t>(5 * cols + j)] = 0;
  w[7 * cols + 100] = 300;
  std::vector<float> column_weights = normal_values(cols, 14);
  for (float& x : column_weights) x = x * x + 0.01f;
  const DeviceBuffer device_w = to_device(w);
  const DeviceBuffer device_more = to_device(more);
  const DeviceBuffer device_weights = to_device(column_weights);
  const auto compare = [&](const char* name, const ScaleSearchOptions& options, bool weighted,
                           double allowed) {
    SCOPED_TRACE(testing::Message() << name << " " << scale_search_name(options.search) << " "
                                    << mx_scale_rule_name(options.mx_rule) << " norm "
                                    << options.norm << " weighted " << weighted);
    const WeightFormat format = weight_format_from_name(name);
    QuantizedMatrix host[2] = {make_quantized_matrix(format, rows, cols),
                               make_quantized_matrix(format, 32, cols)};
    CudaQuantizedMatrix device[2] = {make_cuda_quantized_matrix(format, rows, cols),
                                     make_cuda_quantized_matrix(format, 32, cols)};
    const ScaleProblem problems[2] = {
        {&host[0], w.data(), weighted ? column_weights.data() : nullptr},
        {&host[1], more.data(), weighted ? column_weights.data() : nullptr}};
    const float* device_column_weights = weighted ? device_weights.as<float>() : nullptr;
    const CudaScaleProblem device_problems[2] = {
        {&device[0], device_w.as<float>(), device_column_weights},
        {&device[1], device_more.as<float>(), device_column_weights}};
    const ScaleSearchResult expected = choose_scales(problems, options, exec_);
    const ScaleSearchResult actual = cuda_choose_scales(device_problems, options, nullptr);
    EXPECT_EQ(actual.global_rounds, expected.global_rounds);
    EXPECT_NEAR(actual.error, expected.error, 1e-6 * expected.error);
    for (int i = 0; i < 2; ++i) {
      const QuantizedMatrix back = download(device[i], nullptr);
      EXPECT_EQ(back.global_scale, host[i].global_scale);
      EXPECT_EQ(back.log_alpha, host[i].log_alpha);
      EXPECT_EQ(back.log_beta, host[i].log_beta);
      EXPECT_LE(
          static_cast<double>(count_different(bytes_of(back.scales), bytes_of(host[i].scales))),
          allowed * static_cast<double>(host[i].scales.size()));
    }
  };
  for (const char* name : kAllFormats) {
    // int8 refits its scale in double, and keeps it in fp32: its last bit may differ.
    const double allowed = std::string_view(name) == "int8" ? 0.05 : 0;
    for (const bool weighted : {false, true}) {
      for (const bool alternate : {false, true}) {
        ScaleSearchOptions options;
        options.alternate_global = alternate;
        compare(name, options, weighted, allowed);
      }
      ScaleSearchOptions options;
      options.norm = 2.4;
      compare(name, options, weighted, allowed);
      options.search = ScaleSearch::kPaperGrid;
      compare(name, options, weighted, 0.001);
    }
    ScaleSearchOptions options;
    options.search = ScaleSearch::kAbsmax;
    compare(name, options, false, 0);
  }
  for (const MxScaleRule rule :
       {MxScaleRule::kOcpFloor, MxScaleRule::kCtEven, MxScaleRule::kCeil, MxScaleRule::kAbsmaxX3,
        MxScaleRule::kPaperEq1, MxScaleRule::kQuest, MxScaleRule::kMsePow2,
        MxScaleRule::kMsePow2X3}) {
    for (const ScaleSearch search :
         {ScaleSearch::kAbsmax, ScaleSearch::kPaperGrid, ScaleSearch::kExhaustive}) {
      ScaleSearchOptions options;
      options.search = search;
      options.mx_rule = rule;
      compare("mxfp4", options, false, search == ScaleSearch::kPaperGrid ? 0.001 : 0);
    }
  }
}

TEST_F(CudaCalibration, ScaleSearchRefusesWhatIsNotFinite) {
  std::vector<float> w(4 * 64, 1.0f);
  w[3 * 64 + 40] = std::numeric_limits<float>::quiet_NaN();
  const DeviceBuffer device_w = to_device(w);
  CudaQuantizedMatrix matrix = make_cuda_quantized_matrix(weight_format_from_name("nvfp4"), 4, 64);
  const CudaScaleProblem problem{&matrix, device_w.as<float>(), nullptr};
  try {
    cuda_choose_scales({&problem, 1}, {}, nullptr);
    ADD_FAILURE() << "accepted a NaN";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("[3, 32"), std::string::npos) << error.what();
  }
}

TEST_F(CudaCalibration, CoordinateDescentLowersTheErrorAsMuch) {
  const int64_t rows = 80, k = 224;
  for (const Inputs kind : kAllInputs) {
    const Buffer h = hessian(kind, k);
    const DeviceBuffer device_h = DeviceBuffer::from_host(h.data(), h.size());
    const HessianFactor factor =
        factor_hessian(h.as<float>(), k, ColumnOrder::kActivation, 0.01, exec_);
    for (const char* name : kAllFormats) {
      SCOPED_TRACE(testing::Message() << name << " inputs " << static_cast<int>(kind));
      const auto w = normal_values(rows * k, 21);
      QuantizedMatrix matrix = quantize_absmax(weight_format_from_name(name), w.data(), rows, k);
      const double before = gptq(matrix, w.data(), factor, exec_).output_error;
      CudaQuantizedMatrix device = upload(matrix);
      const DeviceBuffer device_w = to_device(w);
      const int sweeps =
          coordinate_descent(matrix, w.data(), h.as<float>(), factor.added, 4, exec_);
      const int device_sweeps = cuda_coordinate_descent(
          device, device_w.as<float>(), device_h.as<float>(), factor.added, 4, nullptr);
      EXPECT_NEAR(device_sweeps, sweeps, 1);
      const QuantizedMatrix back = download(device, nullptr);
      const auto error_of = [&](const QuantizedMatrix& of) {
        std::vector<float> d(w.size());
        dequantize_rows(of, 0, rows, d.data());
        for (std::size_t i = 0; i < d.size(); ++i) d[i] = w[i] - d[i];
        double damping = 0;
        for (const float x : d) damping += factor.added * double{x} * double{x};
        return output_error(d.data(), rows, h.as<float>(), k, exec_) + damping;
      };
      const double expected = error_of(matrix);
      EXPECT_NEAR(error_of(back), expected, 0.01 * expected);
      EXPECT_GT(before, 0);
    }
  }
}

class CudaGroup : public CudaCalibration {
 protected:
  static constexpr int64_t kCols = 192;

  static std::vector<LinearTask> tasks() {
    std::vector<LinearTask> out;
    for (const int64_t rows : {64, 40}) {
      LinearTask task;
      task.module = str("linear of ", rows);
      task.weight = Tensor(DType::kF32, {rows, kCols});
      const auto w = normal_values(rows * kCols, static_cast<uint64_t>(rows), 0.05);
      std::memcpy(task.weight.data(), w.data(), w.size() * sizeof(float));
      out.push_back(std::move(task));
    }
    return out;
  }

  InputStatistics statistics(uint64_t seed) {
    InputStatistics out(kCols, true);
    out.add(make_inputs(Inputs::kCorrelated, 500, kCols, seed).data(), 500, exec_);
    return out;
  }
};

// Every path through the group: rounding, GPTQ, choices by held-out error, refinements, sweeps.
TEST_F(CudaGroup, AgreesWithTheCpu) {
  struct Case {
    const char* format;
    QuantizeMethod method;
    void (*change)(QuantizeOptions&);
    bool held_out;
  };
  const Case cases[] = {
      {"mxfp4", QuantizeMethod::kMrGptq, [](QuantizeOptions&) {}, false},
      {"nvfp4", QuantizeMethod::kMrGptq, [](QuantizeOptions&) {}, false},
      {"int4", QuantizeMethod::kGptq, [](QuantizeOptions&) {}, false},
      {"fp8", QuantizeMethod::kMrGptq, [](QuantizeOptions&) {}, false},
      {"nvfp4", QuantizeMethod::kRtn, [](QuantizeOptions&) {}, false},
      {"mxfp4", QuantizeMethod::kMrGptq,
       [](QuantizeOptions& options) {
         options.hadamard = {0, 32, 128, 64};  // 128 does not divide 192
         options.damping = {0.01, 0.1};
       },
       true},
      {"nvfp4", QuantizeMethod::kMrGptq,
       [](QuantizeOptions& options) {
         options.refinements = 2;
         options.sweeps = 3;
         options.column_weights = ColumnWeights::kPivot;
       },
       false},
      {"mxfp4-fitted", QuantizeMethod::kMrGptq,
       [](QuantizeOptions& options) {
         options.refinements = 1;
         options.column_weights = ColumnWeights::kDiagonal;
       },
       true},
  };
  for (const Case& c : cases) {
    QuantizeOptions options =
        recommended_options(weight_format_from_name(c.format), c.method, ActivationFormat::kNone);
    c.change(options);
    SCOPED_TRACE(settings_text(options));
    const bool use_gptq = options.uses_gptq();
    InputStatistics calibration = statistics(1);
    InputStatistics other = statistics(9);
    auto host_tasks = tasks();
    const auto expected = quantize_group(host_tasks, &calibration, c.held_out ? &other : nullptr,
                                         options, use_gptq, exec_);
    calibration = statistics(1);
    other = statistics(9);
    Exec on_gpu = exec_;
    on_gpu.cuda_device = 0;
    auto device_tasks = tasks();
    const auto actual = quantize_group(device_tasks, &calibration, c.held_out ? &other : nullptr,
                                       options, use_gptq, on_gpu);
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i) {
      EXPECT_EQ(actual[i].module, expected[i].module);
      EXPECT_EQ(actual[i].tokens, expected[i].tokens);
      EXPECT_EQ(actual[i].hadamard, expected[i].hadamard);
      EXPECT_EQ(actual[i].damping, expected[i].damping);
      EXPECT_EQ(actual[i].rtn_fallback, expected[i].rtn_fallback);
      EXPECT_NEAR(actual[i].rtn_error, expected[i].rtn_error,
                  1e-4 * std::fabs(expected[i].rtn_error));
      EXPECT_NEAR(actual[i].error, expected[i].error, 0.02 * expected[i].error);
      const QuantizedMatrix& a = device_tasks[i].quantized;
      const QuantizedMatrix& b = host_tasks[i].quantized;
      EXPECT_EQ(a.global_scale, b.global_scale);
      // Near-ties, and what follows them in their rows: not one row in ten.
      const int64_t different = count_different(bytes_of(a.codes), bytes_of(b.codes));
      EXPECT_LE(different * 10, a.codes.size());
      if (!use_gptq) {
        EXPECT_EQ(different, 0);
      }
    }
  }
}

// Statistics that were collected on the device, and the same ones after a trip through the host.
TEST_F(CudaGroup, TakesStatisticsFromTheDevice) {
  const auto x = make_inputs(Inputs::kCorrelated, 500, kCols, 1);
  const DeviceBuffer device_x = to_device(x);
  CudaInputStatistics statistics(kCols, true);
  statistics.add(device_x.as<float>(), 500, nullptr);
  InputStatistics host = statistics.to_host();
  QuantizeOptions options = recommended_options(weight_format_from_name("nvfp4"),
                                                QuantizeMethod::kMrGptq, ActivationFormat::kNone);
  Exec on_gpu = exec_;
  on_gpu.cuda_device = 0;
  auto first = tasks();
  cuda_quantize_group(first, cuda_group_input(&statistics, nullptr), options, true, on_gpu);
  auto second = tasks();
  quantize_group(second, &host, nullptr, options, true, on_gpu);
  for (std::size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(bytes_of(first[i].quantized.codes), bytes_of(second[i].quantized.codes));
    EXPECT_EQ(bytes_of(first[i].quantized.scales), bytes_of(second[i].quantized.scales));
  }
}

// Large enough that cuBLAS takes its big kernels and cuts sums into pieces.
TEST_F(CudaGroup, IsTheSameOnASecondRun) {
  const int64_t rows = 600, k = 1024, tokens = 1500;
  const DeviceBuffer x = to_device(normal_values(tokens * k, 31));
  QuantizeOptions options = recommended_options(weight_format_from_name("nvfp4"),
                                                QuantizeMethod::kMrGptq, ActivationFormat::kNone);
  options.sweeps = 2;
  Exec on_gpu = exec_;
  on_gpu.cuda_device = 0;
  std::vector<std::vector<uint8_t>> results;
  for (int run = 0; run < 2; ++run) {
    CudaInputStatistics statistics(k, true);
    statistics.add(x.as<float>(), tokens, nullptr);
    std::vector<LinearTask> group(1);
    group[0].module = "linear";
    group[0].weight = Tensor(DType::kF32, {rows, k});
    const auto w = normal_values(rows * k, 32);
    std::memcpy(group[0].weight.data(), w.data(), w.size() * sizeof(float));
    const auto reports =
        cuda_quantize_group(group, cuda_group_input(&statistics, nullptr), options, true, on_gpu);
    EXPECT_LT(reports[0].error, reports[0].rtn_error);
    results.push_back(bytes_of(group[0].quantized.codes));
    results.push_back(bytes_of(group[0].quantized.scales));
  }
  EXPECT_EQ(results[0], results[2]);
  EXPECT_EQ(results[1], results[3]);
}

TEST_F(CudaCalibration, LayerStatisticsAreSortedAsOnTheCpu) {
  const int64_t k = 96;
  CollectOptions options;
  options.kinds = {LinearKind::kQkv, LinearKind::kDown};
  options.held_out_every = 2;
  options.amax_blocks = {0, 32, 128};
  const auto x = normal_values(20 * k, 41);
  const auto y = normal_values(20 * k, 42, 5.0);
  const DeviceBuffer device_x = to_device(x);
  const DeviceBuffer device_y = to_device(y);
  LayerStatistics statistics;
  const auto add = [&](bool held_out, LinearKind kind, int64_t expert, const DeviceBuffer& input,
                       int64_t rows) {
    add_cuda_input(statistics, options, held_out, kind, expert, input.as<float>(), rows, k,
                   nullptr);
  };
  add(false, LinearKind::kQkv, -1, device_x, 20);
  add(true, LinearKind::kQkv, -1, device_y, 20);
  add(false, LinearKind::kDown, 3, device_y, 7);
  add(false, LinearKind::kO, -1, device_y, 20);  // not asked for
  finish_cuda_inputs(statistics);
  EXPECT_EQ(statistics.inputs.size(), 2u);
  LayerStatistics::Input* qkv = statistics.find(LinearKind::kQkv, -1);
  LayerStatistics::Input* down = statistics.find(LinearKind::kDown, 3);
  ASSERT_TRUE(qkv != nullptr && down != nullptr);
  EXPECT_EQ(qkv->tokens(), 20);
  EXPECT_EQ(down->tokens(), 7);
  auto rotated = y;
  hadamard_rows(rotated.data(), 20, k, 32);
  EXPECT_EQ(qkv->rotated_amax, (std::vector<float>{max_abs(y), max_abs(rotated), 0}));
  EXPECT_EQ(qkv->cuda_held_out->tokens(), 20);
  const std::vector<float> amax = qkv->cuda_calibration->amax();
  bring_to_host(statistics);
  EXPECT_FALSE(qkv->cuda_calibration.has_value());
  EXPECT_EQ(qkv->tokens(), 20);
  EXPECT_EQ(qkv->calibration.amax(), amax);
  EXPECT_TRUE(qkv->calibration.has_gram() && qkv->held_out->has_gram());

  // A broken input is reported at the end of the pass.
  LayerStatistics broken;
  std::vector<float> bad = x;
  bad[5] = std::numeric_limits<float>::quiet_NaN();
  const DeviceBuffer device_bad = to_device(bad);
  add_cuda_input(broken, options, true, LinearKind::kQkv, -1, device_bad.as<float>(), 20, k,
                 nullptr);
  EXPECT_THROW(finish_cuda_inputs(broken), Error);
}

}  // namespace
}  // namespace lathe
