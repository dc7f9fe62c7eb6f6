#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "kernels/linear/fp4_tiles_host.h"
#include "kernels/linear/linear_mxfp4_sm90.h"
#include "kernels/linear/linear_nvfp4_sm90.h"
#include "quant/encode.h"
#include "quant/fp8.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"

namespace lathe {
namespace {

// A matrix of random codes whose scales are 2^0 .. 2^3 (times powers of two only, so that sums of
// small integers stay exact).
QuantizedMatrix integer_weights(const std::string& format, int64_t n, int64_t k, uint64_t seed) {
  QuantizedMatrix w = make_quantized_matrix(weight_format_from_name(format), n, k);
  Rng rng(seed);
  for (int64_t i = 0; i < w.codes.size(); ++i) {
    w.codes.as<uint8_t>()[i] = static_cast<uint8_t>(rng.below(256));
  }
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t group = 0; group < w.num_groups(); ++group) {
      store_scale(w, row, group, std::ldexp(1.0, static_cast<int>(rng.below(4))));
    }
  }
  return w;
}

// A weight on the device, as the kernels take it.
struct DeviceWeight {
  QuantizedMatrix matrix;
  std::vector<float> values;  // [n, k]
  HostFp4Tiles tiles;
  DeviceArray<std::byte> codes, scales;
  DeviceArray<uint8_t> exponents;
  std::vector<float> row_scales, bias;
  DeviceArray<float> device_row_scales, device_bias;
  Fp4Tiles view;

  DeviceWeight(QuantizedMatrix w, Fp4Order order, uint64_t seed = 5)
      : matrix(std::move(w)),
        values(static_cast<std::size_t>(matrix.rows * matrix.cols)),
        tiles(pack_fp4_tiles_on_host(matrix, order)),
        codes(tiles.codes),
        scales(tiles.scales),
        exponents((matrix.rows + 63) / 64 * 64),
        row_scales(powers_of_two(matrix.rows, seed)),
        bias(small_integers(matrix.rows, seed + 1)),
        device_row_scales(row_scales),
        device_bias(bias) {
    dequantize_rows(matrix, 0, matrix.rows, values.data());
    view.element = matrix.format.element;
    view.scale = matrix.format.scale;
    view.n = matrix.rows;
    view.k = matrix.cols;
    view.codes = codes.data();
    view.scales = scales.data();
    view.row_scales = device_row_scales.data();
    view.bias = device_bias.data();
    if (matrix.format.scale == ScaleType::kE8M0) {
      mxfp4_row_exponents(view, exponents.data(), nullptr);
    }
  }
  static std::vector<float> powers_of_two(int64_t count, uint64_t seed) {
    Rng rng(seed);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = std::ldexp(1.0f, static_cast<int>(rng.below(5)) - 2);
    return values;
  }
  static std::vector<float> small_integers(int64_t count, uint64_t seed) {
    Rng rng(seed);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = static_cast<float>(rng.below(9)) - 4;
    return values;
  }
};

// x [m, k] in E4M3 or bf16, from values that these hold exactly.
struct DeviceInput {
  std::vector<float> values, row_scales;
  DeviceArray<uint8_t> e4m3;
  DeviceArray<uint16_t> bf16;
  DeviceArray<float> device_row_scales;
  CudaLinearInput view;

  DeviceInput(std::vector<float> x, int64_t m, int64_t k, CudaElement element, uint64_t seed = 8)
      : values(std::move(x)),
        row_scales(DeviceWeight::powers_of_two(m, seed)),
        e4m3(element == CudaElement::kE4M3 ? e4m3_bytes(values) : std::vector<uint8_t>(16)),
        bf16(element == CudaElement::kBF16 ? bf16_words(values) : std::vector<uint16_t>(8)),
        device_row_scales(row_scales) {
    view.element = element;
    view.data = element == CudaElement::kE4M3 ? static_cast<const void*>(e4m3.data()) : bf16.data();
    view.row_scales = device_row_scales.data();
    view.m = m;
    view.k = k;
  }
  static std::vector<uint8_t> e4m3_bytes(const std::vector<float>& values) {
    std::vector<uint8_t> bytes;
    for (const float value : values) bytes.push_back(e4m3_from_double(value));
    return bytes;
  }
  static std::vector<uint16_t> bf16_words(const std::vector<float>& values) {
    std::vector<uint16_t> words;
    for (const float value : values) words.push_back(bf16_from_float(value));
    return words;
  }
};

// -1, 0 and 1: with integer_weights every partial sum of up to 1152 columns is a multiple of 1/2
// below 2^12, as far as random signs go (the standard deviation is about 500), so even an
// accumulator with 13 fraction bits is exact and y is known to the bit.
std::vector<float> trits(int64_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.below(3)) - 1;
  return values;
}

std::vector<float> exact_output(const DeviceWeight& w, const DeviceInput& x) {
  const int64_t m = x.view.m, n = w.view.n, k = w.view.k;
  std::vector<float> y(static_cast<std::size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < k; ++c) sum += double{x.values[i * k + c]} * w.values[j * k + c];
      y[i * n + j] = static_cast<float>(sum * x.row_scales[i] * w.row_scales[j] + w.bias[j]);
    }
  }
  return y;
}

using Run = std::function<void(const CudaLinearOutput&)>;

// The [m, n] part of y with row stride n + padding; the padding must stay untouched.
std::vector<float> run_to_host(int64_t m, int64_t n, int64_t padding, CudaElement element,
                               const Run& run) {
  const int64_t stride = n + padding;
  std::vector<float> y(static_cast<std::size_t>(m * n));
  const auto copy = [&](const auto& all, const auto& to_float, auto poison) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < stride; ++j) {
        const auto value = all[i * stride + j];
        if (j < n) {
          y[i * n + j] = to_float(value);
        } else {
          ASSERT_EQ(value, poison) << "row " << i << " column " << j;
        }
      }
    }
  };
  if (element == CudaElement::kF32) {
    DeviceArray<uint32_t> out(m * stride);
    run({element, out.data(), stride});
    copy(
        out.host(), [](uint32_t bits) { return std::bit_cast<float>(bits); }, ~uint32_t{0});
  } else {
    DeviceArray<uint16_t> out(m * stride);
    run({element, out.data(), stride});
    copy(out.host(), float_from_bf16, uint16_t{0xffff});
  }
  return y;
}

void expect_same(const std::vector<float>& actual, std::vector<float> expected,
                 CudaElement element) {
  if (element == CudaElement::kBF16) {
    for (float& value : expected) value = float_from_bf16(bf16_from_float(value));
  }
  EXPECT_TRUE(all_close(actual, expected, 0, 0));
}

struct Size {
  int64_t m, n, k, padding;
};
// Rows and outputs around the tiles of 64, 128, 192 and 256, k with and without half a stage, and
// strides that the copy engine can and cannot write.
constexpr Size kSizes[] = {{1, 1, 64, 0},       {65, 100, 192, 3},    {64, 64, 128, 0},
                           {129, 328, 320, 8},  {300, 200, 1088, 0},  {257, 72, 64, 8},
                           {520, 640, 384, 16}, {96, 1000, 1152, 24}, {17, 259, 256, 5}};

TEST(Fp4Tiles, EveryWeightIsWhereTheLayoutSays) {
  for (const std::string format : {"mxfp4", "nvfp4", "int4"}) {
    for (const Fp4Order order : {Fp4Order::kByteFragments, Fp4Order::kHalfFragments}) {
      QuantizedMatrix w = make_quantized_matrix(weight_format_from_name(format), 130, 128);
      // One weight that is not zero, at a place that walks through the matrix.
      for (int64_t at = 0; at < 130 * 128; at += 31) {
        const int64_t row = at / 128, column = at % 128;
        const uint8_t code = static_cast<uint8_t>(at % 15 + 1);
        std::memset(w.codes.data(), 0, static_cast<std::size_t>(w.codes.size()));
        w.codes.as<uint8_t>()[row * 64 + column / 2] =
            static_cast<uint8_t>(code << (column % 2 * 4));
        const HostFp4Tiles tiles = pack_fp4_tiles_on_host(w, order);
        const TilePlace place =
            tile_place(order, static_cast<int>(row % 64), static_cast<int>(column % 64));
        // What all other weights, code 0, look like: nibbles of 8 for INT4 (rows beyond 130 are
        // zero bytes and not looked at).
        const auto rest = tiles.codes.size() * 130 / 192 / kTileCodeBytes * kTileCodeBytes;
        for (std::size_t i = 0; i < rest; i += 4) {
          uint32_t word, expected = format == "int4" ? 0x88888888u : 0;
          std::memcpy(&word, &tiles.codes[i], 4);
          if (static_cast<int64_t>(i) ==
              (row / 64 * 2 + column / 64) * kTileCodeBytes + place.thread * 16 + place.word * 4) {
            expected ^= format == "int4" ? uint32_t{code} << (4 * place.index)
                                         : e2m1_word_bits(code, place.index);
          }
          ASSERT_EQ(word, expected) << format << " " << at << " " << i;
        }
      }
    }
  }
}

TEST(LinearMxfp4Sm90, ChoiceFollowsTheSizesAndPrints) {
  const Mxfp4Config large = choose_mxfp4_config(4096, 28672, 4096, 132);
  EXPECT_EQ(large.tokens, 256);
  EXPECT_NE(to_string(large).find("256"), std::string::npos);
  EXPECT_EQ(choose_mxfp4_config(17, 4096, 4096, 132).tokens, 64);
  EXPECT_EQ(choose_mxfp4_config(4096, 28672, 4096, 132), large);
}

// What is chosen must exist and be able to split k, on any number of multiprocessors.
TEST(LinearSm90, EveryChoiceHasAVersion) {
  for (int64_t m = 1; m <= 4096; m += m < 300 ? 7 : 191) {
    for (const int64_t n : {1, 64, 576, 1536, 4096, 6144, 8192, 28672, 57344, 128256}) {
      for (const int64_t k : {64, 128, 192, 576, 1536, 4096, 8192, 14336, 28672}) {
        for (const int num_sms : {78, 114, 132}) {
          const auto fp8 = mxfp4_configs(k);
          EXPECT_EQ(std::count(fp8.begin(), fp8.end(), choose_mxfp4_config(m, n, k, num_sms)), 1)
              << m << " " << n << " " << k;
          const auto bf16 = nvfp4_configs(k);
          EXPECT_EQ(std::count(bf16.begin(), bf16.end(), choose_nvfp4_config(m, n, k, num_sms)), 1)
              << m << " " << n << " " << k;
        }
      }
    }
  }
}

TEST(LinearMxfp4Sm90, IntegersAreExactInEveryVersion) {
  LATHE_NEEDS_GPU();
  for (const Size& size : kSizes) {
    DeviceWeight w(integer_weights("mxfp4", size.n, size.k, 1), Fp4Order::kByteFragments);
    const DeviceInput x(trits(size.m * size.k, 2), size.m, size.k, CudaElement::kE4M3);
    const std::vector<float> expected = exact_output(w, x);
    for (const Mxfp4Config& config : mxfp4_configs(size.k)) {
      for (const CudaElement element : {CudaElement::kBF16, CudaElement::kF32}) {
        SCOPED_TRACE(testing::Message() << to_string(config) << " m " << size.m << " n " << size.n
                                        << " k " << size.k << " +" << size.padding);
        const auto y =
            run_to_host(size.m, size.n, size.padding, element, [&](const CudaLinearOutput& out) {
              linear_mxfp4_sm90(w.view, w.exponents.data(), x.view, out, config, nullptr);
            });
        expect_same(y, expected, element);
      }
    }
  }
}

// Every exponent down to 2^-26 of the row's largest is exact: row j of x is zero outside group j.
TEST(LinearMxfp4Sm90, ScalesOfARowMayDifferBy26Binades) {
  LATHE_NEEDS_GPU();
  const int64_t n = 70, groups = 28, k = groups * 32, m = groups;
  for (const int top : {-100, 0, 80}) {
    QuantizedMatrix matrix = integer_weights("mxfp4", n, k, 3);
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t group = 0; group < groups; ++group) {
        const int below = static_cast<int>((group + row) % groups);
        store_scale(matrix, row, group, std::ldexp(1.0, top - (below == 27 ? 0 : below)));
      }
    }
    DeviceWeight w(std::move(matrix), Fp4Order::kByteFragments);
    w.view.bias = nullptr;
    std::fill(w.bias.begin(), w.bias.end(), 0.0f);
    std::vector<float> values(static_cast<std::size_t>(m * k));
    const std::vector<float> inside = trits(m * 32, 4);
    for (int64_t i = 0; i < m * 32; ++i) values[i / 32 * k + i / 32 * 32 + i % 32] = inside[i];
    const DeviceInput x(std::move(values), m, k, CudaElement::kE4M3);
    const auto y = run_to_host(m, n, 0, CudaElement::kF32, [&](const CudaLinearOutput& out) {
      linear_mxfp4_sm90(w.view, w.exponents.data(), x.view, out, {}, nullptr);
    });
    expect_same(y, exact_output(w, x), CudaElement::kF32);
  }
}

// Random numbers. An FP8 product adds 32 columns to the accumulator after cutting all of them to 13
// bits below the largest exponent, and cuts the sum to 13 fraction bits: with M the largest
// magnitude among the terms and the accumulator, a step is off by at most 33 M 2^-13, and
// |sum| 2^-13 more.
TEST(LinearMxfp4Sm90, RandomNumbersStayWithinTheAccumulatorsError) {
  LATHE_NEEDS_GPU();
  const int64_t m = 70, n = 130, k = 1024;
  DeviceWeight w(
      quantize_absmax(weight_format_from_name("mxfp4"), normal_values(n * k, 11, 0.1).data(), n, k),
      Fp4Order::kByteFragments);
  std::vector<float> values = normal_values(m * k, 12, 100);
  for (float& value : values) value = e4m3_to_float(e4m3_from_double(value));
  const DeviceInput x(std::move(values), m, k, CudaElement::kE4M3);
  const std::vector<float> expected = exact_output(w, x);
  std::vector<double> bound(expected.size());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, error = 0;
      for (int64_t c = 0; c < k; c += 32) {
        double largest = std::fabs(sum) + error;
        for (int64_t l = c; l < c + 32; ++l) {
          const double term = double{x.values[i * k + l]} * w.values[j * k + l];
          largest = std::max(largest, std::fabs(term));
          sum += term;
        }
        error += 33 * 0x1p-13 * largest + 0x1p-13 * (std::fabs(sum) + error);
      }
      bound[i * n + j] = error * x.row_scales[i] * w.row_scales[j];
    }
  }
  for (const Mxfp4Config& config : mxfp4_configs(k)) {
    const auto y = run_to_host(m, n, 0, CudaElement::kF32, [&](const CudaLinearOutput& out) {
      linear_mxfp4_sm90(w.view, w.exponents.data(), x.view, out, config, nullptr);
    });
    for (std::size_t i = 0; i < y.size(); ++i) {
      // Half an ulp for the epilogue's multiplications and the sum with the bias.
      const double tolerance = bound[i] + 0x1p-22 * (std::fabs(expected[i]) + 4);
      ASSERT_LE(std::fabs(double{y[i]} - expected[i]), tolerance) << to_string(config) << " " << i;
    }
  }
}

TEST(LinearMxfp4Sm90, ARowDoesNotDependOnTheOthers) {
  LATHE_NEEDS_GPU();
  const int64_t m = 300, n = 200, k = 704;
  DeviceWeight w(
      quantize_absmax(weight_format_from_name("mxfp4"), normal_values(n * k, 21, 0.1).data(), n, k),
      Fp4Order::kByteFragments);
  const std::vector<float> values = normal_values(m * k, 22, 100);
  for (const Mxfp4Config& config : mxfp4_configs(k)) {
    const DeviceInput all(values, m, k, CudaElement::kE4M3);
    const auto run = [&](const DeviceInput& x) {
      return run_to_host(x.view.m, n, 0, CudaElement::kF32, [&](const CudaLinearOutput& out) {
        linear_mxfp4_sm90(w.view, w.exponents.data(), x.view, out, config, nullptr);
      });
    };
    const auto together = run(all);
    for (const int64_t row : {0, 77, 299}) {
      DeviceInput one(std::vector<float>(values.begin() + row * k, values.begin() + (row + 1) * k),
                      1, k, CudaElement::kE4M3);
      one.view.row_scales = all.view.row_scales + row;
      const auto alone = run(one);
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + row * n))
          << to_string(config) << " row " << row;
    }
  }
}

TEST(LinearMxfp4Sm90, RefusesWhatItCannotHave) {
  LATHE_NEEDS_GPU();
  DeviceWeight w(integer_weights("mxfp4", 64, 128, 1), Fp4Order::kByteFragments);
  const DeviceInput x(trits(2 * 128, 2), 2, 128, CudaElement::kE4M3);
  DeviceArray<uint16_t> y(2 * 64);
  const CudaLinearOutput good{CudaElement::kBF16, y.data(), 64};
  const auto code = [&](auto change) {
    Fp4Tiles weight = w.view;
    CudaLinearInput input = x.view;
    CudaLinearOutput output = good;
    Mxfp4Config config;
    change(weight, input, output, config);
    try {
      linear_mxfp4_sm90(weight, w.exponents.data(), input, output, config, nullptr);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  using W = Fp4Tiles&;
  using X = CudaLinearInput&;
  using Y = CudaLinearOutput&;
  using C = Mxfp4Config&;
  EXPECT_EQ(code([](W a, X b, Y, C) { a.k = b.k = 96; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](W, X b, Y, C) { b.k = 64; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](W a, X, Y, C) { a.scale = ScaleType::kE4M3; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](W, X b, Y, C) { b.element = CudaElement::kBF16; }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](W, X, Y c, C) { c.stride = 63; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](W a, X, Y, C) { a.codes += 8; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](W, X, Y, C d) { d.tokens = 100; }), ErrorCode::kInvalidArgument);
  linear_mxfp4_sm90(w.view, w.exponents.data(), {CudaElement::kE4M3, nullptr, nullptr, 0, 128},
                    good, {}, nullptr);  // no rows, nothing to do
}

TEST(LinearNvfp4Sm90, IntegersAreExactInEveryVersion) {
  LATHE_NEEDS_GPU();
  for (const std::string format : {"nvfp4", "mxfp4", "int4"}) {
    for (const Size& size : kSizes) {
      const DeviceWeight w(integer_weights(format, size.n, size.k, 1), Fp4Order::kHalfFragments);
      const DeviceInput x(trits(size.m * size.k, 2), size.m, size.k, CudaElement::kBF16);
      const std::vector<float> expected = exact_output(w, x);
      for (const Bf16GemmConfig& config : nvfp4_configs(size.k)) {
        for (const CudaElement element : {CudaElement::kBF16, CudaElement::kF32}) {
          SCOPED_TRACE(testing::Message() << format << " " << to_string(config) << " m " << size.m
                                          << " n " << size.n << " k " << size.k);
          const auto y =
              run_to_host(size.m, size.n, size.padding, element, [&](const CudaLinearOutput& out) {
                linear_nvfp4_sm90(w.view, x.view, out, config, nullptr);
              });
          expect_same(y, expected, element);
        }
      }
    }
  }
}

// Every E4M3 scale, subnormals too, is applied exactly: a token that picks one column.
TEST(LinearNvfp4Sm90, EveryScaleIsExact) {
  LATHE_NEEDS_GPU();
  const int64_t n = 8, k = 2048, groups = k / 16;
  QuantizedMatrix matrix = integer_weights("nvfp4", n, k, 7);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      matrix.scales.as<uint8_t>()[row * groups + group] = static_cast<uint8_t>(group % 127);
    }
  }
  DeviceWeight w(std::move(matrix), Fp4Order::kHalfFragments);
  w.view.bias = nullptr;
  std::fill(w.bias.begin(), w.bias.end(), 0.0f);
  std::vector<float> values(static_cast<std::size_t>(groups * k));
  for (int64_t i = 0; i < groups; ++i) values[i * k + i * 16 + i * 5 % 16] = 1;
  const DeviceInput x(std::move(values), groups, k, CudaElement::kBF16);
  const auto y = run_to_host(groups, n, 0, CudaElement::kF32, [&](const CudaLinearOutput& out) {
    linear_nvfp4_sm90(w.view, x.view, out, {}, nullptr);
  });
  expect_same(y, exact_output(w, x), CudaElement::kF32);
}

// bf16 products are exact in fp32; a step adds 16 of them to the accumulator, each of 17 terms cut
// to at least 23 bits below the largest: 17 * 2^-23 of sum |w x| per step, k / 16 steps.
TEST(LinearNvfp4Sm90, RandomNumbersStayWithinFp32Sums) {
  LATHE_NEEDS_GPU();
  const int64_t m = 70, n = 130, k = 1024;
  for (const std::string format : {"nvfp4", "mxfp4"}) {
    QuantizedMatrix matrix = quantize_absmax(weight_format_from_name(format),
                                             normal_values(n * k, 11, 0.1).data(), n, k);
    matrix.global_scale = 1;  // the row scales carry what belongs to the tensor
    const DeviceWeight w(std::move(matrix), Fp4Order::kHalfFragments);
    std::vector<float> values = normal_values(m * k, 12);
    for (float& value : values) value = float_from_bf16(bf16_from_float(value));
    const DeviceInput x(std::move(values), m, k, CudaElement::kBF16);
    const std::vector<float> expected = exact_output(w, x);
    for (const Bf16GemmConfig& config : nvfp4_configs(k)) {
      const auto y = run_to_host(m, n, 0, CudaElement::kF32, [&](const CudaLinearOutput& out) {
        linear_nvfp4_sm90(w.view, x.view, out, config, nullptr);
      });
      for (int64_t i = 0; i < m * n; ++i) {
        double magnitude = 0;
        for (int64_t c = 0; c < k; ++c) {
          magnitude += std::fabs(double{x.values[i / n * k + c]} * w.values[i % n * k + c]);
        }
        const double tolerance =
            17 * 0x1p-23 * double(k / 16) * magnitude * x.row_scales[i / n] * w.row_scales[i % n] +
            0x1p-22 * (std::fabs(expected[i]) + 4);
        ASSERT_LE(std::fabs(double{y[i]} - expected[i]), tolerance)
            << to_string(config) << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace lathe
