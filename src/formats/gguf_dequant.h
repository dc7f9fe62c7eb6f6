// The tensor types of GGUF files as plain floats. A quantized row is a sequence of blocks; every
// type here is decoded exactly as ggml and its Python package do it: the same fp32 operations in
// the same order. Source of the layouts: ggml/src/ggml-common.h (block_q4_0, ...), ggml-quants.c
// (dequantize_row_*), gguf-py/gguf/quants.py 0.19.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace lathe {

// Numbers as in the file (ggml_type).
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
  kMXFP4 = 39,
  kNVFP4 = 40,
};

struct GgmlTypeInfo {
  GgmlType type;
  std::string_view name;  // "Q4_K"
  int64_t block_values;   // values a block holds
  int64_t block_bytes;
  // blocks: num_blocks * block_bytes, of any alignment; out: num_blocks * block_values
  void (*dequantize)(const std::byte* blocks, int64_t num_blocks, float* out);
};

// nullptr for a number that is not a type lathe reads.
const GgmlTypeInfo* ggml_type_info(uint32_t type);
inline const GgmlTypeInfo& ggml_type_info(GgmlType type) {
  return *ggml_type_info(static_cast<uint32_t>(type));
}

}  // namespace lathe
