// Linear layers of few rows with 8-bit weights on the GPU, against dequantize_rows() and sums in
// double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "kernels/linear/linear_w8_small_sm90.h"
#include "quant/encode.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr int kHopperSms = 132;

struct Format {
  const char* name;
  WeightFormat format;
};
const Format kFormats[] = {
    {"int8 in groups", {ElementType::kInt8, ScaleType::kBF16, 32}},
    {"int8", {ElementType::kInt8, ScaleType::kF32, 0}},
    {"fp8", {ElementType::kE4M3, ScaleType::kF32, 0}},
    {"mxfp8", {ElementType::kE4M3, ScaleType::kE8M0, 32}},
};

// Every code but NaN, with scales that vary from group to group and down to zeros.
QuantizedMatrix random_matrix(const WeightFormat& format, int64_t n, int64_t k, uint64_t seed) {
  const auto w = normal_values(n * k, seed, 0.1);
  QuantizedMatrix matrix = quantize_absmax(format, w.data(), n, k);
  auto* codes = matrix.codes.as<uint8_t>();
  for (int64_t i = 0; i < n * k; i += 7) {
    const auto code = static_cast<uint8_t>(i / 7 + static_cast<int64_t>(seed));
    const bool is_nan = format.element == ElementType::kE4M3 && (code & 127) == 127;
    codes[i] = is_nan ? uint8_t{0x80} : code;
  }
  if (format.scale == ScaleType::kE8M0) {
    auto* scales = matrix.scales.as<uint8_t>();
    for (int64_t i = 0; i < matrix.scales.size(); ++i) {
      scales[i] = static_cast<uint8_t>(scales[i] + i % 7 - 3);
    }
    scales[0] = 0;  // 2^-127, subnormal as fp32
  }
  return matrix;
}

// One problem with its inputs on the device.
struct Problem {
  int64_t m, n, k;
  QuantizedMatrix matrix;
  std::vector<float> w, x, x_scales, row_scales, bias;
  DeviceBuffer codes, scales;
  DeviceArray<uint16_t> x_device;
  DeviceArray<float> x_scales_device, row_scales_device, bias_device;

  Problem(const WeightFormat& format, int64_t rows, int64_t outputs, int64_t inputs, uint64_t seed)
      : m(rows),
        n(outputs),
        k(inputs),
        matrix(random_matrix(format, n, k, seed + 4)),
        w(static_cast<std::size_t>(n * k)),
        x(from_bf16(to_bf16(normal_values(m * k, seed)))),
        x_scales(normal_values(m, seed + 1)),
        row_scales(normal_values(n, seed + 2)),
        bias(normal_values(n, seed + 3)),
        codes(DeviceBuffer::from_host(matrix.codes.data(), matrix.codes.size())),
        scales(DeviceBuffer::from_host(matrix.scales.data(), matrix.scales.size())),
        x_device(to_bf16(x)),
        x_scales_device(x_scales),
        row_scales_device(row_scales),
        bias_device(bias) {
    dequantize_rows(matrix, 0, n, w.data());
  }
};

// y of rows [first, first + count) of x; checks that what lies between rows is left alone.
template <typename T>
std::vector<T> run(Problem& p, const W8SmallConfig& config, bool extras, int64_t first,
                   int64_t count) {
  W8Matrix w;
  w.element = p.matrix.format.element;
  w.scale = p.matrix.format.scale;
  w.group_size = p.matrix.format.group_size;
  w.n = p.n;
  w.k = p.k;
  w.codes = p.codes.data();
  w.scales = p.scales.data();
  if (extras) {
    w.row_scales = p.row_scales_device.data();
    w.bias = p.bias_device.data();
  }
  const int64_t stride = p.n + 3;
  DeviceArray<T> y(count * stride);
  const CudaLinearInput input{CudaElement::kBF16, p.x_device.data() + first * p.k,
                              extras ? p.x_scales_device.data() + first : nullptr, count, p.k};
  const CudaLinearOutput output{sizeof(T) == 4 ? CudaElement::kF32 : CudaElement::kBF16, y.data(),
                                stride};
  linear_w8_small_sm90(w, input, output, config, nullptr);
  const auto padded = y.host();
  std::vector<T> result;
  for (int64_t t = 0; t < count; ++t) {
    result.insert(result.end(), padded.begin() + t * stride, padded.begin() + t * stride + p.n);
    for (int64_t i = p.n; i < stride; ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, &padded[static_cast<std::size_t>(t * stride + i)], sizeof(T));
      EXPECT_EQ(bits, sizeof(T) == 4 ? 0xffffffffu : 0xffffu);
    }
  }
  return result;
}

// Codes are exact in bf16 and products of bf16 in fp32. One instruction adds 16 of them to a sum,
// each cut to 2^-24 of the largest: so k products leave at most (k + k / 16) 2^-24 of the sum of
// magnitudes. A group's scale, its addition, the parts along k, three factors (one of which
// dequantize_rows() rounds too) and the bias are each one rounding in fp32.
void expect_right(const Problem& p, bool extras, const std::vector<float>& y, int split,
                  double output_rounding, int64_t column_step) {
  for (int64_t t = 0; t < p.m; ++t) {
    for (int64_t j = 0; j < p.n; j += column_step) {
      double sum = 0, magnitudes = 0;
      const float* x = p.x.data() + t * p.k;
      const float* w = p.w.data() + j * p.k;
      for (int64_t i = 0; i < p.k; ++i) {
        const double product = double{x[i]} * double{w[i]};
        sum += product;
        magnitudes += std::fabs(product);
      }
      const auto row = static_cast<std::size_t>(j), token = static_cast<std::size_t>(t);
      const double factor = extras ? double{p.x_scales[token]} * double{p.row_scales[row]} : 1.0;
      const double bias = extras ? double{p.bias[row]} : 0.0;
      const double expected = sum * factor + bias;
      const double terms =
          static_cast<double>(p.k) * 1.0625 + 2.0 * static_cast<double>(p.k) / 32 + split + 6;
      const double tolerance = std::fabs(factor) * magnitudes * terms * 0x1p-24 +
                               std::fabs(bias) * 0x1p-22 + std::fabs(expected) * output_rounding;
      const double got = y[static_cast<std::size_t>(t * p.n + j)];
      ASSERT_TRUE(std::fabs(got - expected) <= tolerance)
          << "row " << t << " column " << j << ": " << got << ", expected " << expected << " +- "
          << tolerance;
    }
  }
}

TEST(LinearW8Small, MatchesTheReferenceForEveryNumberOfRows) {
  LATHE_NEEDS_GPU();
  for (const auto& [name, format] : kFormats) {
    Problem p(format, 64, 131, 448, 10);
    for (int64_t m = 1; m <= 64; ++m) {
      SCOPED_TRACE(testing::Message() << name << " m=" << m);
      const auto config = choose_w8_small_config(m, p.n, p.k, kHopperSms);
      p.m = m;
      const bool extras = m % 2 == 1;
      expect_right(p, extras, run<float>(p, config, extras, 0, m), config.split * config.cluster,
                   0x1p-23, 1);
      expect_right(p, extras, from_bf16(run<uint16_t>(p, config, extras, 0, m)),
                   config.split * config.cluster, 0x1p-8, 1);
      if (HasFatalFailure()) return;
    }
  }
}

// Odd n, k that are no multiples of 128 or 64, blocks that go over their rows several times.
TEST(LinearW8Small, MatchesTheReferenceForEverySplit) {
  LATHE_NEEDS_GPU();
  const struct {
    int64_t m, n, k;
  } sizes[] = {{3, 64, 32},     {9, 1, 64},      {17, 200, 96},    {64, 65, 704},  {8, 4097, 576},
               {16, 9001, 320}, {33, 701, 4096}, {1, 1000, 14336}, {64, 513, 2080}};
  for (const auto& size : sizes) {
    for (const auto& [name, format] : kFormats) {
      Problem p(format, size.m, size.n, size.k, 20);
      for (const int shape : {11, 12, 14, 18, 21, 22, 28, 41, 42, 81, 84}) {
        const int cluster = shape / 10, split = shape % 10;
        // One block a multiprocessor, two (some then have no rows), and long runs of rows.
        for (const int clusters : {kHopperSms, 2 * kHopperSms, 3}) {
          auto config = w8_small_config(p.m, p.n, split, cluster, kHopperSms);
          if (config.stages == 0) continue;
          config.blocks = clusters == 3 ? std::min(config.blocks, 3 * cluster) : clusters * cluster;
          SCOPED_TRACE(testing::Message() << name << ' ' << p.m << " x " << p.n << " x " << p.k
                                          << ": " << to_string(config));
          const int64_t step = std::max<int64_t>(1, p.m * p.n * p.k / 2000000) | 1;
          expect_right(p, true, run<float>(p, config, true, 0, p.m), split * cluster, 0x1p-23,
                       step);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(LinearW8Small, ARowDoesNotDependOnTheOthers) {
  LATHE_NEEDS_GPU();
  for (const auto& [name, format] : kFormats) {
    for (const int64_t m : {8, 16, 32, 64}) {
      SCOPED_TRACE(testing::Message() << name << " m=" << m);
      Problem p(format, m, 520, 2048, 30);
      const auto config = choose_w8_small_config(m, p.n, p.k, kHopperSms);
      const auto all = run<float>(p, config, true, 0, m);
      for (const int64_t row : {int64_t{0}, m / 2, m - 1}) {
        const auto alone = run<float>(p, config, true, row, 1);
        EXPECT_EQ(0, std::memcmp(alone.data(), all.data() + row * p.n, alone.size() * 4)) << row;
      }
      const auto again = run<float>(p, config, true, 0, m);
      EXPECT_EQ(0, std::memcmp(again.data(), all.data(), all.size() * 4));
    }
  }
}

TEST(LinearW8Small, InfinityAndNanStayInTheirRow) {
  LATHE_NEEDS_GPU();
  for (const auto& [name, format] : kFormats) {
    Problem p(format, 5, 100, 288, 40);
    auto x = p.x;
    x[288 + 7] = NAN;
    x[3 * 288 + 9] = INFINITY;
    p.x_device = DeviceArray<uint16_t>(to_bf16(x));
    const auto y = run<float>(p, choose_w8_small_config(5, p.n, p.k, kHopperSms), false, 0, 5);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const std::size_t row = i / 100;
      if (row == 1) {
        EXPECT_TRUE(std::isnan(y[i])) << name << i;
      } else if (row % 2 == 0) {
        EXPECT_TRUE(std::isfinite(y[i])) << name << i;
      }
    }
  }
}

TEST(LinearW8Small, BadArgumentsAreErrors) {
  LATHE_NEEDS_GPU();
  Problem p(kFormats[0].format, 9, 64, 64, 50);
  const auto config = choose_w8_small_config(8, p.n, p.k, kHopperSms);
  EXPECT_THROW(run<float>(p, config, false, 0, 9), Error);
  auto too_deep = config;
  too_deep.stages = 13;
  EXPECT_THROW(run<float>(p, too_deep, false, 0, 8), Error);
  p.matrix.format.scale = ScaleType::kF16;
  EXPECT_THROW(run<float>(p, config, false, 0, 8), Error);
}

TEST(W8SmallConfig, FitsAndUsesTheMachine) {
  for (const int64_t m : {1, 8, 9, 16, 17, 32, 33, 64}) {
    for (const int64_t n : {1, 576, 4096, 6144, 28672, 128256, 151936}) {
      for (const int64_t k : {32, 576, 4096, 14336, 28672}) {
        const auto config = choose_w8_small_config(m, n, k, kHopperSms);
        SCOPED_TRACE(testing::Message() << m << ' ' << n << ' ' << k << ": " << to_string(config));
        EXPECT_GE(config.rows, m);
        EXPECT_GE(config.stages, 2);
        EXPECT_LE(config.blocks, kHopperSms);
        if (n >= 32 * kHopperSms) {
          EXPECT_GE(config.blocks, 128);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lathe
