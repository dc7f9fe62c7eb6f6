// FP8 products by cuBLASLt against sums in double.
#include "kernels/linear/gemm_fp8_cublaslt.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "quant/fp8.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"

namespace lathe {
namespace {

std::vector<uint8_t> to_e4m3(const std::vector<float>& values) {
  std::vector<uint8_t> codes;
  for (const float value : values) codes.push_back(e4m3_from_double(double{value}));
  return codes;
}

// Hopper's tensor cores add 32 products of FP8 and the sum so far with each term cut 13 places
// below the largest; cuBLASLt adds such sums in fp32 every 128 columns (no "fast accumulation"). So
// 128 columns are off by at most 4 * 33 cuts of 2^-13 of their largest term or sum.
TEST(Fp8Gemm, MatchesSumsInDouble) {
  LATHE_NEEDS_GPU();
  CudaContext context(0);
  Fp8Gemm gemm(context);
  const struct {
    int64_t m, n, k;
  } sizes[] = {{1, 16, 64}, {65, 144, 576}, {300, 256, 1024}, {128, 1024, 4096}};
  for (const auto& size : sizes) {
    const auto x = to_e4m3(normal_values(size.m * size.k, 1, 50));
    const auto w = to_e4m3(normal_values(size.n * size.k, 2, 50));
    const auto x_scales = normal_values(size.m, 3), w_scales = normal_values(size.n, 4);
    const auto bias = normal_values(size.n, 5, 100);
    DeviceArray<uint8_t> x_device(x), w_device(w);
    DeviceArray<float> x_scales_device(x_scales), w_scales_device(w_scales), bias_device(bias);
    for (const bool has_bias : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << size.m << ' ' << size.n << ' ' << size.k << ' ' << has_bias);
      const CudaLinearInput input{CudaElement::kE4M3, x_device.data(), x_scales_device.data(),
                                  size.m, size.k};
      Fp8Matrix matrix;
      matrix.n = size.n;
      matrix.k = size.k;
      matrix.codes = reinterpret_cast<const std::byte*>(w_device.data());
      matrix.scales = w_scales_device.data();
      if (has_bias) matrix.bias = bias_device.data();
      const int64_t stride = size.n + 16;
      DeviceArray<float> y(size.m * stride);
      DeviceArray<uint16_t> y_bf16(size.m * stride);
      gemm.run(input, matrix, {CudaElement::kF32, y.data(), stride});
      gemm.run(input, matrix, {CudaElement::kBF16, y_bf16.data(), stride});
      const auto got = y.host();
      const auto got_bf16 = from_bf16(y_bf16.host());
      for (int64_t t = 0; t < size.m; t += 1 + size.m / 16) {
        for (int64_t j = 0; j < size.n; j += 1 + size.n / 64) {
          double sum = 0, magnitudes = 0, cuts = 0, part = 0, largest = 0;
          for (int64_t i = 0; i < size.k; ++i) {
            const double product =
                double{e4m3_to_float(x[static_cast<std::size_t>(t * size.k + i)])} *
                double{e4m3_to_float(w[static_cast<std::size_t>(j * size.k + i)])};
            sum += product;
            magnitudes += std::fabs(product);
            part += product;
            largest = std::max({largest, std::fabs(product), std::fabs(part)});
            if (i % 128 == 127 || i == size.k - 1) {
              cuts += 4 * 33 * 0x1p-13 * largest;
              part = largest = 0;
            }
          }
          const double factor = double{x_scales[static_cast<std::size_t>(t)]} *
                                double{w_scales[static_cast<std::size_t>(j)]};
          const double added = has_bias ? double{bias[static_cast<std::size_t>(j)]} : 0;
          const double expected = sum * factor + added;
          const double tolerance =
              std::fabs(factor) * (cuts + magnitudes * 0x1p-17) + std::fabs(added) * 0x1p-20;
          const auto at = static_cast<std::size_t>(t * stride + j);
          ASSERT_TRUE(std::fabs(got[at] - expected) <= tolerance)
              << t << ' ' << j << ": " << got[at] << ", expected " << expected << " +- "
              << tolerance;
          const double rounding = (std::fabs(sum * factor) + std::fabs(expected)) * 0x1p-8;
          ASSERT_TRUE(std::fabs(got_bf16[at] - expected) <= tolerance + rounding)
              << t << ' ' << j << ": " << got_bf16[at] << ", expected " << expected;
        }
      }
    }
  }
}

TEST(Fp8Gemm, BadArgumentsAreErrors) {
  LATHE_NEEDS_GPU();
  CudaContext context(0);
  Fp8Gemm gemm(context);
  DeviceArray<uint8_t> codes(64 * 64);
  DeviceArray<float> scales(64), y(64 * 64);
  Fp8Matrix w;
  w.n = 64;
  w.k = 64;
  w.codes = reinterpret_cast<const std::byte*>(codes.data());
  w.scales = scales.data();
  const CudaLinearOutput output{CudaElement::kF32, y.data(), 64};
  EXPECT_THROW(gemm.run({CudaElement::kE4M3, codes.data(), nullptr, 8, 64}, w, output), Error);
  EXPECT_THROW(gemm.run({CudaElement::kBF16, codes.data(), scales.data(), 8, 64}, w, output),
               Error);
  w.n = 63;
  EXPECT_THROW(gemm.run({CudaElement::kE4M3, codes.data(), scales.data(), 8, 64}, w, output),
               Error);
}

}  // namespace
}  // namespace lathe
