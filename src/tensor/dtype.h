// Element types of stored tensors.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace lathe {

enum class DType {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
};

// Bytes of one element.
int64_t dtype_size(DType dtype);
// safetensors' name: "F32", "BF16", "F8_E4M3", ...
std::string_view dtype_name(DType dtype);
std::optional<DType> dtype_from_name(std::string_view safetensors_name);

}  // namespace lathe
