// Written without such a GPU: what a first run has to show.
#include "kernels/linear/linear_fp4_sm120.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/block_scaled_cases.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"

namespace lathe {
namespace {

bool has_sm120() {
  int count = 0, major = 0, minor = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return false;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  return major == 12 && minor == 0;
}
#define LATHE_NEEDS_SM120() \
  if (!has_sm120()) GTEST_SKIP() << "no GPU of compute capability 12.0"

// x or w on the device, with random powers of two as factors of its rows.
struct DeviceMatrix {
  QuantizedMatrix matrix;
  std::vector<float> row_scales;
  DeviceArray<uint8_t> codes, scales;
  DeviceArray<float> device_row_scales;
  BlockScaledFp4 view;

  DeviceMatrix(QuantizedMatrix from, uint64_t seed)
      : matrix(std::move(from)),
        row_scales(powers_of_two(matrix.rows, seed)),
        codes(std::vector<uint8_t>(matrix.codes.as<uint8_t>(),
                                   matrix.codes.as<uint8_t>() + matrix.codes.size())),
        scales(swizzled_scales(matrix)),
        device_row_scales(row_scales) {
    view.scale = matrix.format.scale;
    view.rows = matrix.rows;
    view.k = matrix.cols;
    view.codes = reinterpret_cast<const std::byte*>(codes.data());
    view.scales = reinterpret_cast<const std::byte*>(scales.data());
    view.row_scales = device_row_scales.data();
  }
  static std::vector<float> powers_of_two(int64_t count, uint64_t seed) {
    Rng rng(seed);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = std::ldexp(1.0f, static_cast<int>(rng.below(5)) - 2);
    return values;
  }
};

// y [m, n] as fp32. It has row stride n + padding, and the padding must stay untouched.
std::vector<float> run(const DeviceMatrix& w, const float* bias, const BlockScaledFp4& x,
                       CudaElement element, int64_t padding) {
  const int64_t m = x.rows, n = w.view.rows, stride = n + padding;
  std::vector<float> y;
  const auto take = [&](const auto& all, const auto& to_float, auto poison) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) y.push_back(to_float(all[i * stride + j]));
      for (int64_t j = n; j < stride; ++j) EXPECT_EQ(all[i * stride + j], poison) << i << " " << j;
    }
  };
  if (element == CudaElement::kF32) {
    DeviceArray<uint32_t> out(m * stride);
    linear_fp4_sm120(w.view, bias, x, {element, out.data(), stride}, nullptr);
    take(
        out.host(), [](uint32_t bits) { return std::bit_cast<float>(bits); }, ~uint32_t{0});
  } else {
    DeviceArray<uint16_t> out(m * stride);
    linear_fp4_sm120(w.view, bias, x, {element, out.data(), stride}, nullptr);
    take(out.host(), float_from_bf16, uint16_t{0xffff});
  }
  return y;
}

std::vector<float> expected_output(const DeviceMatrix& w, const std::vector<float>& bias,
                                   const DeviceMatrix& x, CudaElement element) {
  const std::vector<double> sums = product(w.matrix, x.matrix);
  std::vector<float> y;
  for (int64_t i = 0; i < x.matrix.rows; ++i) {
    for (int64_t j = 0; j < w.matrix.rows; ++j) {
      y.push_back(static_cast<float>(
          sums[i * w.matrix.rows + j] * x.row_scales[i] * w.row_scales[j] + bias[j]));
      if (element == CudaElement::kBF16) y.back() = float_from_bf16(bf16_from_float(y.back()));
    }
  }
  return y;
}

// Codes of 0, 1/2, 1 and their negatives, scales of 1 and 2: terms are multiples of 1/4 up to 4,
// sums of 1152 of them below 2^10 as far as random signs go (the standard deviation is about 32).
// So an accumulator with 13 fraction bits is exact, and y is known to the bit.
QuantizedMatrix small_fp4(const std::string& format, int64_t rows, int64_t cols, uint64_t seed) {
  QuantizedMatrix matrix = random_fp4(format, rows, cols, seed);
  for (int64_t i = 0; i < matrix.codes.size(); ++i) {
    uint8_t& byte = matrix.codes.as<uint8_t>()[i];
    byte &= 0xbb;                                             // magnitudes 0 .. 3
    byte = static_cast<uint8_t>(byte & ~(byte << 1 & 0x22));  // 3, of 1.5, becomes 1, of 0.5
  }
  for (int64_t i = 0; i < matrix.scales.size(); ++i) {
    uint8_t& byte = matrix.scales.as<uint8_t>()[i];
    byte = static_cast<uint8_t>(format == "mxfp4" ? 127 + byte % 2 : 0x38 + byte % 2 * 8);
  }
  return matrix;
}

struct Size {
  int64_t m, n, k, padding;
};
constexpr Size kSizes[] = {{1, 1, 64, 0},       {65, 100, 192, 3},    {128, 128, 128, 0},
                           {129, 328, 320, 8},  {300, 200, 1088, 0},  {257, 72, 64, 8},
                           {520, 640, 384, 16}, {96, 1000, 1152, 24}, {17, 259, 256, 5}};

TEST(LinearFp4Sm120, IntegersAreExact) {
  LATHE_NEEDS_SM120();
  for (const std::string format : {"mxfp4", "nvfp4"}) {
    for (const Size& size : kSizes) {
      const DeviceMatrix w(small_fp4(format, size.n, size.k, 1), 3);
      const DeviceMatrix x(small_fp4(format, size.m, size.k, 2), 4);
      std::vector<float> bias;
      for (int64_t j = 0; j < size.n; ++j) bias.push_back(static_cast<float>(j % 9) - 4);
      DeviceArray<float> device_bias(bias);
      for (const CudaElement element : {CudaElement::kBF16, CudaElement::kF32}) {
        SCOPED_TRACE(testing::Message() << format << " m " << size.m << " n " << size.n << " k "
                                        << size.k << " +" << size.padding);
        const auto y = run(w, device_bias.data(), x.view, element, size.padding);
        EXPECT_TRUE(all_close(y, expected_output(w, bias, x, element), 0, 0));
      }
    }
  }
}

// Every scale is for the group it belongs to: row i of x has one number, 1 in group i.
TEST(LinearFp4Sm120, EveryScaleIsExact) {
  LATHE_NEEDS_SM120();
  for (const std::string format : {"mxfp4", "nvfp4"}) {
    SCOPED_TRACE(format);
    const int64_t groups = 128, n = 24;
    const int64_t size = weight_format_from_name(format).group_size, k = groups * size;
    QuantizedMatrix w_matrix = random_fp4(format, n, k, 7);
    QuantizedMatrix x_matrix = random_fp4(format, groups, k, 8);
    std::fill_n(x_matrix.codes.as<uint8_t>(), x_matrix.codes.size(), uint8_t{0});
    for (int64_t i = 0; i < groups; ++i) {
      for (int64_t row = 0; row < n; ++row) {  // E4M3's 0 .. 126; 2^-63 .. 2^64
        w_matrix.scales.as<uint8_t>()[row * groups + i] =
            static_cast<uint8_t>(format == "mxfp4" ? 64 + i : (i + row) % 127);
      }
      const int64_t column = i * size + i * 5 % size;
      x_matrix.codes.as<uint8_t>()[(i * k + column) / 2] =
          static_cast<uint8_t>(2 << (column % 2 * 4));
    }
    const DeviceMatrix w(std::move(w_matrix), 3), x(std::move(x_matrix), 4);
    const auto y = run(w, nullptr, x.view, CudaElement::kF32, 0);
    const std::vector<float> no_bias(static_cast<std::size_t>(n), 0.0f);
    EXPECT_TRUE(all_close(y, expected_output(w, no_bias, x, CudaElement::kF32), 0, 0));
  }
}

// How the instruction rounds its sums is not documented. The bound is the coarsest known of a
// tensor core with 8-bit operands (Hopper's): an mma cuts its 64 terms and the accumulator to 13
// bits below the largest of them, and the sum to 13 fraction bits. So, M the largest magnitude
// among the terms and the accumulator, a step is off by 65 M 2^-13 + |sum| 2^-13 at most.
TEST(LinearFp4Sm120, RandomNumbersStayWithinTheAccumulatorsError) {
  LATHE_NEEDS_SM120();
  const int64_t m = 70, n = 130, k = 512;
  for (const std::string format : {"mxfp4", "nvfp4"}) {
    const DeviceMatrix w(random_fp4(format, n, k, 11), 3), x(random_fp4(format, m, k, 12), 4);
    const std::vector<float> no_bias(static_cast<std::size_t>(n), 0.0f);
    const auto expected = expected_output(w, no_bias, x, CudaElement::kF32);
    const auto x_values = dequantized(x.matrix), w_values = dequantized(w.matrix);
    const auto y = run(w, nullptr, x.view, CudaElement::kF32, 0);
    for (int64_t i = 0; i < m * n; ++i) {
      double sum = 0, error = 0;
      for (int64_t c = 0; c < k; c += 64) {
        double largest = std::fabs(sum) + error;
        for (int64_t l = c; l < c + 64; ++l) {
          const double term = double{x_values[i / n * k + l]} * w_values[i % n * k + l];
          largest = std::max(largest, std::fabs(term));
          sum += term;
        }
        error += 65 * 0x1p-13 * largest + 0x1p-13 * (std::fabs(sum) + error);
      }
      error *= x.row_scales[i / n] * w.row_scales[i % n];
      ASSERT_LE(std::fabs(double{y[i]} - expected[i]), error) << format << " " << i;
    }
  }
}

TEST(LinearFp4Sm120, ARowDoesNotDependOnTheOthers) {
  LATHE_NEEDS_SM120();
  const int64_t m = 300, n = 200, k = 704;
  for (const std::string format : {"mxfp4", "nvfp4"}) {
    const DeviceMatrix w(random_fp4(format, n, k, 21), 3);
    const DeviceMatrix x(random_fp4(format, m, k, 22), 4);
    const QuantizedMatrix& all = x.matrix;
    const auto together = run(w, nullptr, x.view, CudaElement::kF32, 0);
    for (const int64_t row : {0, 77, 299}) {
      QuantizedMatrix one = random_fp4(format, 1, k, 0);
      std::copy_n(all.codes.as<uint8_t>() + row * k / 2, k / 2, one.codes.as<uint8_t>());
      std::copy_n(all.scales.as<uint8_t>() + row * all.num_groups(), all.num_groups(),
                  one.scales.as<uint8_t>());
      DeviceMatrix alone(std::move(one), 4);
      alone.view.row_scales = x.view.row_scales + row;
      const auto y = run(w, nullptr, alone.view, CudaElement::kF32, 0);
      EXPECT_TRUE(std::equal(y.begin(), y.end(), together.begin() + row * n))
          << format << " row " << row;
    }
  }
}

// The checks come before the GPU is looked at, so this one runs anywhere.
TEST(LinearFp4Sm120, RefusesWhatItCannotHave) {
  alignas(16) static std::byte memory[16] = {};
  const auto code = [&](auto change) {
    BlockScaledFp4 w{ScaleType::kE8M0, 64, 128, memory, memory, nullptr}, x = w;
    CudaLinearOutput y{CudaElement::kBF16, memory, 64};
    change(w, x, y);
    try {
      linear_fp4_sm120(w, nullptr, x, y, nullptr);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  using M = BlockScaledFp4&;
  using Y = CudaLinearOutput&;
  EXPECT_EQ(code([](M w, M x, Y) { w.k = x.k = 96; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M w, M x, Y) { w.k = x.k = 0; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M, M x, Y) { x.k = 64; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M, M x, Y) { x.rows = -1; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M, M x, Y) { x.scale = ScaleType::kE4M3; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M w, M x, Y) { w.scale = x.scale = ScaleType::kBF16; }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M w, M, Y) { w.codes += 8; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M, M x, Y) { x.scales = nullptr; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M, M, Y y) { y.stride = 63; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M, M, Y y) { y.element = CudaElement::kE4M3; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](M, M, Y y) { y.data = nullptr; }), ErrorCode::kInvalidArgument);
  // No rows: nothing to do, and no GPU to ask for.
  EXPECT_EQ(code([](M, M x, Y) { x.rows = 0; }), ErrorCode::kInternal);
}

}  // namespace
}  // namespace lathe
