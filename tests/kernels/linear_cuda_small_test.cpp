// The GPU's packing, decoding and linear layers of few rows, against dequantize_rows() and sums in
// double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/rng.h"
#include "kernels/linear/dequantize_cuda.h"
#include "kernels/linear/linear_fp4_small_sm90.h"
#include "kernels/linear/pack_fp4.h"
#include "quant/encode.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr const char* kFp4Formats[] = {"mxfp4", "nvfp4", "int4"};
constexpr int kHopperSms = 132;

QuantizedMatrix random_matrix(const std::string& format, int64_t n, int64_t k, uint64_t seed) {
  const auto w = normal_values(n * k, seed, 0.1);
  QuantizedMatrix matrix = quantize_absmax(weight_format_from_name(format), w.data(), n, k);
  if (format == "mxfp4") {
    matrix.global_scale = 3;
    // Rows that differ widely in size, and groups within a row.
    for (int64_t i = 0; i < matrix.scales.size(); ++i) {
      auto& byte = matrix.scales.as<uint8_t>()[i];
      byte = static_cast<uint8_t>(byte + i % 5 - 2 + (i / matrix.num_groups() % 3) * 20);
    }
  }
  return matrix;
}

std::vector<float> dequantized(const QuantizedMatrix& matrix) {
  std::vector<float> w(static_cast<std::size_t>(matrix.rows * matrix.cols));
  dequantize_rows(matrix, 0, matrix.rows, w.data());
  return w;
}

uint8_t code_at(const QuantizedMatrix& m, int64_t row, int64_t column) {
  const uint8_t byte = m.codes.as<uint8_t>()[(row * m.cols + column) / 2];
  return column % 2 == 0 ? byte & 15 : byte >> 4;
}

// The layout, from its own definition, of one matrix.
struct Tiles {
  std::vector<uint32_t> codes;
  std::vector<uint8_t> scales;
};
Tiles tiles_by_definition(const std::vector<QuantizedMatrix>& parts) {
  const WeightFormat format = parts[0].format;
  const int64_t k = parts[0].cols;
  int64_t n = 0;
  for (const auto& part : parts) n += part.rows;
  const int groups = static_cast<int>(kTileColumns / format.group_size);
  const int bytes = static_cast<int>(scale_bytes(format.scale));
  const Fp4Order order =
      format.scale == ScaleType::kE8M0 ? Fp4Order::kByteFragments : Fp4Order::kHalfFragments;
  const int64_t tiles = (n + 63) / 64 * (k / 64);
  Tiles result{std::vector<uint32_t>(static_cast<std::size_t>(tiles * 512)),
               std::vector<uint8_t>(static_cast<std::size_t>(tiles * 64 * groups * bytes))};
  int64_t begin = 0;
  for (const auto& part : parts) {
    const auto* scales = part.scales.as<uint8_t>();
    for (int64_t r = 0; r < part.rows; ++r) {
      const int64_t row = begin + r;
      int largest = 0;
      for (int64_t g = 0; g < part.num_groups(); ++g) {
        largest = std::max(largest, int{scales[r * part.num_groups() + g]});
      }
      for (int64_t c = 0; c < k; ++c) {
        const int64_t tile = row / 64 * (k / 64) + c / 64;
        const TilePlace place =
            tile_place(order, static_cast<int>(row % 64), static_cast<int>(c % 64));
        const uint32_t code = code_at(part, r, c);
        result.codes[static_cast<std::size_t>(tile * 512 + place.thread * 4 + place.word)] |=
            format.element == ElementType::kE2M1 ? e2m1_word_bits(code, place.index)
                                                 : (code ^ 8u) << (4 * place.index);
        if (c % format.group_size != 0) continue;
        const int64_t group = c / format.group_size;
        const int64_t offset = tile * 64 * groups * bytes +
                               tile_scale_offset(static_cast<int>(row % 64),
                                                 static_cast<int>(group % groups), groups, bytes);
        for (int b = 0; b < bytes; ++b) {
          const int byte = scales[(r * part.num_groups() + group) * bytes + b];
          result.scales[static_cast<std::size_t>(offset + b)] =
              static_cast<uint8_t>(format.scale == ScaleType::kE8M0 ? byte - largest + 127 : byte);
        }
      }
    }
    begin += part.rows;
  }
  return result;
}

TEST(PackFp4, MatchesTheLayoutBitForBitWithOddParts) {
  LATHE_NEEDS_GPU();
  for (const char* format : kFp4Formats) {
    SCOPED_TRACE(format);
    std::vector<QuantizedMatrix> parts;
    parts.push_back(random_matrix(format, 70, 192, 1));
    parts.push_back(random_matrix(format, 1, 192, 2));
    parts.push_back(random_matrix(format, 33, 192, 3));
    const auto bias = normal_values(33, 4);
    const PackPart views[] = {{&parts[0]}, {&parts[1]}, {&parts[2], bias.data()}};
    const PackedFp4 packed = pack_fp4(views, nullptr);
    ASSERT_EQ(packed.n, 104);
    const Tiles expected = tiles_by_definition(parts);
    std::vector<uint32_t> codes(expected.codes.size());
    std::vector<uint8_t> scales(expected.scales.size());
    ASSERT_EQ(packed.codes.size(), static_cast<int64_t>(codes.size() * 4));
    ASSERT_EQ(packed.scales.size(), static_cast<int64_t>(scales.size()));
    packed.codes.to_host(codes.data(), packed.codes.size());
    packed.scales.to_host(scales.data(), packed.scales.size());
    EXPECT_EQ(codes, expected.codes);
    EXPECT_EQ(scales, expected.scales);
    std::vector<float> packed_bias(104);
    packed.bias.to_host(packed_bias.data(), 104 * 4);
    for (std::size_t i = 0; i < 104; ++i) EXPECT_EQ(packed_bias[i], i < 71 ? 0 : bias[i - 71]);
  }
}

TEST(DequantizeCuda, GivesTheNumbersOfTheReference) {
  LATHE_NEEDS_GPU();
  for (const char* format :
       {"mxfp4", "mxfp4-fitted", "nvfp4", "int4", "nvint4", "mxint4", "int8", "fp8", "mxfp8"}) {
    SCOPED_TRACE(format);
    const QuantizedMatrix matrix = random_matrix(format, 37, 2112, 5);
    const auto expected = dequantized(matrix);
    const auto codes = DeviceBuffer::from_host(matrix.codes.data(), matrix.codes.size());
    const auto scales = DeviceBuffer::from_host(matrix.scales.data(), matrix.scales.size());
    const DeviceMatrixView view{matrix.format,    matrix.rows,    matrix.cols,
                                codes.data(),     scales.data(),  matrix.global_scale,
                                matrix.log_alpha, matrix.log_beta};
    DeviceArray<float> f32(37 * 2112);
    dequantize_cuda(view, CudaElement::kF32, f32.data(), nullptr);
    EXPECT_EQ(f32.host(), expected);
    DeviceArray<uint16_t> bf16(37 * 2112);
    dequantize_cuda(view, CudaElement::kBF16, bf16.data(), nullptr);
    EXPECT_EQ(bf16.host(), to_bf16(expected));
  }
}

TEST(DequantizeCuda, ReadsPackedTiles) {
  LATHE_NEEDS_GPU();
  for (const char* format : kFp4Formats) {
    SCOPED_TRACE(format);
    const QuantizedMatrix matrix = random_matrix(format, 77, 320, 6);
    const PackPart part{&matrix};
    const PackedFp4 packed = pack_fp4(std::span(&part, 1), nullptr);
    DeviceArray<float> f32(77 * 320);
    dequantize_cuda(packed.tiles(), CudaElement::kF32, f32.data(), nullptr);
    // The row factor and the product are rounded to fp32 once each.
    const auto got = f32.host(), expected = dequantized(matrix);
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_LE(std::fabs(got[i] - expected[i]), std::fabs(expected[i]) * 0x1p-23) << i;
    }
  }
}

// One problem with its inputs on the device.
struct Problem {
  int64_t m, n, k;
  std::vector<float> w;  // as the kernel multiplies it, but for the row factors of the format
  PackedFp4 packed;
  std::vector<float> x, x_scales, bias;
  DeviceArray<uint16_t> x_device;
  DeviceArray<float> x_scales_device;

  Problem(const std::string& format, int64_t rows, int64_t outputs, int64_t inputs, uint64_t seed)
      : m(rows),
        n(outputs),
        k(inputs),
        x(from_bf16(to_bf16(normal_values(m * k, seed)))),
        x_scales(normal_values(m, seed + 1)),
        bias(normal_values(n, seed + 2)),
        x_device(to_bf16(x)),
        x_scales_device(x_scales) {
    const QuantizedMatrix matrix = random_matrix(format, n, k, seed + 3);
    w = dequantized(matrix);
    // INT4: code * scale is rounded to bf16 on the way.
    if (format == "int4") w = from_bf16(to_bf16(w));
    const PackPart part{&matrix, bias.data()};
    packed = pack_fp4(std::span(&part, 1), nullptr);
  }
};

// y of rows [first, first + count) of x, fp32.
template <typename T>
std::vector<T> run(Problem& p, const SmallLinearConfig& config, bool extras, int64_t first,
                   int64_t count) {
  Fp4Tiles tiles = p.packed.tiles();
  if (!extras) tiles.bias = nullptr;
  const int64_t stride = p.n + 3;
  DeviceArray<T> y(count * stride);
  const CudaLinearInput input{CudaElement::kBF16, p.x_device.data() + first * p.k,
                              extras ? p.x_scales_device.data() + first : nullptr, count, p.k};
  const CudaLinearOutput output{sizeof(T) == 4 ? CudaElement::kF32 : CudaElement::kBF16, y.data(),
                                stride};
  linear_fp4_small_sm90(tiles, input, output, config, nullptr);
  const auto padded = y.host();
  std::vector<T> result;
  for (int64_t t = 0; t < count; ++t) {
    result.insert(result.end(), padded.begin() + t * stride, padded.begin() + t * stride + p.n);
    // What lies between rows is left alone: still 0xff.
    for (int64_t i = p.n; i < stride; ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, &padded[static_cast<std::size_t>(t * stride + i)], sizeof(T));
      EXPECT_EQ(bits, sizeof(T) == 4 ? 0xffffffffu : 0xffffu);
    }
  }
  return result;
}

// Products of bf16 are exact in fp32. One instruction adds 16 of them to a sum, each cut to 2^-24
// of the largest: so k products leave at most (k + k / 16) 2^-24 of the sum of magnitudes; scaling
// and adding up the groups (k / 32) and the warps' parts (8), two factors and the bias are each an
// fp32 rounding.
void expect_right(const Problem& p, bool extras, const std::vector<float>& y,
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
      const double factor = extras ? double{p.x_scales[static_cast<std::size_t>(t)]} : 1.0;
      const double bias = extras ? double{p.bias[static_cast<std::size_t>(j)]} : 0.0;
      const double expected = sum * factor + bias;
      const double tolerance =
          std::fabs(factor) * magnitudes * (static_cast<double>(p.k) * 1.125 + 12) * 0x1p-24 +
          std::fabs(bias) * 0x1p-22 + std::fabs(expected) * output_rounding;
      const double got = y[static_cast<std::size_t>(t * p.n + j)];
      ASSERT_TRUE(std::fabs(got - expected) <= tolerance)
          << "row " << t << " column " << j << ": " << got << ", expected " << expected << " +- "
          << tolerance;
    }
  }
}

TEST(LinearFp4Small, MatchesTheReferenceForEveryNumberOfRows) {
  LATHE_NEEDS_GPU();
  for (const char* format : kFp4Formats) {
    Problem p(format, kSmallLinearMaxRows, 131, 448, 10);
    for (int64_t m = 1; m <= kSmallLinearMaxRows; ++m) {
      SCOPED_TRACE(testing::Message() << format << " m=" << m);
      const auto config = choose_small_linear_config(m, p.n, kHopperSms);
      p.m = m;
      const bool extras = m % 2 == 1;
      expect_right(p, extras, run<float>(p, config, extras, 0, m), 0x1p-23, 1);
      expect_right(p, extras, from_bf16(run<uint16_t>(p, config, extras, 0, m)), 0x1p-8, 1);
      if (HasFatalFailure()) return;
    }
  }
}

// The order of a row's sums is the same in all versions, so their bits are.
TEST(LinearFp4Small, EveryVersionGivesTheSameBits) {
  LATHE_NEEDS_GPU();
  const struct {
    int64_t m, n, k;
  } sizes[] = {{3, 64, 64},     {9, 1, 64},     {16, 200, 128},  {7, 65, 704},     {8, 4096, 576},
               {16, 9000, 320}, {4, 700, 4096}, {12, 513, 1088}, {1, 1000, 28672}, {1, 30000, 192}};
  for (const auto& size : sizes) {
    for (const char* format : kFp4Formats) {
      Problem p(format, size.m, size.n, size.k, 20);
      std::vector<float> first;
      for (const int strips : {1, 2, 4}) {
        auto config = small_linear_config(p.m, p.n, strips, kHopperSms);
        SCOPED_TRACE(testing::Message() << format << ' ' << p.m << " x " << p.n << " x " << p.k
                                        << ": " << to_string(config));
        const auto y = run<float>(p, config, true, 0, p.m);
        if (first.empty()) {
          const int64_t step = std::max<int64_t>(1, p.m * p.n * p.k / 4000000) | 1;
          expect_right(p, true, y, 0x1p-23, step);
          first = y;
        }
        ASSERT_EQ(0, std::memcmp(y.data(), first.data(), y.size() * 4));
        config.blocks = (config.blocks + 2) / 3;  // more panels each
        config.rows = 16;
        const auto again = run<float>(p, config, true, 0, p.m);
        ASSERT_EQ(0, std::memcmp(y.data(), again.data(), y.size() * 4));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(LinearFp4Small, ARowDoesNotDependOnTheOthers) {
  LATHE_NEEDS_GPU();
  for (const char* format : kFp4Formats) {
    for (const int64_t m : {2, 8, 9, 16}) {
      SCOPED_TRACE(testing::Message() << format << " m=" << m);
      Problem p(format, m, 520, 2048, 30);
      const auto config = choose_small_linear_config(m, p.n, kHopperSms);
      const auto all = run<float>(p, config, true, 0, m);
      const auto config_of_one = choose_small_linear_config(1, p.n, kHopperSms);
      for (const int64_t row : {int64_t{0}, m / 2, m - 1}) {
        const auto alone = run<float>(p, config_of_one, true, row, 1);
        EXPECT_EQ(0, std::memcmp(alone.data(), all.data() + row * p.n, alone.size() * 4)) << row;
      }
      const auto again = run<float>(p, config, true, 0, m);
      EXPECT_EQ(0, std::memcmp(again.data(), all.data(), all.size() * 4));
    }
  }
}

TEST(LinearFp4Small, InfinityAndNanStayInTheirRow) {
  LATHE_NEEDS_GPU();
  Problem p("mxfp4", 5, 100, 256, 40);
  auto x = p.x;
  x[256 + 7] = NAN;
  x[3 * 256 + 9] = INFINITY;
  p.x_device = DeviceArray<uint16_t>(to_bf16(x));
  const auto y = run<float>(p, choose_small_linear_config(5, p.n, kHopperSms), false, 0, 5);
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::size_t row = i / 100;
    if (row == 1) {
      EXPECT_TRUE(std::isnan(y[i])) << i;
    } else if (row == 3) {
      EXPECT_FALSE(std::isfinite(y[i])) << i;
    } else {
      EXPECT_TRUE(std::isfinite(y[i])) << i;
    }
  }
}

TEST(LinearFp4Small, BadArgumentsAreErrors) {
  LATHE_NEEDS_GPU();
  Problem p("mxfp4", 9, 64, 64, 50);
  auto config = choose_small_linear_config(8, p.n, kHopperSms);
  EXPECT_THROW(run<float>(p, config, false, 0, 9), Error);
  config.strips = 3;
  EXPECT_THROW(run<float>(p, config, false, 0, 8), Error);
  config.strips = 1;
  config.blocks = 0;
  EXPECT_THROW(run<float>(p, config, false, 0, 8), Error);
  const QuantizedMatrix matrix = random_matrix("mxfp8", 64, 64, 51);
  const PackPart part{&matrix};
  EXPECT_THROW(pack_fp4(std::span(&part, 1), nullptr), Error);
}

TEST(SmallLinearConfig, CoversTheRowsOfWWithBlocksThatFit) {
  for (const int64_t m : {1, 8, 9, 16}) {
    for (const int64_t n : {1, 576, 4096, 6144, 28672, 57344, 151936}) {
      const auto config = choose_small_linear_config(m, n, kHopperSms);
      SCOPED_TRACE(testing::Message() << m << ' ' << n << ": " << to_string(config));
      EXPECT_GE(config.rows, m);
      const int64_t panels = (n + 16 * config.strips - 1) / (16 * config.strips);
      EXPECT_GE(config.blocks, 1);
      EXPECT_LE(config.blocks, panels);
      EXPECT_LE(config.blocks, kHopperSms * kSmallLinearResidents);
      // As even as it can be: no fewer blocks would need as few rounds.
      const int64_t rounds = (panels + config.blocks - 1) / config.blocks;
      EXPECT_LT(int64_t{config.blocks - 1} * rounds, panels);
    }
  }
}

}  // namespace
}  // namespace lathe
