// Rounding to codes in device code: encode_element(), element_value(), store_scale() and
// stored_scale() of quant/, in double precision like them, so that every code is the same.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "base/error.h"
#include "compress/cuda_quantized_matrix.h"
#include "quant/weight_format.h"

namespace lathe {

__device__ inline uint8_t e2m1_code(double r) {
  const double a = fabs(r);
  if (a != a) return 7;
  const int code =
      (a > 0.25) + (a >= 0.75) + (a > 1.25) + (a >= 1.75) + (a > 2.5) + (a >= 3.5) + (a > 5.0);
  return static_cast<uint8_t>(code | ((__double2hiint(r) >> 28) & 8));
}

__device__ inline float e2m1_value(uint8_t code) {
  const int magnitude = code & 7;
  // 1.0 and above: exponent field magnitude / 2, mantissa bit magnitude % 2.
  const unsigned bits =
      magnitude >= 2 ? static_cast<unsigned>(((magnitude >> 1) + 126) << 23 | (magnitude & 1) << 22)
                     : (magnitude == 1 ? 0x3f000000u : 0u);
  return __uint_as_float(bits | static_cast<unsigned>(code & 8) << 28);
}

__device__ inline uint8_t e4m3_code(double value) {
  if (value != value) return 0x7f;
  const auto sign = static_cast<uint8_t>((__double2hiint(value) >> 24) & 0x80);
  const double magnitude = fmin(fabs(value), 448.0);
  if (magnitude < 0.015625) {  // below 2^-6 the grid is uniform, with steps of 2^-9
    return sign | static_cast<uint8_t>(rint(magnitude * 512));
  }
  auto bits = static_cast<uint64_t>(__double_as_longlong(magnitude));
  bits += ((uint64_t{1} << 48) - 1) + ((bits >> 49) & 1);
  return sign | static_cast<uint8_t>((bits >> 49) - (uint64_t{1023 - 7} << 3));
}

__device__ inline float e4m3_value(uint8_t code) {
  const int magnitude = code & 0x7f;
  float value;
  if (magnitude == 0x7f) {
    return __uint_as_float(0x7fc00000u);
  } else if (magnitude < 8) {
    value = static_cast<float>(magnitude) * 0x1p-9f;
  } else {
    value = __uint_as_float(static_cast<unsigned>(magnitude + ((127 - 7) << 3)) << 20);
  }
  return (code & 0x80) != 0 ? -value : value;
}

// The smallest integer code: -7 for int4 with an E8M0 or E4M3 scale, else -8; -127 for int8.
__host__ __device__ inline double lowest_integer(const WeightFormat& format) {
  if (format.element == ElementType::kInt8) return -127;
  return format.scale == ScaleType::kE8M0 || format.scale == ScaleType::kE4M3 ? -7 : -8;
}

template <ElementType kElement>
__device__ inline uint8_t element_code(double r, double lowest) {
  if constexpr (kElement == ElementType::kE2M1) {
    return e2m1_code(r);
  } else if constexpr (kElement == ElementType::kE4M3) {
    return e4m3_code(r);
  } else {
    constexpr double kHighest = kElement == ElementType::kInt4 ? 7 : 127;
    const int q = static_cast<int>(fmin(fmax(rint(r), lowest), kHighest));
    return static_cast<uint8_t>(kElement == ElementType::kInt4 ? q & 15 : q);
  }
}

template <ElementType kElement>
__device__ inline float code_value(uint8_t code) {
  if constexpr (kElement == ElementType::kE2M1) {
    return e2m1_value(code);
  } else if constexpr (kElement == ElementType::kE4M3) {
    return e4m3_value(code);
  } else if constexpr (kElement == ElementType::kInt4) {
    return static_cast<float>(((code & 15) ^ 8) - 8);
  } else {
    return static_cast<float>(static_cast<int8_t>(code));
  }
}

// With the element type known only at run time.
__device__ inline uint8_t element_code(ElementType element, double r, double lowest) {
  switch (element) {
    case ElementType::kE2M1:
      return element_code<ElementType::kE2M1>(r, lowest);
    case ElementType::kE4M3:
      return element_code<ElementType::kE4M3>(r, lowest);
    case ElementType::kInt4:
      return element_code<ElementType::kInt4>(r, lowest);
    default:
      return element_code<ElementType::kInt8>(r, lowest);
  }
}
__device__ inline float code_value(ElementType element, uint8_t code) {
  switch (element) {
    case ElementType::kE2M1:
      return code_value<ElementType::kE2M1>(code);
    case ElementType::kE4M3:
      return code_value<ElementType::kE4M3>(code);
    case ElementType::kInt4:
      return code_value<ElementType::kInt4>(code);
    default:
      return code_value<ElementType::kInt8>(code);
  }
}

// The scales of a matrix as a kernel takes them.
struct CudaScales {
  void* scales;
  const double* values;  // of one-byte types, [256]
  ScaleType type;
  double global_scale;
  double log_alpha;
  double log_beta;

  // Of the bits that are stored.
  __device__ double value_of(uint32_t bits) const {
    switch (type) {
      case ScaleType::kBF16:
        return double{__uint_as_float(bits << 16)};
      case ScaleType::kF16:
        return double{__half2float(__ushort_as_half(static_cast<unsigned short>(bits)))};
      case ScaleType::kF32:
        return double{__uint_as_float(bits)};
      default:
        return values[bits];
    }
  }
  __device__ double stored(int64_t index) const {
    switch (type) {
      case ScaleType::kBF16:
      case ScaleType::kF16:
        return value_of(static_cast<const uint16_t*>(scales)[index]);
      case ScaleType::kF32:
        return value_of(static_cast<const uint32_t*>(scales)[index]);
      default:
        return value_of(static_cast<const uint8_t*>(scales)[index]);
    }
  }
  // The bits that store_scale() would write. value >= 0.
  __device__ uint32_t bits_of(double value) const {
    switch (type) {
      case ScaleType::kE8M0:
        if (!(value > 0)) return 0;
        return static_cast<uint32_t>(fmin(fmax(rint(log2(value)), -127.0), 127.0) + 127);
      case ScaleType::kE4M3:
        return e4m3_code(value);
      case ScaleType::kBF16:
        return __bfloat16_as_ushort(__float2bfloat16_rn(static_cast<float>(value)));
      case ScaleType::kF16:
        return __half_as_ushort(__float2half_rn(static_cast<float>(value)));
      case ScaleType::kF32:
        return __float_as_uint(static_cast<float>(value));
      default: {
        const double steps = log_alpha > 0 && value > 0 ? (log2(value) - log_beta) / log_alpha : 0;
        return static_cast<uint32_t>(fmin(fmax(rint(steps), 0.0), 255.0));
      }
    }
  }
  __device__ void store_bits(int64_t index, uint32_t bits) const {
    switch (type) {
      case ScaleType::kBF16:
      case ScaleType::kF16:
        static_cast<uint16_t*>(scales)[index] = static_cast<uint16_t>(bits);
        return;
      case ScaleType::kF32:
        static_cast<uint32_t*>(scales)[index] = bits;
        return;
      default:
        static_cast<uint8_t*>(scales)[index] = static_cast<uint8_t>(bits);
        return;
    }
  }
};

inline CudaScales scales_of(const CudaQuantizedMatrix& matrix) {
  return {.scales = const_cast<std::byte*>(matrix.scales.data()),
          .values = matrix.scale_values.as<double>(),
          .type = matrix.format.scale,
          .global_scale = double{matrix.global_scale},
          .log_alpha = double{matrix.log_alpha},
          .log_beta = double{matrix.log_beta}};
}

// Calls body with the element type as a constant.
template <typename Body>
void with_element(ElementType element, Body&& body) {
  switch (element) {
    case ElementType::kE2M1:
      return body(std::integral_constant<ElementType, ElementType::kE2M1>());
    case ElementType::kInt4:
      return body(std::integral_constant<ElementType, ElementType::kInt4>());
    case ElementType::kInt8:
      return body(std::integral_constant<ElementType, ElementType::kInt8>());
    case ElementType::kE4M3:
      return body(std::integral_constant<ElementType, ElementType::kE4M3>());
  }
}

}  // namespace lathe
