// The specification of linear(): plain loops, sums in double.
//   integer:  y = sum over groups of (exact integer dot product) * weight scale * input scale
//   float:    y = x * dequantized w
// then + bias, rounded to fp32 once.
#include <cmath>

#include "kernels/linear/linear_kernels.h"
#include "quant/fp4_e2m1.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

struct ReferenceWeight : PackedWeight {
  std::vector<int8_t> codes;   // [n, k], kInteger; E2M1: value * 2
  std::vector<double> scales;  // [n, k / group], kInteger; E2M1: halved
  std::vector<float> values;   // [n, k], kFloat
  std::vector<float> bias;     // [n]
};

int8_t integer_code(const QuantizedMatrix& matrix, int64_t row, int64_t col) {
  if (matrix.format.element == ElementType::kInt8) {
    return matrix.codes.as<int8_t>()[row * matrix.cols + col];
  }
  const uint8_t byte = matrix.codes.as<uint8_t>()[(row * matrix.cols + col) / 2];
  const uint8_t code = col % 2 == 0 ? low_nibble(byte) : high_nibble(byte);
  if (matrix.format.element == ElementType::kInt4) return static_cast<int8_t>((code ^ 8) - 8);
  return static_cast<int8_t>(2 * e2m1_to_float(code));
}

void append_integer(const QuantizedMatrix& matrix, int64_t group, ReferenceWeight& weight) {
  const double half = matrix.format.element == ElementType::kE2M1 ? 0.5 : 1;
  const int64_t group_size = matrix.format.group_size == 0 ? matrix.cols : matrix.format.group_size;
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t col = 0; col < matrix.cols; ++col) {
      weight.codes.push_back(integer_code(matrix, row, col));
      if (col % group == 0) {
        weight.scales.push_back(half * effective_scale(matrix, row, col / group_size));
      }
    }
  }
}

void append_dense(const Tensor& tensor, std::vector<float>& values) {
  const int64_t count = tensor.num_elements();
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(tensor.dtype() == DType::kF32    ? tensor.as<float>()[i]
                     : tensor.dtype() == DType::kBF16 ? float_from_bf16(tensor.as<uint16_t>()[i])
                                                      : float_from_f16(tensor.as<uint16_t>()[i]));
  }
}

}  // namespace

std::unique_ptr<PackedWeight> pack_linear_ref(const LinearParts& parts, Arithmetic arithmetic,
                                              int64_t group, Exec&) {
  auto weight = std::make_unique<ReferenceWeight>();
  for (const LinearPart& part : parts.parts) {
    if (arithmetic == Arithmetic::kInteger) {
      append_integer(*part.quantized, group, *weight);
      weight->weight_bytes += part.quantized->codes.size() + part.quantized->scales.size();
    } else if (part.dense != nullptr) {
      append_dense(*part.dense, weight->values);
      weight->weight_bytes += part.dense->num_bytes();
    } else {
      const std::size_t begin = weight->values.size();
      const int64_t rows = part.quantized->rows;
      weight->values.resize(begin + static_cast<std::size_t>(rows * parts.k));
      dequantize_rows(*part.quantized, 0, rows, weight->values.data() + begin);
      weight->weight_bytes += part.quantized->codes.size() + part.quantized->scales.size();
    }
    for (int64_t row = 0; row < part_rows(part); ++row) {
      weight->bias.push_back(part.bias == nullptr ? 0.0f : part.bias[row]);
    }
  }
  return weight;
}

void linear_ref(const LinearArgs& a, Exec& exec) {
  const auto& weight = static_cast<const ReferenceWeight&>(*a.weight);
  const LinearInput& input = *a.input;
  const int64_t k = weight.k;
  exec.threads.parallel_for(weight.n, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t t = 0; t < input.m; ++t) {
        double sum = 0;
        if (weight.arithmetic == Arithmetic::kFloat) {
          const float* w = weight.values.data() + row * k;
          const float* x = input.f32 + t * k;
          for (int64_t j = 0; j < k; ++j) sum += double{x[j]} * w[j];
        } else {
          const int64_t num_groups = k / weight.group;
          for (int64_t g = 0; g < num_groups; ++g) {
            const int8_t* w = weight.codes.data() + row * k + g * weight.group;
            const int64_t first = input.code_offset(t, g);
            int32_t dot = 0;
            for (int64_t j = 0; j < weight.group; ++j) {
              dot += w[j] * input.codes[first + j];
            }
            sum += dot * weight.scales[static_cast<std::size_t>(row * num_groups + g)] *
                   double{input.scales[input.scale_offset(t, g)]};
          }
        }
        const float bias = weight.bias[static_cast<std::size_t>(row)];
        a.y[t * a.y_stride + row] = static_cast<float>(sum + bias);
      }
    }
  });
}

}  // namespace lathe
