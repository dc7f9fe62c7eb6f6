#include "formats/compressed_tensors_reader.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "formats/safetensors.h"

namespace lathe {
namespace {

// The module's tensors, their dtypes and shapes checked.
struct StoredLinear {
  WeightFormat format;
  const TensorView* codes = nullptr;
  const TensorView* scales = nullptr;
  const TensorView* global_scale = nullptr;        // null: 1
  const TensorView* input_global_scale = nullptr;  // null: dynamic
};

const TensorView& require(const std::string& name, const FindTensor& find) {
  const TensorView* view = find(name);
  if (view == nullptr) fail(ErrorCode::kNotFound, "no tensor '", name, "'");
  return *view;
}

void check_shape(const std::string& name, const TensorView& view, const Shape& expected) {
  if (view.shape != expected) {
    fail(ErrorCode::kCorruptData, "tensor '", name, "' has shape ", to_string(view.shape),
         ", expected ", to_string(expected));
  }
}

const TensorView& require_scalar(const std::string& name, const FindTensor& find) {
  const TensorView& view = require(name, find);
  if (view.num_elements() != 1 || view.dtype != DType::kF32) {
    fail(ErrorCode::kCorruptData, "tensor '", name, "' is ", dtype_name(view.dtype), " ",
         to_string(view.shape), ", expected one F32 number");
  }
  return view;
}

ScaleType scale_type(const std::string& name, const CompressedScheme& scheme, DType dtype) {
  const bool is_e8m0 = dtype == DType::kU8 || dtype == DType::kF8E8M0;
  const bool is_wide = dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32;
  if (scheme.layout == PackedLayout::kFp4) {
    if (scheme.has_global_scale ? dtype == DType::kF8E4M3 : is_e8m0) {
      return scheme.has_global_scale ? ScaleType::kE4M3 : ScaleType::kE8M0;
    }
  } else if (scheme.element == ElementType::kE4M3 && scheme.scale_shape == ScaleShape::kGroup &&
             is_e8m0) {
    return ScaleType::kE8M0;
  } else if (is_wide) {
    // One scale a row is few bytes: always fp32. Groups keep what is stored.
    if (scheme.scale_shape != ScaleShape::kGroup) return ScaleType::kF32;
    return dtype == DType::kBF16  ? ScaleType::kBF16
           : dtype == DType::kF16 ? ScaleType::kF16
                                  : ScaleType::kF32;
  }
  fail(ErrorCode::kCorruptData, "tensor '", name, "' is ", dtype_name(dtype),
       ", which is no scale of this format");
}

StoredLinear find_stored(const CompressedScheme& scheme, const std::string& module, int64_t rows,
                         int64_t cols, const FindTensor& find) {
  StoredLinear stored;
  stored.format.element = scheme.element;
  stored.format.group_size = scheme.scale_shape == ScaleShape::kGroup ? scheme.group_size : 0;
  for (const char* suffix : {".weight_zero_point", ".weight_g_idx"}) {
    if (find(module + suffix) != nullptr) {
      fail(ErrorCode::kUnsupported, "tensor '", module, suffix,
           "': lathe reads symmetric weights in their own column order");
    }
  }
  if (stored.format.group_size > 0 && cols % stored.format.group_size != 0) {
    fail(ErrorCode::kCorruptData, "'", module, "': ", cols,
         " input features are not a multiple of the group size ", stored.format.group_size);
  }
  const int64_t bits = element_bits(scheme.element);
  if (bits == 4 && cols % 2 != 0) {
    fail(ErrorCode::kUnsupported, "'", module, "': ", cols, " input features of 4 bits");
  }

  const bool plain = scheme.layout == PackedLayout::kPlain;
  const std::string codes_name = module + (plain ? ".weight" : ".weight_packed");
  stored.codes = &require(codes_name, find);
  DType dtype = DType::kU8;
  Shape shape = {rows, cols / 2};
  if (plain) {
    dtype = scheme.element == ElementType::kInt8 ? DType::kI8 : DType::kF8E4M3;
    shape = {rows, cols};
  } else if (scheme.layout == PackedLayout::kInt32) {
    dtype = DType::kI32;
    shape = {rows, (cols * bits + 31) / 32};
    if (const TensorView* original = find(module + ".weight_shape")) {
      // Of a fused module this is the shape before it was taken apart: at least these rows.
      const Tensor numbers = load_dense(*original, original->dtype);
      if (original->dtype != DType::kI64 || original->num_elements() != 2 ||
          numbers.as<int64_t>()[0] < rows || numbers.as<int64_t>()[1] != cols) {
        fail(ErrorCode::kCorruptData, "tensor '", module, ".weight_shape' does not say [", rows,
             ", ", cols, "]");
      }
    }
  }
  if (stored.codes->dtype != dtype) {
    fail(ErrorCode::kCorruptData, "tensor '", codes_name, "' is ", dtype_name(stored.codes->dtype),
         ", expected ", dtype_name(dtype));
  }
  check_shape(codes_name, *stored.codes, shape);

  const std::string scales_name = module + ".weight_scale";
  stored.scales = &require(scales_name, find);
  stored.format.scale = scale_type(scales_name, scheme, stored.scales->dtype);
  if (scheme.scale_shape == ScaleShape::kTensor) {
    if (stored.scales->num_elements() != 1) check_shape(scales_name, *stored.scales, {1});
  } else if (scheme.scale_shape == ScaleShape::kChannel) {
    if (stored.scales->shape != Shape{rows}) check_shape(scales_name, *stored.scales, {rows, 1});
  } else {
    check_shape(scales_name, *stored.scales, {rows, cols / stored.format.group_size});
  }
  if (scheme.has_global_scale) {
    stored.global_scale = &require_scalar(module + ".weight_global_scale", find);
  }
  if (scheme.has_input_global_scale && find(module + ".input_global_scale") != nullptr) {
    stored.input_global_scale = &require_scalar(module + ".input_global_scale", find);
  }
  return stored;
}

float read_global_scale(const TensorView& view, const std::string& name) {
  float value = 0;
  std::memcpy(&value, view.data, sizeof value);
  if (!(value > 0) || !std::isfinite(value)) {
    fail(ErrorCode::kCorruptData, "tensor '", name, "' = ", value,
         ", must be a positive finite number");
  }
  return value;
}

// Whether any of n bytes is E4M3's NaN, or E8M0's.
bool has_nan(const uint8_t* bytes, int64_t n, uint8_t mask, uint8_t nan) {
  unsigned found = 0;
  for (int64_t i = 0; i < n; ++i) found |= (bytes[i] & mask) == nan;
  return found != 0;
}

bool scales_are_numbers(const QuantizedMatrix& matrix) {
  const int64_t n = matrix.rows * matrix.num_groups();
  switch (matrix.format.scale) {
    case ScaleType::kE4M3:
      return !has_nan(matrix.scales.as<uint8_t>(), n, 0x7f, 0x7f);
    case ScaleType::kE8M0:
    case ScaleType::kLogLinear8:
      return !has_nan(matrix.scales.as<uint8_t>(), n, 0xff, 0xff);
    case ScaleType::kF32:
      for (int64_t i = 0; i < n; ++i) {
        if (!std::isfinite(matrix.scales.as<float>()[i])) return false;
      }
      return true;
    case ScaleType::kBF16:
    case ScaleType::kF16: {
      const unsigned exponent = matrix.format.scale == ScaleType::kBF16 ? 0x7f80 : 0x7c00;
      for (int64_t i = 0; i < n; ++i) {
        if ((matrix.scales.as<uint16_t>()[i] & exponent) == exponent) return false;
      }
      return true;
    }
  }
  return false;
}

void copy_scales(const StoredLinear& stored, QuantizedMatrix& matrix) {
  if (stored.format.group_size > 0) {
    std::memcpy(matrix.scales.data(), stored.scales->data,
                static_cast<std::size_t>(matrix.scales.size()));
    return;
  }
  const Tensor scales = load_dense(*stored.scales, DType::kF32);
  const bool shared = scales.num_elements() == 1;
  for (int64_t row = 0; row < matrix.rows; ++row) {
    matrix.scales.as<float>()[row] = scales.as<float>()[shared ? 0 : row];
  }
}

void copy_codes(const CompressedScheme& scheme, const StoredLinear& stored,
                QuantizedMatrix& matrix) {
  const auto* from = reinterpret_cast<const uint8_t*>(stored.codes->data);
  auto* to = matrix.codes.as<uint8_t>();
  if (scheme.layout != PackedLayout::kInt32) {
    std::memcpy(to, from, static_cast<std::size_t>(matrix.codes.size()));
    return;
  }
  // Little-endian words with the first column lowest: the same order of nibbles and bytes as ours.
  // q + 8 -> two's complement q flips the sign bit.
  static_assert(std::endian::native == std::endian::little);
  const uint8_t flip = scheme.element == ElementType::kInt4 ? 0x88 : 0x80;
  const int64_t row_bytes = matrix.code_row_bytes();
  const int64_t stored_row_bytes = stored.codes->shape[1] * 4;  // padded to whole words
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t i = 0; i < row_bytes; ++i) {
      to[row * row_bytes + i] = static_cast<uint8_t>(from[row * stored_row_bytes + i] ^ flip);
    }
  }
}

}  // namespace

bool is_compressed(const std::string& module, const FindTensor& find) {
  return find(module + ".weight_packed") != nullptr || find(module + ".weight_scale") != nullptr;
}

void check_compressed_linear(const CompressedScheme& scheme, const std::string& module,
                             int64_t rows, int64_t cols, const FindTensor& find) {
  find_stored(scheme, module, rows, cols, find);
}

LinearWeights read_compressed_linear(const CompressedScheme& scheme, const std::string& module,
                                     int64_t rows, int64_t cols, const FindTensor& find) {
  const StoredLinear stored = find_stored(scheme, module, rows, cols, find);
  LinearWeights weights;
  QuantizedMatrix& matrix =
      weights.quantized.emplace(make_quantized_matrix(stored.format, rows, cols));
  copy_codes(scheme, stored, matrix);
  if (scheme.element == ElementType::kE4M3 &&
      has_nan(matrix.codes.as<uint8_t>(), matrix.codes.size(), 0x7f, 0x7f)) {
    fail(ErrorCode::kCorruptData, "'", module, "' has weights that are not numbers");
  }
  copy_scales(stored, matrix);
  if (!scales_are_numbers(matrix)) {
    fail(ErrorCode::kCorruptData, "tensor '", module,
         ".weight_scale' has values that are not numbers");
  }
  if (stored.global_scale != nullptr) {
    matrix.global_scale = read_global_scale(*stored.global_scale, module + ".weight_global_scale");
  }
  weights.scheme.activations = scheme.activations;
  if (stored.input_global_scale != nullptr) {
    weights.scheme.input_global_scale =
        read_global_scale(*stored.input_global_scale, module + ".input_global_scale");
  }
  return weights;
}

void check_stored_hadamard(const TensorView& stored, int64_t block, const std::string& name) {
  check_shape(name, stored, {block, block});
  const Tensor matrix = load_dense(stored, DType::kF32);
  for (int64_t i = 0; i < block; ++i) {
    for (int64_t j = 0; j < block; ++j) {
      const float expected = std::popcount(static_cast<uint64_t>(i & j)) % 2 == 0 ? 1.0f : -1.0f;
      if (matrix.as<float>()[i * block + j] != expected) {
        fail(ErrorCode::kUnsupported, "tensor '", name, "' is not the Hadamard matrix of size ",
             block, " (entry ", i, ", ", j, " is ", matrix.as<float>()[i * block + j], ")");
      }
    }
  }
}

}  // namespace lathe
