#include "kernels/quantize_activations/quantize_activations.h"

#include <cfloat>
#include <cmath>

#include "base/error.h"
#include "quant/encode.h"
#include "quant/fp4_e2m1.h"
#include "quant/hadamard.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

constexpr ActivationFormat kIntegerFormats[] = {ActivationFormat::kInt8, ActivationFormat::kMxfp4,
                                                ActivationFormat::kNvfp4};
constexpr ActivationFormat kAllFormats[] = {ActivationFormat::kNone,  ActivationFormat::kInt8,
                                            ActivationFormat::kMxfp4, ActivationFormat::kNvfp4,
                                            ActivationFormat::kFp8,   ActivationFormat::kMxfp8};

struct Codes {
  std::vector<int> codes;     // [m, k]
  std::vector<float> scales;  // [m, k / group]
};

// Blocks of rows back to plain rows.
Codes quantize_to_codes(const Kernel<QuantizeActivationsArgs>& kernel, QuantizeActivationsArgs args,
                        Exec& exec) {
  constexpr int8_t kGuard = 0x5a;
  const int64_t num_groups = args.k / args.group;
  const auto guarded = [&](const auto& values) {
    return std::all_of(values.end() - 64, values.end(), [](auto c) { return c == kGuard; });
  };
  std::vector<int8_t> codes(static_cast<std::size_t>(args.m * args.k) + 64, kGuard);
  std::vector<int32_t> corrections(static_cast<std::size_t>(args.m * num_groups) + 64, kGuard);
  GuardedFloats scales(args.m * num_groups);
  args.codes = codes.data();
  args.scales = scales.data();
  args.corrections = corrections.data();
  kernel.run(args, exec);
  EXPECT_TRUE(scales.guards_intact() && guarded(codes) && guarded(corrections));
  Codes rows;
  for (int64_t t = 0; t < args.m; ++t) {
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t index = blocked_index(t, g, num_groups, args.m, args.block_rows);
      rows.scales.push_back(scales.data()[index]);
      int pair_sums[2] = {0, 0};
      for (int64_t j = 0; j < args.group; ++j) {
        const int code = codes[static_cast<std::size_t>(index * args.group + j)];
        rows.codes.push_back(code);
        pair_sums[j / 2 % 2] += code;
      }
      const int32_t correction = corrections[static_cast<std::size_t>(index)];
      EXPECT_EQ(static_cast<int16_t>(correction & 0xffff), -12 * pair_sums[0]);
      EXPECT_EQ(static_cast<int16_t>(correction >> 16), -12 * pair_sums[1]);
    }
  }
  return rows;
}

std::vector<float> quantize_to_values(const Kernel<QuantizeActivationsArgs>& kernel,
                                      QuantizeActivationsArgs args, Exec& exec) {
  GuardedFloats values(args.m * args.k);
  args.values = values.data();
  kernel.run(args, exec);
  EXPECT_TRUE(values.guards_intact());
  return values.values();
}

// Values of many magnitudes, with ties of every grid: quarters and eighths of powers of two.
std::vector<float> mixed_values(int64_t count, uint64_t seed) {
  auto x = normal_values(count, seed);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (i % 3 == 0) x[i] = std::round(x[i] * 8) / 8;
    if (i / 64 % 5 == 1) x[i] *= 1e-6f;
    if (i / 64 % 5 == 2) x[i] *= 1e6f;
    if (i / 64 % 5 == 3 && i % 64 < 40) x[i] = 0;
    if (i / 64 % 7 == 4) x[i] *= 1e-38f;
  }
  return x;
}

TEST(QuantizeActivations, EveryKernelHasTheBitsOfTheReference) {
  OwnedExec machine(2);
  const auto& reference = quantize_activations_kernels().back();
  for (const auto& kernel : runnable(quantize_activations_kernels())) {
    for (const ActivationFormat format : kAllFormats) {
      for (const int64_t k : {32, 96, 576}) {
        for (const int64_t m : {1, 2, 17, 133}) {
          for (const float global_scale : {0.0f, 700.0f}) {
            SCOPED_TRACE(testing::Message() << kernel.name << " " << activation_format_name(format)
                                            << " k=" << k << " m=" << m);
            const auto x = mixed_values(m * k, static_cast<uint64_t>(k + m));
            QuantizeActivationsArgs args;
            args.x = x.data();
            args.m = m;
            args.k = k;
            args.format = format;
            args.global_scale = global_scale;
            args.block_rows = 16;
            EXPECT_TRUE(same_bits(quantize_to_values(kernel, args, machine.exec),
                                  quantize_to_values(reference, args, machine.exec)));
            for (const int64_t group : {16, 32}) {
              if (format == ActivationFormat::kNone || format == ActivationFormat::kFp8 ||
                  format == ActivationFormat::kMxfp8 ||
                  (format == ActivationFormat::kNvfp4 && group == 32)) {
                continue;
              }
              args.group = group;
              const Codes actual = quantize_to_codes(kernel, args, machine.exec);
              const Codes expected = quantize_to_codes(reference, args, machine.exec);
              EXPECT_EQ(actual.codes, expected.codes);
              EXPECT_TRUE(same_bits(actual.scales, expected.scales));
            }
          }
        }
      }
    }
  }
}

TEST(QuantizeActivations, RowsOfOddLengthInFp8) {
  OwnedExec machine(2);
  for (const auto& kernel : runnable(quantize_activations_kernels())) {
    for (const int64_t k : {1, 7, 9, 31, 33}) {
      const auto x = normal_values(3 * k, 4);
      QuantizeActivationsArgs args;
      args.x = x.data();
      args.m = 3;
      args.k = k;
      args.format = ActivationFormat::kFp8;
      EXPECT_TRUE(
          same_bits(quantize_to_values(kernel, args, machine.exec),
                    quantize_to_values(quantize_activations_kernels().back(), args, machine.exec)))
          << kernel.name << " k=" << k;
    }
  }
}

// The rotation of quant/ (butterflies) and of the reference (the matrix) agree to fp32 rounding:
// log2(block) additions of numbers up to |x| sqrt(block) in size, before the normalisation.
TEST(QuantizeActivations, RotatesByTheHadamardMatrix) {
  OwnedExec machine(2);
  const int64_t m = 5, k = 384;
  const auto x = normal_values(m * k, 8);
  for (const auto& kernel : runnable(quantize_activations_kernels())) {
    for (const int64_t block : {16, 32, 64, 128}) {
      SCOPED_TRACE(testing::Message() << kernel.name << " block " << block);
      QuantizeActivationsArgs args;
      args.x = x.data();
      args.m = m;
      args.k = k;
      args.hadamard = block;
      auto expected = x;
      hadamard_rows(expected.data(), m, k, block);
      EXPECT_TRUE(
          all_close(quantize_to_values(kernel, args, machine.exec), expected, 7 * FLT_EPSILON));
      // Twice is the identity.
      const auto once = quantize_to_values(kernel, args, machine.exec);
      args.x = once.data();
      EXPECT_TRUE(all_close(quantize_to_values(kernel, args, machine.exec), x, 14 * FLT_EPSILON));
    }
  }
}

// Codes of a rotated input: equal to quantizing the row that hadamard_rows() gives, for the vector
// kernels exactly.
TEST(QuantizeActivations, QuantizesWhatItRotated) {
  OwnedExec machine(2);
  const int64_t m = 9, k = 256;
  const auto x = normal_values(m * k, 8);
  for (const auto& kernel : runnable(quantize_activations_kernels())) {
    if (kernel.name == "ref") continue;
    for (const ActivationFormat format : kIntegerFormats) {
      for (const int64_t block : {16, 32, 64, 128}) {
        QuantizeActivationsArgs args;
        args.x = x.data();
        args.m = m;
        args.k = k;
        args.hadamard = block;
        args.format = format;
        args.group = 16;
        args.block_rows = 4;
        const Codes fused = quantize_to_codes(kernel, args, machine.exec);
        auto rotated = x;
        hadamard_rows(rotated.data(), m, k, block);
        args.x = rotated.data();
        args.hadamard = 0;
        const Codes separate = quantize_to_codes(kernel, args, machine.exec);
        EXPECT_EQ(fused.codes, separate.codes) << kernel.name << " " << block;
        EXPECT_TRUE(same_bits(fused.scales, separate.scales)) << kernel.name << " " << block;
      }
    }
  }
}

// Activations in FP4 are what the weight encoder makes of the same numbers: one definition of MXFP4
// (the compressed-tensors rule) and NVFP4 in the project.
TEST(QuantizeActivations, Fp4EqualsTheWeightEncoder) {
  OwnedExec machine(1);
  const int64_t k = 512;
  const auto x = mixed_values(k, 21);
  for (const char* name : {"mxfp4", "nvfp4"}) {
    const QuantizedMatrix matrix = quantize_absmax(weight_format_from_name(name), x.data(), 1, k);
    std::vector<float> expected(static_cast<std::size_t>(k));
    dequantize_rows(matrix, 0, 1, expected.data());
    QuantizeActivationsArgs args;
    args.x = x.data();
    args.m = 1;
    args.k = k;
    args.format = activation_format_from_name(name);
    args.global_scale = args.format == ActivationFormat::kNvfp4 ? matrix.global_scale : 0;
    const auto values =
        quantize_to_values(quantize_activations_kernels().back(), args, machine.exec);
    // The scale of NVFP4 is divided in fp32 here and in double there.
    EXPECT_TRUE(all_close(values, expected, FLT_EPSILON)) << name;
  }
}

TEST(QuantizeActivations, NvfpRowsDoNotDependOnTheBatch) {
  OwnedExec machine(1);
  const int64_t k = 64;
  auto x = normal_values(2 * k, 2);
  for (int64_t j = 0; j < k; ++j) x[static_cast<std::size_t>(k + j)] *= 1000;
  QuantizeActivationsArgs args;
  args.x = x.data();
  args.m = 2;
  args.k = k;
  args.format = ActivationFormat::kNvfp4;
  for (const auto& kernel : runnable(quantize_activations_kernels())) {
    const auto both = quantize_to_values(kernel, args, machine.exec);
    args.m = 1;
    const auto alone = quantize_to_values(kernel, args, machine.exec);
    args.m = 2;
    EXPECT_TRUE(same_bits(alone, std::span(both).first(static_cast<std::size_t>(k))));
  }
}

TEST(QuantizeActivations, RefusesSizesThatDoNotFit) {
  OwnedExec machine(1);
  const std::vector<float> x(128);
  const struct {
    int64_t k, hadamard;
    ActivationFormat format;
  } cases[] = {{40, 16, ActivationFormat::kNone},
               {64, 128, ActivationFormat::kNone},
               {64, 24, ActivationFormat::kNone},
               {48, 0, ActivationFormat::kMxfp4},
               {40, 0, ActivationFormat::kNvfp4}};
  for (const auto& bad : cases) {
    std::vector<float> values(128);
    QuantizeActivationsArgs args;
    args.x = x.data();
    args.m = 1;
    args.k = bad.k;
    args.hadamard = bad.hadamard;
    args.format = bad.format;
    args.values = values.data();
    try {
      quantize_activations(args, machine.exec);
      ADD_FAILURE() << "accepted k=" << bad.k << " hadamard=" << bad.hadamard;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
    }
  }
}

}  // namespace
}  // namespace lathe
