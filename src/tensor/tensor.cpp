#include "tensor/tensor.h"

#include <cstring>

#include "base/error.h"
#include "tensor/float16.h"

namespace lathe {

int64_t num_elements(const Shape& shape) {
  int64_t product = 1;
  for (const int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(product, dim, &product)) {
      fail(ErrorCode::kCorruptData, "impossible shape ", to_string(shape));
    }
  }
  return product;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

Tensor::Tensor(DType dtype, Shape shape) : dtype_(dtype), shape_(std::move(shape)) {
  int64_t num_bytes = 0;
  if (__builtin_mul_overflow(num_elements(), dtype_size(dtype), &num_bytes)) {
    fail(ErrorCode::kCorruptData, "impossible shape ", to_string(shape_));
  }
  buffer_ = Buffer(num_bytes);
}

Tensor Tensor::clone() const {
  Tensor copy(dtype_, shape_);
  if (num_bytes() > 0) std::memcpy(copy.data(), data(), static_cast<std::size_t>(num_bytes()));
  return copy;
}

void Tensor::reshape(Shape shape) {
  if (lathe::num_elements(shape) != num_elements()) {
    fail(ErrorCode::kInvalidArgument, "cannot reshape ", to_string(shape_), " to ",
         to_string(shape));
  }
  shape_ = std::move(shape);
}

namespace {

float load(const TensorView& from, int64_t i) {
  switch (from.dtype) {
    case DType::kF64:
      return static_cast<float>(from.as<double>()[i]);
    case DType::kF32:
      return from.as<float>()[i];
    case DType::kF16:
      return float_from_f16(from.as<uint16_t>()[i]);
    default:
      return float_from_bf16(from.as<uint16_t>()[i]);
  }
}

bool is_wide_float(DType dtype) {
  return dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kF16 ||
         dtype == DType::kBF16;
}

}  // namespace

Tensor convert(const TensorView& from, DType to) {
  Tensor result(to, from.shape);
  if (from.dtype == to) {
    if (from.num_bytes() > 0) {
      std::memcpy(result.data(), from.data, static_cast<std::size_t>(from.num_bytes()));
    }
    return result;
  }
  if (!is_wide_float(from.dtype) || !is_wide_float(to) || to == DType::kF64) {
    fail(ErrorCode::kUnsupported, "cannot convert ", dtype_name(from.dtype), " to ",
         dtype_name(to));
  }
  const int64_t n = from.num_elements();
  for (int64_t i = 0; i < n; ++i) {
    const float value = load(from, i);
    if (to == DType::kF32) {
      result.as<float>()[i] = value;
    } else {
      result.as<uint16_t>()[i] =
          to == DType::kBF16 ? bf16_from_float(value) : f16_from_float(value);
    }
  }
  return result;
}

}  // namespace lathe
