// The quantizers of the GPU against the reference of the CPU: bit for bit on identical inputs. The
// operations in front of them (norm, gate) against theirs, with a tolerance; and what the fused
// kernels quantize, against the reference applied to the same kernel's unquantized output.
#include "kernels/quantize_activations/quantize_cuda.h"

#include <cfloat>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/quantize_activations/quantize_activations_kernels.h"
#include "kernels/rms_norm/rms_norm.h"
#include "quant/fp4_e2m1.h"
#include "quant/fp8.h"
#include "quant/hadamard.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

constexpr ActivationFormat kFormats[] = {ActivationFormat::kNone,  ActivationFormat::kInt8,
                                         ActivationFormat::kMxfp4, ActivationFormat::kNvfp4,
                                         ActivationFormat::kFp8,   ActivationFormat::kMxfp8};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

std::vector<float> reference_values(const std::vector<float>& x, int64_t m, int64_t k,
                                    const QuantizedTarget& target) {
  OwnedExec machine(1);
  std::vector<float> rotated = x;
  hadamard_rows(rotated.data(), m, k, target.hadamard);
  std::vector<float> values(x.size());
  QuantizeActivationsArgs args;
  args.x = rotated.data();
  args.m = m;
  args.k = k;
  args.format = target.format;
  args.global_scale = target.global_scale;
  args.values = values.data();
  quantize_activations_ref(args, machine.exec);
  return values;
}

struct Quantized {
  std::vector<float> values;  // as numbers, without the factor of the row
  std::vector<uint8_t> codes;
  std::vector<float> row_scales;
};

// Runs an operation into a poisoned target and brings the result back as numbers.
template <typename Run>
Quantized run_into(QuantizedTarget target, int64_t m, int64_t k, bool with_scales, Run run) {
  Quantized result;
  DeviceArray<float> scales(with_scales ? m : 0);
  if (with_scales) target.row_scales = scales.data();
  const auto run_as = [&](auto element) {
    DeviceArray<decltype(element)> data(m * k);
    target.data = data.data();
    run(target);
    return data.host();
  };
  switch (target.element) {
    case CudaElement::kF32:
      result.values = run_as(float{});
      break;
    case CudaElement::kBF16:
      result.values = from_bf16(run_as(uint16_t{}));
      break;
    case CudaElement::kE4M3:
      result.codes = run_as(uint8_t{});
      for (const uint8_t code : result.codes) result.values.push_back(e4m3_to_float(code));
      break;
  }
  if (with_scales) result.row_scales = scales.host();
  return result;
}

Quantized quantize_rows(const std::vector<float>& x, int64_t m, int64_t k,
                        const QuantizedTarget& target, bool with_scales = false) {
  DeviceArray<float> input(x);
  return run_into(target, m, k, with_scales, [&](const QuantizedTarget& to) {
    QuantizeCudaArgs args;
    args.x = input.data();
    args.element = CudaElement::kF32;
    args.m = m;
    args.k = k;
    args.target = to;
    quantize_cuda(args, nullptr);
  });
}

TEST(QuantizeCuda, NumbersHaveTheBitsOfTheReference) {
  LATHE_NEEDS_GPU();
  for (const ActivationFormat format : kFormats) {
    for (const int64_t k : {32, 96, 576, 4096, 8224, 17408, 32768}) {
      for (const int64_t m : {1, 3, 300}) {
        if (m == 300 && k > 4096) continue;
        for (const float global_scale : {0.0f, 700.0f}) {
          if (global_scale != 0 && format != ActivationFormat::kNvfp4) continue;
          SCOPED_TRACE(testing::Message() << activation_format_name(format) << " k=" << k
                                          << " m=" << m << " global=" << global_scale);
          const auto x = mixed_values(m * k, static_cast<uint64_t>(k + m));
          QuantizedTarget target;
          target.format = format;
          target.element = CudaElement::kF32;
          target.global_scale = global_scale;
          const auto expected = reference_values(x, m, k, target);
          EXPECT_TRUE(same_bits(quantize_rows(x, m, k, target).values, expected));
        }
      }
    }
  }
}

TEST(QuantizeCuda, RotatesWithTheBitsOfTheReference) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kRows = 5;
  for (const int64_t block : {16, 32, 64, 128}) {
    for (const int64_t k : {128, 1152, 4224}) {
      for (const ActivationFormat format : kFormats) {
        SCOPED_TRACE(testing::Message()
                     << activation_format_name(format) << " block=" << block << " k=" << k);
        const auto x = normal_values(kRows * k, static_cast<uint64_t>(k + block));
        QuantizedTarget target;
        target.format = format;
        target.hadamard = block;
        target.element = CudaElement::kF32;
        EXPECT_TRUE(same_bits(quantize_rows(x, kRows, k, target).values,
                              reference_values(x, kRows, k, target)));
      }
    }
  }
}

TEST(QuantizeCuda, Bf16HoldsTheNumbersRounded) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kRows = 4;
  constexpr int64_t kCols = 1152;
  const auto x = mixed_values(kRows * kCols, 1);
  for (const ActivationFormat format : kFormats) {
    SCOPED_TRACE(activation_format_name(format));
    QuantizedTarget target;
    target.format = format;
    const auto numbers = reference_values(x, kRows, kCols, target);
    const auto expected = from_bf16(to_bf16(numbers));
    EXPECT_TRUE(same_bits(quantize_rows(x, kRows, kCols, target).values, expected));
    if (format == ActivationFormat::kMxfp4) {
      EXPECT_TRUE(same_bits(expected, numbers));
    }
  }
}

// The numbers of NVFP4 and FP8 per token without the factor of their row, by their definition.
std::vector<float> factored_values(const float* x, int64_t k, ActivationFormat format,
                                   float* factor) {
  float row_amax = 0;
  for (int64_t j = 0; j < k; ++j) row_amax = std::max(row_amax, std::fabs(x[j]));
  std::vector<float> values;
  if (format == ActivationFormat::kFp8) {
    *factor = row_amax / 448;
    for (int64_t j = 0; j < k; ++j) {
      values.push_back(*factor > 0 ? e4m3_to_float(e4m3_from_double(x[j] / *factor)) : 0.0f);
    }
    return values;
  }
  const float global_scale = 2688 / row_amax;
  *factor = 1 / global_scale;
  for (int64_t begin = 0; begin < k; begin += 16) {
    float amax = 0;
    for (int64_t j = begin; j < begin + 16; ++j) amax = std::max(amax, std::fabs(x[j]));
    const float block = e4m3_to_float(e4m3_from_double(global_scale * (amax / 6)));
    const float scale = block / global_scale;
    for (int64_t j = begin; j < begin + 16; ++j) {
      const float element = scale > 0 ? e2m1_to_float(e2m1_from_double(x[j] / scale)) : 0.0f;
      values.push_back(element * block + 0.0f);  // -0 becomes 0
    }
  }
  return values;
}

TEST(QuantizeCuda, FactoredNumbersAreExactInBf16) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kRows = 3;
  constexpr int64_t kCols = 2112;
  auto x = mixed_values(kRows * kCols, 2);
  // A row's largest number decides: one row without the large ones.
  for (int64_t j = 0; j < kCols; ++j) x[static_cast<std::size_t>(j)] *= 1e-7f;
  for (const ActivationFormat format : {ActivationFormat::kNvfp4, ActivationFormat::kFp8}) {
    QuantizedTarget target;
    target.format = format;
    const Quantized actual = quantize_rows(x, kRows, kCols, target, true);
    target.element = CudaElement::kE4M3;
    Quantized codes;
    if (format == ActivationFormat::kFp8) codes = quantize_rows(x, kRows, kCols, target, true);
    for (int64_t row = 0; row < kRows; ++row) {
      SCOPED_TRACE(testing::Message() << activation_format_name(format) << " row " << row);
      float factor = 0;
      const auto expected = factored_values(x.data() + row * kCols, kCols, format, &factor);
      const auto first = static_cast<std::size_t>(row * kCols);
      EXPECT_TRUE(same_bits(std::span(actual.values).subspan(first, kCols), expected));
      EXPECT_EQ(actual.row_scales[static_cast<std::size_t>(row)], factor);
      if (format != ActivationFormat::kFp8) continue;
      EXPECT_TRUE(same_bits(std::span(codes.values).subspan(first, kCols), expected));
      EXPECT_EQ(codes.row_scales[static_cast<std::size_t>(row)], factor);
    }
  }
}

// Groups down to 2^-14 of the row's largest are exact, the others rounded to the row's last place.
TEST(QuantizeCuda, Mxfp4FoldsIntoE4m3) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kRows = 3;
  constexpr int64_t kCols = 1024;  // 32 groups
  auto x = normal_values(kRows * kCols, 3);
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    const int64_t group = i % kCols / 32;
    auto& value = x[static_cast<std::size_t>(i)];
    value = std::ldexp(value, static_cast<int>(-group));
    if (group == 31) value = 0;
    if (i / kCols == 2) value *= 0x1p-110f;  // down to the smallest scales
  }
  QuantizedTarget target;
  target.format = ActivationFormat::kMxfp4;
  target.element = CudaElement::kE4M3;
  const auto numbers = reference_values(x, kRows, kCols, target);
  const Quantized actual = quantize_rows(x, kRows, kCols, target, true);
  int num_exact = 0;
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    const auto idx = static_cast<std::size_t>(i);
    const auto group = idx / 32 * 32;
    float amax = 0;
    for (std::size_t j = group; j < group + 32; ++j) amax = std::max(amax, std::fabs(x[j]));
    float row_amax = 0;
    const auto row = static_cast<std::size_t>(i / kCols);
    for (std::size_t j = row * kCols; j < (row + 1) * kCols; ++j) {
      row_amax = std::max(row_amax, std::fabs(x[j]));
    }
    const auto exponent = [](float a) {  // of the scale, by the definition
      if (a == 0) return -127;
      const int e = floor_log2(a);
      return std::max(-127, e - 2 + (std::ldexp(double{a}, -e) >= 1.75 ? 1 : 0));
    };
    const int row_exponent = exponent(row_amax);
    const double factor = std::ldexp(1.0, row_exponent - 6);
    ASSERT_EQ(actual.row_scales[row], static_cast<float>(factor));
    const double expected = double{e4m3_to_float(e4m3_from_double(double{numbers[idx]} / factor))};
    ASSERT_EQ(double{actual.values[idx]}, expected) << i;
    if (exponent(amax) < row_exponent - 14) continue;
    ASSERT_EQ(double{actual.values[idx]} * factor, double{numbers[idx]}) << i;
    ++num_exact;
  }
  EXPECT_GE(num_exact, 3 * 14 * 32);
}

TEST(QuantizeCuda, NotFiniteShowsInItsGroupAlone) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kCols = 256;
  for (const float bad : {std::nanf(""), kInfinity, -kInfinity}) {
    auto x = normal_values(2 * kCols, 4);
    x[100] = bad;
    for (const ActivationFormat format : kFormats) {
      for (const CudaElement element :
           {CudaElement::kF32, CudaElement::kBF16, CudaElement::kE4M3}) {
        const bool has_codes =
            format == ActivationFormat::kFp8 || format == ActivationFormat::kMxfp4;
        if (format == ActivationFormat::kNone || (element == CudaElement::kE4M3 && !has_codes)) {
          continue;
        }
        SCOPED_TRACE(testing::Message()
                     << activation_format_name(format) << " " << static_cast<int>(element));
        QuantizedTarget target;
        target.format = format;
        target.element = element;
        const Quantized actual = quantize_rows(x, 2, kCols, target, true);
        // NVFP4 with a scale from the row: the whole row.
        const bool whole = format == ActivationFormat::kFp8 || format == ActivationFormat::kNvfp4;
        for (std::size_t j = 0; j < 2 * kCols; ++j) {
          const bool expected = whole ? j < kCols : j / 32 == 100 / 32;
          EXPECT_EQ(std::isnan(actual.values[j]), expected) << j;
        }
        EXPECT_FALSE(std::isnan(actual.row_scales[1]));
      }
    }
  }
}

TEST(QuantizeCuda, ReadsStridedBf16) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kRows = 6, kCols = 320, kStride = 448;
  const auto wide = to_bf16(normal_values(kRows * kStride, 5));
  DeviceArray<uint16_t> input(wide);
  std::vector<float> x;
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    x.push_back(float_from_bf16(wide[static_cast<std::size_t>(i / kCols * kStride + i % kCols)]));
  }
  QuantizedTarget target;
  target.format = ActivationFormat::kMxfp8;
  target.hadamard = 64;
  target.element = CudaElement::kF32;
  const Quantized actual = run_into(target, kRows, kCols, true, [&](const QuantizedTarget& to) {
    QuantizeCudaArgs args;
    args.x = input.data();
    args.m = kRows;
    args.k = kCols;
    args.stride = kStride;
    args.target = to;
    quantize_cuda(args, nullptr);
  });
  EXPECT_TRUE(same_bits(actual.values, reference_values(x, kRows, kCols, target)));
  EXPECT_EQ(actual.row_scales, std::vector<float>(kRows, 1.0f));
}

TEST(QuantizeCuda, RejectsWhatDoesNotFit) {
  QuantizeCudaArgs args;
  args.m = 0;  // nothing is launched
  args.k = 96;
  const auto rejects = [&] {
    try {
      quantize_cuda(args, nullptr);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_FALSE(rejects());
  args.target.hadamard = 64;  // does not divide 96
  EXPECT_TRUE(rejects());
  args.target.hadamard = 48;
  EXPECT_TRUE(rejects());
  args.target.hadamard = 0;
  args.target.format = ActivationFormat::kMxfp4;
  args.k = 48;
  EXPECT_TRUE(rejects());
  args.k = 36;
  args.target.format = ActivationFormat::kNone;
  EXPECT_TRUE(rejects());
  args.k = kMaxQuantizeCols + 32;
  EXPECT_TRUE(rejects());
  args.k = 96;
  args.target.element = CudaElement::kE4M3;
  EXPECT_TRUE(rejects());
  args.element = CudaElement::kE4M3;
  args.target.element = CudaElement::kBF16;
  EXPECT_TRUE(rejects());
  args.element = CudaElement::kBF16;
  args.stride = 64;
  EXPECT_TRUE(rejects());
}

struct Norm {
  std::vector<float> hidden;
  Quantized y;
};

struct NormCase {
  int64_t m = 0;
  int64_t k = 0;
  std::vector<float> hidden;
  std::vector<float> branch;  // or empty
  std::vector<float> branch_gain;
  std::vector<float> gain;
  CudaElement branch_element = CudaElement::kF32;
};

Norm run_norm(const NormCase& c, const QuantizedTarget& target) {
  DeviceArray<float> hidden(c.hidden);
  DeviceArray<float> branch_f32(c.branch);
  DeviceArray<uint16_t> branch_bf16(to_bf16(c.branch));
  DeviceArray<float> gain(c.gain);
  DeviceArray<float> branch_gain(c.branch_gain);
  AddNormQuantizeArgs args;
  args.hidden = hidden.data();
  args.m = c.m;
  args.k = c.k;
  args.branch_element = c.branch_element;
  if (!c.branch.empty()) {
    args.branch = c.branch_element == CudaElement::kF32 ? static_cast<void*>(branch_f32.data())
                                                        : static_cast<void*>(branch_bf16.data());
  }
  if (!c.branch_gain.empty()) args.branch_gain = branch_gain.data();
  if (!c.gain.empty()) args.gain = gain.data();
  args.eps = 1e-5f;
  Norm result;
  const bool with_scales = target.element == CudaElement::kE4M3;
  result.y = run_into(target, c.m, c.k, with_scales, [&](const QuantizedTarget& to) {
    args.target = to;
    add_norm_quantize_cuda(args, nullptr);
  });
  result.hidden = hidden.host();
  return result;
}

std::vector<float> reference_norm(const std::vector<float>& x, const std::vector<float>& gain,
                                  int64_t m, int64_t k) {
  OwnedExec machine(1);
  std::vector<float> y(x.size());
  RmsNormArgs args;
  args.x = x.data();
  args.weight = gain.data();
  args.y = y.data();
  args.num_tokens = m;
  args.norm_size = k;
  args.x_stride = args.y_stride = k;
  args.eps = 1e-5f;
  rms_norm_ref(args, machine.exec);
  return y;
}

// k positive terms: 8 in a row, 5 levels in a warp, k / 8192 + 1 chunks in a row and 5 levels; the
// root halves it; division, root, inverse and two products add 4 more roundings of half an eps.
float norm_tolerance(int64_t k) {
  return (0.5f * (18.0f + static_cast<float>(k) / 8192) / 2 + 4) * FLT_EPSILON;
}

NormCase norm_case(int64_t m, int64_t k, uint64_t seed) {
  NormCase c;
  c.m = m;
  c.k = k;
  c.hidden = normal_values(m * k, seed);
  c.branch = from_bf16(to_bf16(normal_values(m * k, seed + 1)));
  c.gain = normal_values(k, seed + 2);
  return c;
}

TEST(AddNormQuantizeCuda, AddsAndNormalises) {
  LATHE_NEEDS_GPU();
  QuantizedTarget target;
  target.element = CudaElement::kF32;
  for (const int64_t k : {8, 40, 576, 4096, 5120, 16384, 20480}) {
    for (const int64_t m : {1, 5, 300}) {
      if (m == 300 && k > 5120) continue;
      for (const CudaElement element : {CudaElement::kF32, CudaElement::kBF16}) {
        SCOPED_TRACE(testing::Message() << "k=" << k << " m=" << m);
        NormCase c = norm_case(m, k, static_cast<uint64_t>(k + m));
        c.branch_element = element;
        const Norm actual = run_norm(c, target);
        std::vector<float> sum = c.hidden;
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += c.branch[i];
        EXPECT_TRUE(same_bits(actual.hidden, sum));
        EXPECT_TRUE(
            all_close(actual.y.values, reference_norm(sum, c.gain, m, k), norm_tolerance(k)));
      }
    }
  }
}

TEST(AddNormQuantizeCuda, NormalisesTheBranchFirst) {
  LATHE_NEEDS_GPU();
  QuantizedTarget target;
  target.element = CudaElement::kF32;
  for (const int64_t k : {64, 5376}) {
    NormCase c = norm_case(3, k, 11);
    for (auto& value : c.branch) value *= 37;
    c.branch_gain = normal_values(k, 12);
    const Norm actual = run_norm(c, target);
    auto expected = reference_norm(c.branch, c.branch_gain, c.m, k);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += c.hidden[i];
    EXPECT_TRUE(all_close(actual.hidden, expected, norm_tolerance(k)));
    // From the kernel's own sum, so that its error does not count twice.
    EXPECT_TRUE(all_close(actual.y.values, reference_norm(actual.hidden, c.gain, c.m, k),
                          norm_tolerance(k)));
    c.gain.clear();  // no norm behind the sum
    const Norm plain = run_norm(c, target);
    EXPECT_TRUE(same_bits(plain.y.values, plain.hidden));
    EXPECT_TRUE(same_bits(plain.hidden, actual.hidden));
  }
}

TEST(AddNormQuantizeCuda, QuantizesWhatItNormalised) {
  LATHE_NEEDS_GPU();
  for (const int64_t m : {2, 300}) {
    constexpr int64_t kCols = 1152;
    const NormCase c = norm_case(m, kCols, 13);
    QuantizedTarget target;
    target.element = CudaElement::kF32;
    const Norm plain = run_norm(c, target);
    for (const ActivationFormat format : kFormats) {
      for (const int64_t block : {0, 32, 128}) {
        SCOPED_TRACE(testing::Message() << activation_format_name(format) << " " << block);
        target.format = format;
        target.hadamard = block;
        EXPECT_TRUE(same_bits(run_norm(c, target).y.values,
                              reference_values(plain.y.values, m, kCols, target)));
      }
    }
  }
}

TEST(AddNormQuantizeCuda, ReadsSelectedRowsAndLeavesHiddenAlone) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kCols = 576;
  const NormCase c = norm_case(9, kCols, 14);
  DeviceArray<float> hidden(c.hidden);
  DeviceArray<float> gain(c.gain);
  const std::vector<int32_t> selected = {8, 0, 8, 3};
  DeviceArray<int32_t> rows(selected);
  DeviceArray<float> y(4 * kCols);
  AddNormQuantizeArgs args;
  args.hidden = hidden.data();
  args.m = 4;
  args.k = kCols;
  args.gain = gain.data();
  args.eps = 1e-5f;
  args.rows = rows.data();
  args.target.element = CudaElement::kF32;
  args.target.data = y.data();
  add_norm_quantize_cuda(args, nullptr);
  const auto all = reference_norm(c.hidden, c.gain, 9, kCols);
  std::vector<float> expected;
  for (const int32_t row : selected) {
    expected.insert(expected.end(), all.begin() + row * kCols, all.begin() + (row + 1) * kCols);
  }
  EXPECT_TRUE(all_close(y.host(), expected, norm_tolerance(kCols)));
  EXPECT_TRUE(same_bits(hidden.host(), c.hidden));
  // Only an addition, in place.
  DeviceArray<float> branch(c.branch);
  args.m = 9;
  args.rows = nullptr;
  args.branch = branch.data();
  args.branch_element = CudaElement::kF32;
  args.target = {};
  add_norm_quantize_cuda(args, nullptr);
  std::vector<float> sum = c.hidden;
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += c.branch[i];
  EXPECT_TRUE(same_bits(hidden.host(), sum));
}

// The launch differs between few rows and many; the bits must not.
TEST(AddNormQuantizeCuda, ARowAloneHasTheBitsOfTheRowInABatch) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kRows = 2100;
  for (const int64_t k : {4096, 9216}) {
    NormCase batch = norm_case(k == 4096 ? kRows : 300, k, 15);
    NormCase alone = norm_case(1, k, 0);
    alone.gain = batch.gain;
    const int64_t row = batch.m - 7;
    const auto slice = [&](const std::vector<float>& values) {
      return std::vector<float>(values.begin() + row * k, values.begin() + (row + 1) * k);
    };
    alone.hidden = slice(batch.hidden);
    alone.branch = slice(batch.branch);
    for (const ActivationFormat format : kFormats) {
      QuantizedTarget target;
      target.format = format;
      target.hadamard = 128;
      target.element = CudaElement::kF32;
      SCOPED_TRACE(testing::Message() << activation_format_name(format) << " k=" << k);
      EXPECT_TRUE(
          same_bits(run_norm(alone, target).y.values, slice(run_norm(batch, target).y.values)));
    }
  }
}

std::vector<float> run_gate(const std::vector<float>& gate_up, CudaElement element, int64_t m,
                            int64_t size, GateFunction function, const QuantizedTarget& target) {
  DeviceArray<float> f32(gate_up);
  DeviceArray<uint16_t> bf16(to_bf16(gate_up));
  GatedQuantizeArgs args;
  args.gate_up = element == CudaElement::kF32 ? static_cast<const void*>(f32.data())
                                              : static_cast<const void*>(bf16.data());
  args.element = element;
  args.m = m;
  args.size = size;
  args.function = function;
  return run_into(target, m, size, false,
                  [&](const QuantizedTarget& to) {
                    args.target = to;
                    gated_quantize_cuda(args, nullptr);
                  })
      .values;
}

TEST(GatedQuantizeCuda, MatchesTheReference) {
  LATHE_NEEDS_GPU();
  OwnedExec machine(1);
  for (const GateFunction function : {GateFunction::kSilu, GateFunction::kGeluTanh}) {
    for (const CudaElement element : {CudaElement::kF32, CudaElement::kBF16}) {
      for (const int64_t size : {64, 1536, 14336}) {
        for (const int64_t m : {1, 3, 40}) {
          SCOPED_TRACE(testing::Message() << static_cast<int>(function) << " "
                                          << static_cast<int>(element) << " size=" << size);
          auto gate_up = from_bf16(to_bf16(normal_values(m * 2 * size, 21, 4)));
          gate_up[0] = -200;  // exp overflows
          gate_up[1] = 200;
          gate_up[2] = -87.5f;
          GatedActivationArgs args;
          std::vector<float> expected(static_cast<std::size_t>(m * size));
          args.gate = gate_up.data();
          args.up = gate_up.data() + size;
          args.y = expected.data();
          args.num_rows = m;
          args.size = size;
          args.gate_stride = args.up_stride = 2 * size;
          args.y_stride = size;
          args.function = function;
          gated_activation_ref(args, machine.exec);
          QuantizedTarget target;
          target.element = CudaElement::kF32;
          const auto actual = run_gate(gate_up, element, m, size, function, target);
          // f(x) = x / (1 + e). A relative error d of e is one of at most d in f. fp32: d is 2 ulp
          // of exp and, for gelu, the rounding of its argument s: about 3 ulp of |s|, which matters
          // up to |s| = 16 or so (beyond, f is below 1e-6 of x, or x itself). bf16: __expf() and
          // __fdividef() have another 2 + |s| and 2 ulp. Weighed per element with |f| + 1e-6 |x|.
          const float ulps = element == CudaElement::kF32 ? 60 : 100;
          for (std::size_t i = 0; i < expected.size(); ++i) {
            const auto row = i / static_cast<std::size_t>(size);
            const auto at =
                row * 2 * static_cast<std::size_t>(size) + i % static_cast<std::size_t>(size);
            const float product =
                std::fabs(gate_up[at] * gate_up[at + static_cast<std::size_t>(size)]);
            const float tolerance = ulps * FLT_EPSILON * std::fabs(expected[i]) + 1e-11f * product;
            ASSERT_LE(std::fabs(actual[i] - expected[i]), tolerance)
                << i << " gate " << gate_up[at] << " " << actual[i] << " " << expected[i];
          }
          // What it quantizes is what it would have returned.
          target.format = ActivationFormat::kMxfp4;
          target.hadamard = 32;
          EXPECT_TRUE(same_bits(run_gate(gate_up, element, m, size, function, target),
                                reference_values(actual, m, size, target)));
          target.format = ActivationFormat::kFp8;
          EXPECT_TRUE(same_bits(run_gate(gate_up, element, m, size, function, target),
                                reference_values(actual, m, size, target)));
        }
      }
    }
  }
}

TEST(GatedQuantizeCuda, KeepsNan) {
  LATHE_NEEDS_GPU();
  std::vector<float> gate_up = normal_values(128, 22);
  gate_up[5] = std::nanf("");
  QuantizedTarget target;
  target.element = CudaElement::kF32;
  for (const CudaElement element : {CudaElement::kF32, CudaElement::kBF16}) {
    const auto y = run_gate(gate_up, element, 1, 64, GateFunction::kSilu, target);
    for (std::size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i == 5);
  }
}

}  // namespace
}  // namespace lathe
