#include "kernels/linear/linear.h"

#include <array>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/rng.h"
#include "kernels/linear/linear_kernels.h"
#include "kernels/linear/panels.h"
#include "quant/encode.h"
#include "support/all_close.h"

namespace lathe {
namespace {

constexpr const char* kFormats[] = {"mxfp4", "nvfp4", "int4",        "int8",
                                    "fp8",   "mxfp8", "mxfp4-fitted"};
constexpr ActivationFormat kActivations[] = {ActivationFormat::kNone,  ActivationFormat::kInt8,
                                             ActivationFormat::kMxfp4, ActivationFormat::kNvfp4,
                                             ActivationFormat::kFp8,   ActivationFormat::kMxfp8};
constexpr float kGuard = -12345.5f;

struct Machine {
  ThreadPool threads{2};
  Workspace workspace;
  Exec exec{threads, workspace};
};

// A weight of any kind with its parts kept alive.
struct Weight {
  std::vector<QuantizedMatrix> quantized;
  std::vector<Tensor> dense;
  std::vector<std::vector<float>> biases;
  std::vector<LinearPart> parts;
  LinearScheme scheme;
  ComputeType compute = ComputeType::kAuto;
  double norm = 0;  // the largest norm of a row

  std::unique_ptr<PackedLinear> pack(std::string_view kernel, Exec& exec) const {
    return pack_linear_for(kernel, parts, scheme, compute, exec);
  }
  Arithmetic arithmetic(Exec& exec) const {
    return static_cast<const PackedWeight&>(*pack("ref", exec)).arithmetic;
  }
};

double norm(const float* x, int64_t count) {
  return std::sqrt(std::inner_product(x, x + count, x, 0.0));
}

// One part per entry of `rows`. Formats by name, or bf16, f16, f32.
Weight make_weight(const std::string& format, const std::vector<int64_t>& rows, int64_t k,
                   bool with_bias = false, uint64_t seed = 1) {
  Weight weight;
  weight.quantized.reserve(rows.size());
  weight.dense.reserve(rows.size());
  for (const int64_t n : rows) {
    const auto w = normal_values(n * k, seed++, 0.1);
    LinearPart part;
    if (format == "bf16" || format == "f16" || format == "f32") {
      const TensorView view{DType::kF32, {n, k}, reinterpret_cast<const std::byte*>(w.data())};
      weight.dense.push_back(convert(view, format == "f32"    ? DType::kF32
                                           : format == "bf16" ? DType::kBF16
                                                              : DType::kF16));
      part.dense = &weight.dense.back();
    } else {
      weight.quantized.push_back(quantize_absmax(weight_format_from_name(format), w.data(), n, k));
      part.quantized = &weight.quantized.back();
    }
    if (with_bias) {
      weight.biases.push_back(normal_values(n, seed++));
      part.bias = weight.biases.back().data();
    }
    weight.parts.push_back(part);
    // Quantization changes a row's norm by far less than a tenth.
    for (int64_t row = 0; row < n; ++row) {
      weight.norm = std::max(weight.norm, 1.1 * norm(w.data() + row * k, k));
    }
  }
  return weight;
}

std::vector<float> multiply(const LinearInput& input, const PackedLinear& weight, Exec& exec) {
  const int64_t stride = weight.n + 3;
  std::vector<float> y(static_cast<std::size_t>(input.m * stride), kGuard);
  linear(input, weight, y.data(), stride, exec);
  std::vector<float> rows;
  for (int64_t t = 0; t < input.m; ++t) {
    const auto row = y.begin() + t * stride;
    rows.insert(rows.end(), row, row + weight.n);
    for (int64_t i = weight.n; i < stride; ++i) EXPECT_EQ(row[i], kGuard) << "written behind a row";
  }
  return rows;
}

std::vector<float> run(const PackedLinear& weight, const std::vector<float>& x, Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  const int64_t m = static_cast<int64_t>(x.size()) / weight.k;
  return multiply(prepare_input(x.data(), m, weight, exec), weight, exec);
}

// Of a kernel with AMX; 0 for the others.
int input_terms(const PackedLinear& weight) {
  const auto* panels = dynamic_cast<const PanelWeight*>(&weight);
  return panels == nullptr ? 0 : panels->panels.input_terms;
}

// Every kernel that this machine runs, on the same prepared input as the reference.
void expect_like_reference(const Weight& weight, const std::vector<float>& x, Exec& exec) {
  const auto reference = weight.pack("ref", exec);
  const auto arithmetic = static_cast<const PackedWeight&>(*reference).arithmetic;
  const int64_t k = reference->k;
  const int64_t m = static_cast<int64_t>(x.size()) / k;
  double x_norm = 0;
  for (int64_t t = 0; t < m; ++t) x_norm = std::max(x_norm, norm(x.data() + t * k, k));
  const Workspace::Scope scope(exec.workspace);
  const LinearInput input = prepare_input(x.data(), m, *reference, exec);
  const auto expected = multiply(input, *reference, exec);
  // k terms (integer kernels: one for each group) are added one by one in fp32. Every addition
  // rounds by at most u = eps / 2 times a partial sum, which is at most |w| |x|; the signs are
  // random, so the errors add up like the root of their number. 4 deviations, and a few roundings
  // for scales and bias.
  const double additions = static_cast<double>(input.group == 0 ? k : k / input.group);
  const double tolerance =
      (4 * std::sqrt(additions) + 8) * 0.5 * FLT_EPSILON * (weight.norm * 1.2 * x_norm + 1);
  // Numbers in two terms of bf16: up to 2^-17 of both factors, and 2^-16 of the product left out.
  const double of_two_terms = 0x1p-15 * weight.norm * x_norm;
  for (const Kernel<LinearArgs>& row : linear_kernels(arithmetic)) {
    if (!machine_has(row.needs)) continue;
    SCOPED_TRACE(row.name);
    const auto packed = weight.pack(row.name, exec);
    EXPECT_TRUE(same_input_class(*packed, *reference));
    EXPECT_TRUE(all_close(multiply(input, *packed, exec), expected, 0,
                          tolerance + (input_terms(*packed) == 2 ? of_two_terms : 0)));
  }
}

// W4A16 of the reference against a plain product with the decoded weight, and what quantizing the
// input costs.
TEST(Linear, ReferenceMultipliesTheDecodedWeight) {
  Machine machine;
  const int64_t n = 5, k = 64, m = 3;
  const auto x = normal_values(m * k, 1);
  for (const char* name : kFormats) {
    Weight weight = make_weight(name, {n}, k);
    std::vector<float> decoded(static_cast<std::size_t>(n * k));
    dequantize_rows(weight.quantized[0], 0, n, decoded.data());
    std::vector<float> expected;
    for (int64_t t = 0; t < m; ++t) {
      for (int64_t row = 0; row < n; ++row) {
        expected.push_back(static_cast<float>(std::inner_product(
            x.begin() + t * k, x.begin() + (t + 1) * k, decoded.begin() + row * k, 0.0)));
      }
    }
    for (const ActivationFormat activations : kActivations) {
      SCOPED_TRACE(testing::Message() << name << " " << activation_format_name(activations));
      weight.scheme.activations = activations;
      // Error of an element of x: int8 half of amax / 127, E4M3 2^-4 of it, E2M1 a quarter of its
      // binade (clipping included: 1/3); with random signs, 4 deviations of the product's norm.
      const bool fp4 =
          activations == ActivationFormat::kMxfp4 || activations == ActivationFormat::kNvfp4;
      const bool fp8 =
          activations == ActivationFormat::kFp8 || activations == ActivationFormat::kMxfp8;
      const double element = fp4 ? 0.33 : fp8 ? 0.0625 : 0.016;
      const double tolerance = 4 * element * weight.norm;
      weight.compute = ComputeType::kAuto;
      EXPECT_TRUE(all_close(run(*weight.pack("ref", machine.exec), x, machine.exec), expected, 0,
                            tolerance));
      weight.compute = ComputeType::kF32;
      const auto exact = weight.pack("ref", machine.exec);
      EXPECT_TRUE(all_close(run(*exact, x, machine.exec), expected,
                            activations == ActivationFormat::kNone ? FLT_EPSILON : 0,
                            activations == ActivationFormat::kNone ? 0 : tolerance));
    }
  }
}

// Integer kernels and decode-then-multiply agree for quantized activations: W4A4 is one arithmetic.
TEST(Linear, IntegerArithmeticEqualsQuantizeThenMultiply) {
  Machine machine;
  const int64_t k = 128, m = 4;
  const auto x = normal_values(m * k, 5);
  for (const char* name : {"mxfp4", "nvfp4", "int4", "int8"}) {
    for (const ActivationFormat activations :
         {ActivationFormat::kMxfp4, ActivationFormat::kNvfp4, ActivationFormat::kInt8}) {
      SCOPED_TRACE(testing::Message() << name << " " << activation_format_name(activations));
      Weight weight = make_weight(name, {24}, k);
      weight.scheme = {.activations = activations, .input_global_scale = 600, .hadamard = 32};
      // The groups of int8 activations follow the weight's in integer kernels only.
      if (activations == ActivationFormat::kInt8 && std::string(name) == "nvfp4") continue;
      ASSERT_EQ(weight.arithmetic(machine.exec), Arithmetic::kInteger);
      const auto integer = run(*weight.pack("ref", machine.exec), x, machine.exec);
      weight.compute = ComputeType::kF32;
      ASSERT_EQ(weight.arithmetic(machine.exec), Arithmetic::kFloat);
      const auto decoded = run(*weight.pack("ref", machine.exec), x, machine.exec);
      // Both sums are in double; the dequantized values were rounded to fp32 once each.
      EXPECT_TRUE(
          all_close(integer, decoded, 0, 2 * FLT_EPSILON * weight.norm * norm(x.data(), k)));
    }
  }
}

TEST(Linear, EveryKernelMatchesTheReference) {
  Machine machine;
  for (const char* name : kFormats) {
    for (const ActivationFormat activations : kActivations) {
      for (const ComputeType compute : {ComputeType::kAuto, ComputeType::kF32}) {
        for (const int64_t k : {32, 96, 576}) {
          SCOPED_TRACE(testing::Message()
                       << name << " " << activation_format_name(activations)
                       << (compute == ComputeType::kF32 ? " f32" : "") << " k=" << k);
          Weight weight = make_weight(name, {37}, k, true);
          weight.scheme = {
              .activations = activations, .input_global_scale = 500, .hadamard = k % 64 ? 32 : 64};
          weight.compute = compute;
          expect_like_reference(weight, normal_values(7 * k, 3), machine.exec);
        }
      }
    }
  }
}

TEST(Linear, EveryKernelMatchesTheReferenceForEveryNumberOfRows) {
  Machine machine;
  for (const char* name : {"mxfp4", "nvfp4", "int4", "int8", "mxfp8", "bf16", "f16", "f32"}) {
    for (const int64_t m : {1, 2, 3, 5, 7, 8, 13, 16, 17, 64, 129}) {
      SCOPED_TRACE(testing::Message() << name << " m=" << m);
      expect_like_reference(make_weight(name, {19}, 64), normal_values(m * 64, 3), machine.exec);
    }
  }
}

TEST(Linear, EveryKernelMatchesTheReferenceForEveryShape) {
  Machine machine;
  for (const char* name : {"mxfp4", "nvfp4", "int8", "bf16"}) {
    for (const int64_t n : {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100}) {
      SCOPED_TRACE(testing::Message() << name << " n=" << n);
      expect_like_reference(make_weight(name, {n}, 96), normal_values(3 * 96, 3), machine.exec);
    }
    for (const int64_t k : {64, 896, 4864}) {  // 40 rows: more than one block of rows at k = 4864
      SCOPED_TRACE(testing::Message() << name << " k=" << k);
      expect_like_reference(make_weight(name, {20}, k), normal_values(40 * k, 3), machine.exec);
    }
  }
}

TEST(Linear, DenseWeightsTakeAnyWidth) {
  Machine machine;
  for (const char* name : {"bf16", "f16", "f32"}) {
    for (const int64_t k : {1, 2, 7, 31, 33, 257}) {
      SCOPED_TRACE(testing::Message() << name << " k=" << k);
      expect_like_reference(make_weight(name, {21}, k, true), normal_values(9 * k, 3),
                            machine.exec);
    }
  }
}

TEST(Linear, StackedPartsAreTheRowsOneAfterTheOther) {
  Machine machine;
  const int64_t k = 64;
  const auto x = normal_values(2 * k, 9);
  for (const char* name : {"mxfp4", "nvfp4", "int8", "fp8", "bf16"}) {
    SCOPED_TRACE(name);
    const Weight weight = make_weight(name, {13, 3, 22}, k, true);
    expect_like_reference(weight, x, machine.exec);
    const auto together = run(*pack_linear(weight.parts, {}, {}, machine.exec), x, machine.exec);
    int64_t first = 0;
    for (const LinearPart& part : weight.parts) {
      const auto alone = run(*pack_linear({&part, 1}, {}, {}, machine.exec), x, machine.exec);
      const int64_t n = part_rows(part);
      for (int64_t t = 0; t < 2; ++t) {
        for (int64_t i = 0; i < n; ++i) {
          EXPECT_EQ(together[static_cast<std::size_t>(t * 38 + first + i)],
                    alone[static_cast<std::size_t>(t * n + i)]);
        }
      }
      first += n;
    }
  }
}

// Numbers whose sums are integers below 2^24: every order of additions gives the same bits.
TEST(Linear, IsExactOnIntegers) {
  Machine machine;
  const int64_t n = 45, k = 4864, m = 6;
  for (const char* name : {"mxfp4", "nvfp4", "int4", "int8"}) {
    for (const ActivationFormat activations : {ActivationFormat::kInt8, ActivationFormat::kMxfp4}) {
      SCOPED_TRACE(testing::Message() << name << " " << activation_format_name(activations));
      const WeightFormat format = weight_format_from_name(name);
      const bool int8 = activations == ActivationFormat::kInt8;
      Rng rng(7);
      QuantizedMatrix matrix = make_quantized_matrix(format, n, k);
      for (int64_t i = 0; i < matrix.codes.size(); ++i) {
        const auto byte = static_cast<uint8_t>(rng.below(256));
        // int8: |w| <= 16 keeps the sums small; -128 and 127 have the next test.
        matrix.codes.as<uint8_t>()[i] =
            format.element == ElementType::kInt8 ? static_cast<uint8_t>(byte % 33 - 16) : byte;
      }
      for (int64_t row = 0; row < n; ++row) {
        for (int64_t g = 0; g < matrix.num_groups(); ++g) store_scale(matrix, row, g, 1);
      }
      // Every group holds its format's largest number, so the scale is 1.
      std::vector<float> x(static_cast<std::size_t>(m * k));
      for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = int8 ? static_cast<float>(static_cast<int>(rng.below(255)) - 127)
                    : std::array{0.0f, 0.5f, -1.0f, 1.5f, 2.0f, -3.0f, 4.0f, -6.0f}[rng.below(8)];
        if (i % 16 == 5) x[i] = int8 ? 127 : 6;
      }
      std::vector<float> decoded(static_cast<std::size_t>(n * k));
      dequantize_rows(matrix, 0, n, decoded.data());
      const LinearPart part{.quantized = &matrix};
      for (const auto& row : linear_kernels(Arithmetic::kInteger)) {
        if (!machine_has(row.needs)) continue;
        const LinearScheme scheme{.activations = activations};
        const auto packed =
            pack_linear_for(row.name, {&part, 1}, scheme, ComputeType::kAuto, machine.exec);
        const auto y = run(*packed, x, machine.exec);
        for (int64_t t = 0; t < m; ++t) {
          for (int64_t i = 0; i < n; ++i) {
            const double expected = std::inner_product(x.begin() + t * k, x.begin() + (t + 1) * k,
                                                       decoded.begin() + i * k, 0.0);
            ASSERT_EQ(y[static_cast<std::size_t>(t * n + i)], expected) << row.name;
          }
        }
      }
    }
  }
}

// The largest codes of both operands, of either sign, in every position: no 16-bit lane overflows.
TEST(Linear, HoldsTheLargestSumsOfAGroup) {
  Machine machine;
  for (const char* name : {"mxfp4", "nvfp4", "int4", "int8"}) {
    const WeightFormat format = weight_format_from_name(name);
    for (const int code : {0x77, 0x88, 0xff, 0x7f, 0x80, 0x81}) {
      SCOPED_TRACE(testing::Message() << name << " code " << code);
      QuantizedMatrix matrix = make_quantized_matrix(format, 16, 64);
      std::memset(matrix.codes.data(), code, static_cast<std::size_t>(matrix.codes.size()));
      for (int64_t row = 0; row < 16; ++row) {
        for (int64_t g = 0; g < matrix.num_groups(); ++g) store_scale(matrix, row, g, 1);
      }
      std::vector<float> decoded(64);
      dequantize_rows(matrix, 0, 1, decoded.data());
      const LinearPart part{.quantized = &matrix};
      for (const float value : {127.0f, -127.0f}) {
        const std::vector<float> x(64, value);
        const double expected = std::inner_product(x.begin(), x.end(), decoded.begin(), 0.0);
        for (const auto& row : linear_kernels(Arithmetic::kInteger)) {
          if (!machine_has(row.needs)) continue;
          const auto packed =
              pack_linear_for(row.name, {&part, 1}, {}, ComputeType::kAuto, machine.exec);
          for (const float y : run(*packed, x, machine.exec)) EXPECT_EQ(y, expected) << row.name;
        }
      }
    }
  }
}

TEST(Linear, ARowAloneHasTheBitsOfTheRowInABatch) {
  Machine machine;
  const int64_t k = 576, m = 133;
  const auto x = normal_values(m * k, 11);
  for (const char* name : {"mxfp4", "nvfp4", "int8", "fp8", "bf16", "f32"}) {
    for (const ComputeType compute : {ComputeType::kAuto, ComputeType::kF32}) {
      Weight weight = make_weight(name, {37}, k, true);
      weight.scheme.hadamard = 64;
      weight.compute = compute;
      for (const auto& row : linear_kernels(weight.arithmetic(machine.exec))) {
        if (!machine_has(row.needs)) continue;
        SCOPED_TRACE(testing::Message() << name << " " << row.name);
        const auto packed = weight.pack(row.name, machine.exec);
        const auto batch = run(*packed, x, machine.exec);
        for (const int64_t count : {1, 2, 3, 4, 6, 11, 64}) {
          for (int64_t t = 0; t + count <= m; t += count == 1 ? 1 : 41) {
            const std::vector<float> some(x.begin() + t * k, x.begin() + (t + count) * k);
            const auto y = run(*packed, some, machine.exec);
            ASSERT_EQ(std::memcmp(y.data(), batch.data() + t * 37, y.size() * sizeof(float)), 0)
                << "rows " << t << " to " << t + count;
          }
        }
      }
    }
  }
}

TEST(Linear, TakesExtremeScales) {
  Machine machine;
  const int64_t n = 9, k = 64;
  for (const auto& [byte, magnitude] : {std::pair{0, 1e30}, {1, 1e30}, {254, 1e-30}}) {
    SCOPED_TRACE(testing::Message() << "E8M0 byte " << byte);
    Weight weight = make_weight("mxfp4", {n}, k);
    std::memset(weight.quantized[0].scales.data(), byte,
                static_cast<std::size_t>(weight.quantized[0].scales.size()));
    // 1 and -1, so that the weights themselves do not overflow.
    Rng rng(3);
    for (int64_t i = 0; i < n * k / 2; ++i) {
      weight.quantized[0].codes.as<uint8_t>()[i] = rng.below(2) != 0 ? 0x2a : 0xa2;
    }
    const auto x = normal_values(k, 2, magnitude);
    for (const ComputeType compute : {ComputeType::kAuto, ComputeType::kF32}) {
      weight.compute = compute;
      const auto expected = run(*weight.pack("ref", machine.exec), x, machine.exec);
      for (const auto& row : linear_kernels(weight.arithmetic(machine.exec))) {
        if (!machine_has(row.needs)) continue;
        const auto y = run(*weight.pack(row.name, machine.exec), x, machine.exec);
        EXPECT_TRUE(all_close(y, expected, 1e-5)) << row.name;
        EXPECT_GT(std::fabs(y[0]), 0) << row.name;
      }
    }
  }
}

TEST(Linear, ZeroWeightsAndZeroInputsGiveTheBias) {
  Machine machine;
  for (const char* name : {"mxfp4", "nvfp4", "int8", "bf16"}) {
    const Weight weight = make_weight(name, {10}, 64, true);
    const auto packed = pack_linear(weight.parts, {}, {}, machine.exec);
    EXPECT_EQ(run(*packed, std::vector<float>(64), machine.exec), weight.biases[0]) << name;
  }
  for (const char* name : {"mxfp4", "nvfp4"}) {
    const QuantizedMatrix zero = make_quantized_matrix(weight_format_from_name(name), 10, 64);
    const LinearPart part{.quantized = &zero};
    const auto packed = pack_linear({&part, 1}, {}, {}, machine.exec);
    EXPECT_EQ(run(*packed, normal_values(64, 1), machine.exec), std::vector<float>(10)) << name;
  }
}

TEST(Linear, NanShowsInItsRowAndOnlyThere) {
  Machine machine;
  const int64_t n = 12, k = 64;
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const char* name : {"mxfp4", "nvfp4", "int8", "fp8", "bf16"}) {
      for (const ActivationFormat activations : kActivations) {
        Weight weight = make_weight(name, {n}, k);
        weight.scheme.activations = activations;
        auto x = normal_values(3 * k, 1);
        x[static_cast<std::size_t>(k + 40)] = bad;
        for (const auto& row : linear_kernels(weight.arithmetic(machine.exec))) {
          if (!machine_has(row.needs)) continue;
          SCOPED_TRACE(testing::Message() << name << " " << activation_format_name(activations)
                                          << " " << row.name << " " << bad);
          const auto y = run(*weight.pack(row.name, machine.exec), x, machine.exec);
          for (int64_t i = 0; i < 3 * n; ++i) {
            EXPECT_EQ(std::isfinite(y[static_cast<std::size_t>(i)]), i / n != 1) << i;
          }
        }
      }
    }
  }
}

TEST(Linear, NanScaleBytesOfTheWeightShow) {
  Machine machine;
  for (const auto& [name, byte] : {std::pair{"mxfp4", 0xff}, {"nvfp4", 0x7f}, {"nvfp4", 0xff}}) {
    Weight weight = make_weight(name, {12}, 64);
    QuantizedMatrix& matrix = weight.quantized[0];
    matrix.scales.as<uint8_t>()[3 * matrix.num_groups() + 1] = static_cast<uint8_t>(byte);
    for (const ComputeType compute : {ComputeType::kAuto, ComputeType::kF32}) {
      weight.compute = compute;
      for (const auto& row : linear_kernels(weight.arithmetic(machine.exec))) {
        if (!machine_has(row.needs)) continue;
        const auto y =
            run(*weight.pack(row.name, machine.exec), normal_values(64, 1), machine.exec);
        for (std::size_t i = 0; i < y.size(); ++i) {
          EXPECT_EQ(std::isnan(y[i]), i == 3) << name << " " << row.name << " " << i;
        }
      }
    }
  }
}

TEST(Linear, NoRowsAreANoOp) {
  Machine machine;
  for (const char* name : {"mxfp4", "bf16"}) {
    const Weight weight = make_weight(name, {4}, 32);
    const auto packed = pack_linear(weight.parts, {}, {}, machine.exec);
    linear(prepare_input(nullptr, 0, *packed, machine.exec), *packed, nullptr, 4, machine.exec);
  }
}

TEST(Linear, InputClassesTellWhatCanBeShared) {
  Machine machine;
  const auto pack = [&](const char* name, int64_t k, const LinearScheme& scheme) {
    const Weight weight = make_weight(name, {4}, k);
    return pack_linear(weight.parts, scheme, {}, machine.exec);
  };
  const auto a = pack("mxfp4", 64, {.hadamard = 32});
  EXPECT_TRUE(same_input_class(*a, *pack("mxfp4", 64, {.hadamard = 32})));
  EXPECT_TRUE(same_input_class(*a, *pack("int4", 64, {.hadamard = 32})));
  EXPECT_FALSE(same_input_class(*a, *pack("nvfp4", 64, {.hadamard = 32})));
  EXPECT_FALSE(same_input_class(*a, *pack("mxfp4", 128, {.hadamard = 32})));
  EXPECT_FALSE(same_input_class(*a, *pack("mxfp4", 64, {.hadamard = 64})));
  EXPECT_FALSE(same_input_class(*a, *pack("bf16", 64, {.hadamard = 32})));
  const LinearScheme nvfp4{.activations = ActivationFormat::kNvfp4, .input_global_scale = 5};
  const LinearScheme other{.activations = ActivationFormat::kNvfp4, .input_global_scale = 6};
  EXPECT_TRUE(same_input_class(*pack("nvfp4", 64, nvfp4), *pack("nvfp4", 64, nvfp4)));
  EXPECT_FALSE(same_input_class(*pack("nvfp4", 64, nvfp4), *pack("nvfp4", 64, other)));
}

TEST(Linear, RefusesPartsThatDoNotFit) {
  Machine machine;
  const Weight mxfp4 = make_weight("mxfp4", {4}, 64);
  const Weight wide = make_weight("mxfp4", {4}, 128);
  const Weight nvfp4 = make_weight("nvfp4", {4}, 64);
  const Weight bf16 = make_weight("bf16", {4}, 64);
  const Weight f32 = make_weight("f32", {4}, 64);
  const Tensor ints(DType::kI32, {4, 64});
  const Tensor flat(DType::kF32, {64});
  const LinearPart of_ints{.dense = &ints};
  const LinearPart of_flat{.dense = &flat};
  const struct {
    const char* what;
    std::vector<LinearPart> parts;
    ErrorCode code;
  } cases[] = {
      {"nothing", {}, ErrorCode::kInvalidArgument},
      {"an empty part", {LinearPart{}}, ErrorCode::kInvalidArgument},
      {"two widths", {mxfp4.parts[0], wide.parts[0]}, ErrorCode::kInvalidArgument},
      {"two formats", {mxfp4.parts[0], nvfp4.parts[0]}, ErrorCode::kInvalidArgument},
      {"dense and quantized", {mxfp4.parts[0], bf16.parts[0]}, ErrorCode::kInvalidArgument},
      {"quantized and dense", {bf16.parts[0], mxfp4.parts[0]}, ErrorCode::kInvalidArgument},
      {"two types", {bf16.parts[0], f32.parts[0]}, ErrorCode::kInvalidArgument},
      {"integers", {of_ints}, ErrorCode::kUnsupported},
      {"a vector", {of_flat}, ErrorCode::kInvalidArgument},
  };
  for (const auto& bad : cases) {
    SCOPED_TRACE(bad.what);
    try {
      pack_linear(bad.parts, {}, {}, machine.exec);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), bad.code) << error.what();
    }
  }
}

TEST(Linear, RefusesARotationThatDoesNotDivideTheInput) {
  Machine machine;
  const Weight weight = make_weight("mxfp4", {4}, 96);
  for (const int64_t block : {64, 128, 48, -16}) {
    try {
      pack_linear(weight.parts, {.hadamard = block}, {}, machine.exec);
      ADD_FAILURE() << "accepted " << block;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
    }
  }
}

}  // namespace
}  // namespace lathe
