#include "quant/weight_format.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/error.h"
#include "quant/fp4_e2m1.h"
#include "quant/fp8.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

struct NamedFormat {
  std::string_view name;
  WeightFormat format;
};
constexpr NamedFormat kFormats[] = {
    {"mxfp4", {ElementType::kE2M1, ScaleType::kE8M0, 32}},
    {"mxfp4-fitted", {ElementType::kE2M1, ScaleType::kLogLinear8, 32}},
    {"nvfp4", {ElementType::kE2M1, ScaleType::kE4M3, 16}},
    {"int4", {ElementType::kInt4, ScaleType::kBF16, 32}},
    {"nvint4", {ElementType::kInt4, ScaleType::kE4M3, 16}},
    {"mxint4", {ElementType::kInt4, ScaleType::kE8M0, 32}},
    {"int8", {ElementType::kInt8, ScaleType::kF32, 0}},
    {"fp8", {ElementType::kE4M3, ScaleType::kF32, 0}},
    {"mxfp8", {ElementType::kE4M3, ScaleType::kE8M0, 32}},
};

std::string_view element_name(ElementType element) {
  switch (element) {
    case ElementType::kE2M1:
      return "e2m1";
    case ElementType::kInt4:
      return "int4";
    case ElementType::kInt8:
      return "int8";
    case ElementType::kE4M3:
      return "e4m3";
  }
  return "?";
}

std::string_view scale_name(ScaleType scale) {
  switch (scale) {
    case ScaleType::kE8M0:
      return "e8m0";
    case ScaleType::kE4M3:
      return "e4m3";
    case ScaleType::kBF16:
      return "bf16";
    case ScaleType::kF16:
      return "f16";
    case ScaleType::kF32:
      return "f32";
    case ScaleType::kLogLinear8:
      return "loglinear8";
  }
  return "?";
}

// Decode tables of the 8-bit floats; a table is filled once, on first use.
const std::array<float, 256>& e4m3_table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values{};
    for (int i = 0; i < 256; ++i)
      values[static_cast<std::size_t>(i)] = e4m3_to_float(static_cast<uint8_t>(i));
    return values;
  }();
  return table;
}

template <typename T>
T load_as(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace

int element_bits(ElementType element) {
  return element == ElementType::kE2M1 || element == ElementType::kInt4 ? 4 : 8;
}

int64_t scale_bytes(ScaleType scale) {
  switch (scale) {
    case ScaleType::kE8M0:
    case ScaleType::kE4M3:
    case ScaleType::kLogLinear8:
      return 1;
    case ScaleType::kBF16:
    case ScaleType::kF16:
      return 2;
    case ScaleType::kF32:
      return 4;
  }
  return 0;
}

WeightFormat weight_format_from_name(std::string_view name) {
  std::string known;
  for (const NamedFormat& entry : kFormats) {
    if (entry.name == name) return entry.format;
    known += (known.empty() ? "" : ", ");
    known += entry.name;
  }
  fail(ErrorCode::kInvalidArgument, "weight format '", name, "' is not known; take one of ", known);
}

std::string weight_format_name(const WeightFormat& format) {
  for (const NamedFormat& entry : kFormats) {
    if (entry.format == format) return std::string(entry.name);
  }
  return str(element_name(format.element), "-", scale_name(format.scale), "-g", format.group_size);
}

double bits_per_weight(const WeightFormat& format) {
  double bits = element_bits(format.element);
  if (format.group_size > 0) {
    bits += 8.0 * static_cast<double>(scale_bytes(format.scale)) /
            static_cast<double>(format.group_size);
  }
  return bits;
}

QuantizedMatrix make_quantized_matrix(const WeightFormat& format, int64_t rows, int64_t cols) {
  if (rows <= 0 || cols <= 0) {
    fail(ErrorCode::kInvalidArgument, "a quantized matrix of ", rows, " x ", cols,
         " elements cannot be");
  }
  if (format.group_size > 0 && cols % format.group_size != 0) {
    fail(ErrorCode::kInvalidArgument, weight_format_name(format), ": ", cols,
         " input features are not a multiple of the group size ", format.group_size);
  }
  if (element_bits(format.element) == 4 && cols % 2 != 0) {
    fail(ErrorCode::kInvalidArgument, weight_format_name(format), ": ", cols,
         " input features are odd; two codes share a byte");
  }
  QuantizedMatrix matrix;
  matrix.format = format;
  matrix.rows = rows;
  matrix.cols = cols;
  const int64_t limit = std::numeric_limits<int64_t>::max() / 8 / cols;
  if (rows > limit) {
    fail(ErrorCode::kInvalidArgument, "a quantized matrix of ", rows, " x ", cols,
         " elements does not fit into memory");
  }
  matrix.codes = Buffer(rows * matrix.code_row_bytes());
  matrix.scales = Buffer(rows * matrix.num_groups() * scale_bytes(format.scale));
  std::memset(matrix.codes.data(), 0, static_cast<std::size_t>(matrix.codes.size()));
  std::memset(matrix.scales.data(), 0, static_cast<std::size_t>(matrix.scales.size()));
  return matrix;
}

double stored_scale(const QuantizedMatrix& matrix, int64_t row, int64_t group) {
  const int64_t index = row * matrix.num_groups() + group;
  const std::byte* p = matrix.scales.data() + index * scale_bytes(matrix.format.scale);
  switch (matrix.format.scale) {
    case ScaleType::kE8M0:
      return double{e8m0_to_float(load_as<uint8_t>(p))};
    case ScaleType::kE4M3:
      return double{e4m3_table()[load_as<uint8_t>(p)]};
    case ScaleType::kBF16:
      return double{float_from_bf16(load_as<uint16_t>(p))};
    case ScaleType::kF16:
      return double{float_from_f16(load_as<uint16_t>(p))};
    case ScaleType::kF32:
      return double{load_as<float>(p)};
    case ScaleType::kLogLinear8:
      return std::exp2(double{matrix.log_alpha} * load_as<uint8_t>(p) + double{matrix.log_beta});
  }
  return 0;
}

float effective_scale(const QuantizedMatrix& matrix, int64_t row, int64_t group) {
  return static_cast<float>(stored_scale(matrix, row, group) / double{matrix.global_scale});
}

float element_value(ElementType element, uint8_t code) {
  switch (element) {
    case ElementType::kE2M1:
      return e2m1_to_float(code);
    case ElementType::kInt4:
      return static_cast<float>(((code & 15) ^ 8) - 8);
    case ElementType::kInt8:
      return static_cast<float>(static_cast<int8_t>(code));
    case ElementType::kE4M3:
      return e4m3_table()[code];
  }
  return 0;
}

void dequantize_rows(const QuantizedMatrix& matrix, int64_t row_begin, int64_t row_end,
                     float* out) {
  LATHE_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= matrix.rows);
  const bool nibbles = element_bits(matrix.format.element) == 4;
  const int64_t group_size = matrix.format.group_size == 0 ? matrix.cols : matrix.format.group_size;
  const double global_scale = matrix.global_scale;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const uint8_t* codes = matrix.codes.as<uint8_t>() + row * matrix.code_row_bytes();
    for (int64_t group = 0; group < matrix.num_groups(); ++group) {
      const double scale = stored_scale(matrix, row, group);
      for (int64_t col = group * group_size; col < (group + 1) * group_size; ++col) {
        const uint8_t byte = nibbles ? codes[col / 2] : codes[col];
        const auto code =
            nibbles ? static_cast<uint8_t>(col % 2 == 0 ? byte & 15 : byte >> 4) : byte;
        *out++ = static_cast<float>(double{element_value(matrix.format.element, code)} * scale /
                                    global_scale);
      }
    }
  }
}

namespace {
struct NamedActivation {
  std::string_view name;
  ActivationFormat format;
};
constexpr NamedActivation kActivations[] = {
    {"none", ActivationFormat::kNone},   {"int8", ActivationFormat::kInt8},
    {"mxfp4", ActivationFormat::kMxfp4}, {"nvfp4", ActivationFormat::kNvfp4},
    {"fp8", ActivationFormat::kFp8},     {"mxfp8", ActivationFormat::kMxfp8},
};
}  // namespace

ActivationFormat activation_format_from_name(std::string_view name) {
  std::string known;
  for (const NamedActivation& entry : kActivations) {
    if (entry.name == name) return entry.format;
    known += (known.empty() ? "" : ", ");
    known += entry.name;
  }
  fail(ErrorCode::kInvalidArgument, "activation format '", name, "' is not known; take one of ",
       known);
}

std::string_view activation_format_name(ActivationFormat format) {
  for (const NamedActivation& entry : kActivations) {
    if (entry.format == format) return entry.name;
  }
  return "?";
}

}  // namespace lathe
