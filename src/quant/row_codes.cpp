#include "quant/row_codes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr uint32_t kLog8Nan = 255;
constexpr int kLog8Bias = 127;

// 2^(k / 8), k = 0..7, and the limits between neighbours, 2^((k + 1/2) / 8), nearest fp32.
constexpr std::array<float, 8> kLog8Steps = {1.0f,        1.09050773f, 1.18920712f, 1.29683955f,
                                             1.41421356f, 1.54221083f, 1.68179283f, 1.83400809f};
constexpr std::array<float, 8> kLog8Limits = {1.04427378f, 1.13878863f, 1.24185781f, 1.35425555f,
                                              1.47682615f, 1.61049033f, 1.75625216f, 1.91520656f};

uint32_t log8_from_norm(float norm) {
  if (!(norm <= 3.4028235e38f)) return kLog8Nan;  // infinity, NaN
  if (norm == 0) return 0;
  int exponent = 0;
  const float mantissa = 2 * std::frexp(norm, &exponent);  // [1, 2)
  int code = 8 * (exponent - 1) + kLog8Bias;
  for (const float limit : kLog8Limits) code += mantissa >= limit ? 1 : 0;
  return static_cast<uint32_t>(std::clamp(code, 0, 254));
}

float log8_value(uint32_t code) {
  if (code == 0) return 0;
  if (code == kLog8Nan) return NAN;
  const int eighths = static_cast<int>(code) - kLog8Bias;
  return std::ldexp(kLog8Steps[static_cast<std::size_t>(eighths & 7)], eighths >> 3);
}

int64_t bytes_of(RowScale scale) {
  return scale == RowScale::kLog8 ? 1 : scale == RowScale::kF16 ? 2 : 4;
}

template <typename T>
T load_as(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

void encode_higgs_head(const RowFormat& format, const HiggsGrid& grid, int64_t head_dim,
                       const float* inverse_sigma, const float* x, std::byte* scale_out,
                       uint8_t* codes) {
  float u[kMaxRowHeadDim];
  for (int64_t j = 0; j < head_dim; ++j) {
    u[j] = inverse_sigma == nullptr ? x[j] : x[j] * inverse_sigma[j];
  }
  const uint32_t bits = round_row_scale(format.scale, std::sqrt(sum_of_squares(u, head_dim)));
  std::memcpy(scale_out, &bits, static_cast<std::size_t>(bytes_of(format.scale)));
  const float scale = row_scale_value(format.scale, bits);
  const int64_t num_codes = head_dim / grid.dim;
  if (!(scale > 0)) {  // zero, NaN
    std::fill(codes, codes + num_codes, uint8_t{0});
    return;
  }
  for (int64_t begin = 0; begin < head_dim;) {
    const int64_t piece = format.hadamard ? hadamard_piece(head_dim - begin) : head_dim;
    if (format.hadamard) hadamard_butterflies(u + begin, piece);
    const float factor = encode_factor(head_dim, format.hadamard ? piece : 1, scale);
    for (int64_t j = begin; j < begin + piece; ++j) u[j] *= factor;
    begin += piece;
  }
  for (int64_t i = 0; i < num_codes; ++i) {
    codes[i] = static_cast<uint8_t>(nearest_point(grid, u + i * grid.dim));
  }
}

void decode_higgs_head(const RowFormat& format, const HiggsGrid& grid, int64_t head_dim,
                       const float* sigma, const std::byte* scale_in, const uint8_t* codes,
                       float* x) {
  uint32_t bits = 0;
  std::memcpy(&bits, scale_in, static_cast<std::size_t>(bytes_of(format.scale)));
  const float scale = row_scale_value(format.scale, bits);
  for (int64_t i = 0; i < head_dim / grid.dim; ++i) {
    for (int64_t j = 0; j < grid.dim; ++j) {
      x[i * grid.dim + j] = grid.points[codes[i] * grid.dim + j];
    }
  }
  for (int64_t begin = 0; begin < head_dim;) {
    const int64_t piece = format.hadamard ? hadamard_piece(head_dim - begin) : head_dim;
    if (format.hadamard) hadamard_butterflies(x + begin, piece);
    const float factor = decode_factor(head_dim, format.hadamard ? piece : 1, scale);
    for (int64_t j = begin; j < begin + piece; ++j) x[j] *= factor;
    begin += piece;
  }
  if (sigma == nullptr) return;
  for (int64_t j = 0; j < head_dim; ++j) x[j] *= sigma[j];
}

void encode_uniform_group(int bits, const float* x, int64_t n, std::byte* scales, uint8_t* codes) {
  float low = x[0];
  float high = x[0];
  bool finite = true;
  for (int64_t j = 0; j < n; ++j) {
    finite = finite && std::isfinite(x[j]);
    low = std::min(low, x[j]);
    high = std::max(high, x[j]);
  }
  const float levels = static_cast<float>((1 << bits) - 1);
  const uint16_t stored[2] = {f16_from_float(finite ? low : NAN),
                              f16_from_float(finite ? (high - low) / levels : NAN)};
  std::memcpy(scales, stored, sizeof stored);
  const float low16 = float_from_f16(stored[0]);
  const float step = float_from_f16(stored[1]);
  const float inverse = step > 0 && std::isfinite(step) ? 1 / step : 0;
  for (int64_t j = 0; j < n; ++j) {
    const float q = std::nearbyint((x[j] - low16) * inverse);
    codes[j] = static_cast<uint8_t>(q >= levels ? levels : q > 0 ? q : 0.0f);
  }
}

void decode_uniform_group(const std::byte* scales, const uint8_t* codes, int64_t n, float* x) {
  const float low = float_from_f16(load_as<uint16_t>(scales));
  const float step = float_from_f16(load_as<uint16_t>(scales + 2));
  for (int64_t j = 0; j < n; ++j) x[j] = std::fma(static_cast<float>(codes[j]), step, low);
}

}  // namespace

std::string_view row_scale_name(RowScale scale) {
  switch (scale) {
    case RowScale::kLog8:
      return "log8";
    case RowScale::kF16:
      return "f16";
    case RowScale::kF32:
      break;
  }
  return "f32";
}

RowScale row_scale_from_name(std::string_view name) {
  for (const RowScale scale : {RowScale::kLog8, RowScale::kF16, RowScale::kF32}) {
    if (row_scale_name(scale) == name) return scale;
  }
  fail(ErrorCode::kUnsupported, "scale format '", name.substr(0, 40),
       "' is not one of log8, f16, f32");
}

void check_row_format(const RowFormat& format, const RowShape& shape) {
  const auto refuse = [&](const auto&... parts) {
    fail(ErrorCode::kInvalidArgument, "row codes: ", parts...);
  };
  if (shape.num_heads < 1 || shape.num_heads > kMaxRowWidth || shape.head_dim < 8 ||
      shape.head_dim > kMaxRowHeadDim || shape.head_dim % 8 != 0 || shape.width() > kMaxRowWidth) {
    refuse(shape.num_heads, " heads of ", shape.head_dim,
           " numbers (head_dim a multiple of 8, 8 to ", kMaxRowHeadDim, "; a row at most ",
           kMaxRowWidth, ")");
  }
  if (format.method == RowMethod::kHiggs) {
    static_cast<void>(higgs_grid(format.bits, format.grid_dim));
    return;
  }
  if (format.bits != 2 && format.bits != 3 && format.bits != 4 && format.bits != 8) {
    refuse(format.bits, " bits are not one of 2, 3, 4, 8");
  }
  if (format.group < 8 || format.group % 8 != 0 || format.group > kMaxRowWidth ||
      shape.width() % format.group != 0) {
    refuse("groups of ", format.group, " do not divide a row of ", shape.width());
  }
}

int64_t row_scale_bytes(const RowFormat& format, const RowShape& shape) {
  return format.method == RowMethod::kHiggs ? shape.num_heads * bytes_of(format.scale)
                                            : shape.width() / format.group * 4;
}

int64_t row_code_bytes(const RowFormat& format, const RowShape& shape) {
  return shape.width() * format.bits / 8;
}

int64_t row_bytes(const RowFormat& format, const RowShape& shape) {
  return row_scale_bytes(format, shape) + row_code_bytes(format, shape);
}

uint32_t round_row_scale(RowScale format, float norm) {
  switch (format) {
    case RowScale::kLog8:
      return log8_from_norm(norm);
    case RowScale::kF16:
      return f16_from_float(std::isinf(norm)   ? NAN
                            : std::isnan(norm) ? norm
                                               : std::min(norm, 65504.0f));
    case RowScale::kF32:
      break;
  }
  return std::bit_cast<uint32_t>(std::isinf(norm) ? NAN : norm);
}

float row_scale_value(RowScale format, uint32_t bits) {
  switch (format) {
    case RowScale::kLog8:
      return log8_value(bits & 0xff);
    case RowScale::kF16:
      return float_from_f16(static_cast<uint16_t>(bits));
    case RowScale::kF32:
      break;
  }
  return std::bit_cast<float>(bits);
}

int64_t hadamard_piece(int64_t n) {
  return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n)));
}

void hadamard_butterflies(float* x, int64_t n) {
  for (int64_t distance = 1; distance < n; distance *= 2) {
    for (int64_t pair = 0; pair < n; pair += 2 * distance) {
      for (int64_t i = pair; i < pair + distance; ++i) {
        const float a = x[i];
        const float b = x[i + distance];
        x[i] = a + b;
        x[i + distance] = a - b;
      }
    }
  }
}

float sum_of_squares(const float* x, int64_t n) {
  float lanes[16] = {};
  for (int64_t j = 0; j < n; ++j) lanes[j % 16] = std::fma(x[j], x[j], lanes[j % 16]);
  for (int64_t distance = 8; distance > 0; distance /= 2) {
    for (int64_t i = 0; i < distance; ++i) lanes[i] += lanes[i + distance];
  }
  return lanes[0];
}

float encode_factor(int64_t head_dim, int64_t g, float scale) {
  const double ratio = static_cast<double>(head_dim) / static_cast<double>(g);
  return static_cast<float>(std::sqrt(ratio)) / scale;
}

float decode_factor(int64_t head_dim, int64_t g, float scale) {
  const double product = static_cast<double>(head_dim) * static_cast<double>(g);
  return scale * static_cast<float>(1 / std::sqrt(product));
}

void pack_codes(const uint8_t* codes, int64_t num_codes, int width, std::byte* out) {
  uint32_t pending = 0;
  int num_pending = 0;
  for (int64_t i = 0; i < num_codes; ++i) {
    pending |= static_cast<uint32_t>(codes[i]) << num_pending;
    for (num_pending += width; num_pending >= 8; num_pending -= 8) {
      *out++ = static_cast<std::byte>(pending & 0xff);
      pending >>= 8;
    }
  }
}

void unpack_codes(const std::byte* in, int64_t num_codes, int width, uint8_t* codes) {
  const uint32_t mask = (1u << width) - 1;
  uint32_t pending = 0;
  int num_pending = 0;
  for (int64_t i = 0; i < num_codes; ++i) {
    if (num_pending < width) {
      pending |= std::to_integer<uint32_t>(*in++) << num_pending;
      num_pending += 8;
    }
    codes[i] = static_cast<uint8_t>(pending & mask);
    pending >>= width;
    num_pending -= width;
  }
}

void encode_row(const RowFormat& format, const RowShape& shape, const float* inverse_sigma,
                const float* x, std::byte* code) {
  uint8_t codes[kMaxRowWidth];
  std::byte* scales = code;
  std::byte* packed = code + row_scale_bytes(format, shape);
  if (format.method == RowMethod::kUniform) {
    for (int64_t begin = 0; begin < shape.width(); begin += format.group) {
      encode_uniform_group(format.bits, x + begin, format.group, scales + begin / format.group * 4,
                           codes + begin);
    }
    pack_codes(codes, shape.width(), format.bits, packed);
    return;
  }
  const HiggsGrid& grid = higgs_grid(format.bits, format.grid_dim);
  for (int64_t head = 0; head < shape.num_heads; ++head) {
    const int64_t begin = head * shape.head_dim;
    encode_higgs_head(format, grid, shape.head_dim,
                      inverse_sigma == nullptr ? nullptr : inverse_sigma + begin, x + begin,
                      scales + head * bytes_of(format.scale), codes + begin / grid.dim);
  }
  pack_codes(codes, shape.width() / grid.dim, grid.code_bits, packed);
}

void decode_row(const RowFormat& format, const RowShape& shape, const float* sigma,
                const std::byte* code, float* x) {
  uint8_t codes[kMaxRowWidth];
  const std::byte* scales = code;
  const std::byte* packed = code + row_scale_bytes(format, shape);
  if (format.method == RowMethod::kUniform) {
    unpack_codes(packed, shape.width(), format.bits, codes);
    for (int64_t begin = 0; begin < shape.width(); begin += format.group) {
      decode_uniform_group(scales + begin / format.group * 4, codes + begin, format.group,
                           x + begin);
    }
    return;
  }
  const HiggsGrid& grid = higgs_grid(format.bits, format.grid_dim);
  unpack_codes(packed, shape.width() / grid.dim, grid.code_bits, codes);
  for (int64_t head = 0; head < shape.num_heads; ++head) {
    const int64_t begin = head * shape.head_dim;
    decode_higgs_head(format, grid, shape.head_dim, sigma == nullptr ? nullptr : sigma + begin,
                      scales + head * bytes_of(format.scale), codes + begin / grid.dim, x + begin);
  }
}

}  // namespace lathe
