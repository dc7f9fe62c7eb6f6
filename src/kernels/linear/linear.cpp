#include "kernels/linear/linear.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "kernels/features.h"
#include "kernels/linear/linear_kernels.h"
#include "kernels/linear/panels.h"
#include "kernels/quantize_activations/quantize_activations.h"
#include "quant/hadamard.h"

namespace lathe {
namespace {

constexpr Kernel<LinearArgs> kIntegerKernels[] = {
#if defined(__x86_64__)
    {"avx512", Device::kCpu, kAvx512 | kAvx512Vnni, linear_integer_avx512},
    {"avx2", Device::kCpu, kAvx2, linear_integer_avx2},
#endif
    {"ref", Device::kCpu, 0, linear_ref},
};
constexpr Kernel<LinearArgs> kFloatKernels[] = {
#if defined(__x86_64__)
    {"amx", Device::kCpu, kAmxFeatures, linear_float_amx},
    {"avx512", Device::kCpu, kAvx512, linear_float_avx512},
    {"avx2", Device::kCpu, kAvx2, linear_float_avx2},
#endif
    {"ref", Device::kCpu, 0, linear_ref},
};

// Codes of one block of input rows: what stays in the L2 cache (512 KiB on Zen 3, 1 MiB and more on
// newer cores) beside the weight panel while a kernel walks over the panels.
constexpr int64_t kInputBlockBytes = int64_t{256} << 10;

int64_t choose_block_rows(int64_t row_bytes) {
  return std::clamp<int64_t>(kInputBlockBytes / row_bytes, 16, kMaxBlockRows);
}

}  // namespace

LinearParts check_parts(std::span<const LinearPart> parts) {
  if (parts.empty()) fail(ErrorCode::kInvalidArgument, "a linear layer without a weight");
  LinearParts all{.parts = parts};
  for (const LinearPart& part : parts) {
    if ((part.dense == nullptr) == (part.quantized == nullptr)) {
      fail(ErrorCode::kInvalidArgument, "a part of a linear layer must be dense or quantized");
    }
    if ((part.dense == nullptr) != (parts[0].dense == nullptr)) {
      fail(ErrorCode::kInvalidArgument, "stacked weights, one dense and one quantized");
    }
    int64_t k = 0;
    if (part.dense != nullptr) {
      if (part.dense->shape().size() != 2) {
        fail(ErrorCode::kInvalidArgument, "a linear weight has shape ",
             to_string(part.dense->shape()), ", expected [n, k]");
      }
      const DType dtype = part.dense->dtype();
      if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16) {
        fail(ErrorCode::kUnsupported, "a linear weight of type ", dtype_name(dtype),
             "; F32, BF16 and F16 have kernels");
      }
      if (dtype != parts[0].dense->dtype()) {
        fail(ErrorCode::kInvalidArgument, "stacked weights of types ",
             dtype_name(parts[0].dense->dtype()), " and ", dtype_name(dtype));
      }
      k = part.dense->dim(1);
    } else {
      k = part.quantized->cols;
      if (all.format == nullptr) all.format = &part.quantized->format;
      if (!(part.quantized->format == *all.format)) {
        fail(ErrorCode::kInvalidArgument, "stacked weights of formats ",
             weight_format_name(*all.format), " and ", weight_format_name(part.quantized->format));
      }
    }
    if (&part != &parts[0] && k != all.k) {
      fail(ErrorCode::kInvalidArgument, "stacked weights with ", all.k, " and ", k,
           " input features");
    }
    all.k = k;
    all.n += part_rows(part);
  }
  if (all.n < 1 || all.k < 1) {
    fail(ErrorCode::kInvalidArgument, "a linear weight of shape [", all.n, ", ", all.k, "]");
  }
  return all;
}

namespace {

struct ArithmeticChoice {
  Arithmetic arithmetic;
  int64_t group;
};

// Integers need a group for input and weight alike: the smaller of the two, 16 or 32.
ArithmeticChoice choose_arithmetic(const LinearParts& parts, const LinearScheme& scheme,
                                   ComputeType compute) {
  if (parts.format == nullptr || compute != ComputeType::kAuto ||
      parts.format->element == ElementType::kE4M3) {
    return {Arithmetic::kFloat, 0};
  }
  const int64_t weight_group = parts.format->group_size == 0 ? parts.k : parts.format->group_size;
  int64_t group = weight_group % 32 == 0 ? 32 : 16;
  switch (scheme.activations) {
    case ActivationFormat::kNone:
    case ActivationFormat::kInt8:
    case ActivationFormat::kMxfp4:
      break;
    case ActivationFormat::kNvfp4:
      group = 16;
      break;
    case ActivationFormat::kFp8:
    case ActivationFormat::kMxfp8:
      return {Arithmetic::kFloat, 0};
  }
  if (weight_group % group != 0 || parts.k % group != 0) return {Arithmetic::kFloat, 0};
  return {Arithmetic::kInteger, group};
}

const Kernel<LinearArgs>& kernel_named(Arithmetic arithmetic, std::string_view name) {
  for (const Kernel<LinearArgs>& row : linear_kernels(arithmetic)) {
    if (row.name == name) return row;
  }
  fail(ErrorCode::kInvalidArgument, "no linear kernel named ", name);
}

// 0: the reference, which keeps plain matrices. Floating-point kernels take two vectors.
int64_t panel_rows(std::string_view kernel_name, Arithmetic arithmetic) {
  if (kernel_name == "amx" || kernel_name == "avx512") return kVnniPanelRows;
  if (kernel_name == "avx2") return arithmetic == Arithmetic::kFloat ? 16 : 8;
  return 0;
}

// All three terms of an fp32 number are as good as the number.
int input_terms(std::string_view kernel_name, ComputeType compute) {
  if (kernel_name != "amx") return 0;
  return compute == ComputeType::kF32 ? 3 : 2;
}

std::string element_name(const LinearParts& parts) {
  return parts.format != nullptr ? weight_format_name(*parts.format)
                                 : std::string(dtype_name(parts.parts[0].dense->dtype()));
}

std::unique_ptr<PackedLinear> pack_with(const Kernel<LinearArgs>& row, const LinearParts& parts,
                                        const ArithmeticChoice& choice, const LinearScheme& scheme,
                                        ComputeType compute, Exec& exec) {
  if (row.name == "amx" && !fits_amx(parts, compute)) {
    return pack_with(kernel_named(choice.arithmetic, "avx512"), parts, choice, scheme, compute,
                     exec);
  }
  check_hadamard(scheme.hadamard, parts.k);
  const int64_t x_group = activation_group(scheme.activations, 32);
  if (choice.arithmetic == Arithmetic::kFloat && x_group != 0 && parts.k % x_group != 0) {
    fail(ErrorCode::kUnsupported, activation_format_name(scheme.activations),
         " activations in groups of ", x_group, " for ", parts.k, " input features");
  }
  const int64_t rows = panel_rows(row.name, choice.arithmetic);
  auto weight = rows == 0 ? pack_linear_ref(parts, choice.arithmetic, choice.group, exec)
                          : pack_panels(parts, choice.arithmetic, choice.group, rows,
                                        input_terms(row.name, compute), exec);
  weight->n = parts.n;
  weight->k = parts.k;
  weight->scheme = scheme;
  weight->kernel = str(element_name(parts),
                       choice.arithmetic == Arithmetic::kInteger ? " int8 " : " f32 ", row.name);
  weight->arithmetic = choice.arithmetic;
  weight->group = choice.group;
  weight->row = &row;
  return weight;
}

const PackedWeight& as_packed(const PackedLinear& weight) {
  return static_cast<const PackedWeight&>(weight);
}

// Integer kernels need integers: W4A16 by name is W4A8 by ComputeType::kAuto.
ActivationFormat run_time_format(const PackedWeight& weight) {
  if (weight.arithmetic == Arithmetic::kInteger &&
      weight.scheme.activations == ActivationFormat::kNone) {
    return ActivationFormat::kInt8;
  }
  return weight.scheme.activations;
}

}  // namespace

int64_t part_rows(const LinearPart& part) {
  return part.dense != nullptr ? part.dense->dim(0) : part.quantized->rows;
}

std::span<const Kernel<LinearArgs>> linear_kernels(Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::kInteger) return kIntegerKernels;
  return kFloatKernels;
}

std::unique_ptr<PackedLinear> pack_linear(std::span<const LinearPart> parts,
                                          const LinearScheme& scheme, ComputeType compute,
                                          Exec& exec) {
  const LinearParts all = check_parts(parts);
  const ArithmeticChoice choice = choose_arithmetic(all, scheme, compute);
  return pack_with(best_kernel(linear_kernels(choice.arithmetic)), all, choice, scheme, compute,
                   exec);
}

std::unique_ptr<PackedLinear> pack_linear_for(std::string_view kernel_name,
                                              std::span<const LinearPart> parts,
                                              const LinearScheme& scheme, ComputeType compute,
                                              Exec& exec) {
  const LinearParts all = check_parts(parts);
  const ArithmeticChoice choice = choose_arithmetic(all, scheme, compute);
  return pack_with(kernel_named(choice.arithmetic, kernel_name), all, choice, scheme, compute,
                   exec);
}

bool same_input_class(const PackedLinear& a, const PackedLinear& b) {
  const PackedWeight& wa = as_packed(a);
  const PackedWeight& wb = as_packed(b);
  return wa.k == wb.k && wa.arithmetic == wb.arithmetic && wa.group == wb.group &&
         run_time_format(wa) == run_time_format(wb) && wa.scheme.hadamard == wb.scheme.hadamard &&
         (run_time_format(wa) != ActivationFormat::kNvfp4 ||
          wa.scheme.input_global_scale == wb.scheme.input_global_scale);
}

LinearInput prepare_input(const float* x, int64_t m, const PackedLinear& weight, Exec& exec) {
  const PackedWeight& packed = as_packed(weight);
  LinearInput input{.m = m, .k = packed.k};
  QuantizeActivationsArgs args;
  args.x = x;
  args.m = m;
  args.k = packed.k;
  args.hadamard = packed.scheme.hadamard;
  args.format = run_time_format(packed);
  args.global_scale = packed.scheme.input_global_scale;
  if (packed.arithmetic == Arithmetic::kFloat) {
    if (args.hadamard == 0 && args.format == ActivationFormat::kNone) {
      input.f32 = x;
      return input;
    }
    args.group = 32;
    args.values = exec.workspace.allocate_as<float>(m * packed.k);
    input.f32 = args.values;
  } else {
    args.group = packed.group;
    const int64_t num_groups = m * (packed.k / packed.group);
    args.scales = exec.workspace.allocate_as<float>(num_groups);
    args.codes = exec.workspace.allocate_as<int8_t>(m * packed.k);
    args.corrections = exec.workspace.allocate_as<int32_t>(num_groups);
    args.block_rows = choose_block_rows(packed.k);
    input.codes = args.codes;
    input.scales = args.scales;
    input.corrections = args.corrections;
    input.group = packed.group;
    input.block_rows = args.block_rows;
  }
  quantize_activations(args, exec);
  return input;
}

void linear(const LinearInput& input, const PackedLinear& weight, float* y, int64_t y_stride,
            Exec& exec) {
  const PackedWeight& packed = as_packed(weight);
  LATHE_CHECK(input.k == packed.k && y_stride >= packed.n);
  if (input.m == 0) return;
  LATHE_CHECK((input.scales != nullptr) == (packed.arithmetic == Arithmetic::kInteger));
  const LinearArgs args{&input, &packed, y, y_stride};
  packed.row->run(args, exec);
}

}  // namespace lathe
