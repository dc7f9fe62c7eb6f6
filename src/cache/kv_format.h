// What a cache stores its numbers as, by the names of --kv.
#pragma once
#include <cstdint>
#include <string_view>

#include "formats/model_config.h"
#include "kernels/attention/kv_layout.h"

namespace lathe {

// Live formats: attention reads them as they lie. kFp8 is E4M3 without scales; kInt8, kQ4 and
// kHiggs4..2 (kernels/attention/kv_codes.h) are the CPU's alone.
enum class KvFormat { kF32, kBF16, kFp8, kInt8, kQ4, kHiggs4, kHiggs3, kHiggs2 };

// f32, bf16, fp8, int8, q4, higgs4, higgs3, higgs2; else kUnsupported, with the list.
KvFormat kv_format_from_name(std::string_view name);
std::string_view kv_format_name(KvFormat format);
// How the CPU's attention reads it.
KvElement kv_element(KvFormat format);
// Bytes of one token's keys and values in all layers, scales included, where a block is full.
int64_t kv_token_bytes(KvFormat format, const ModelConfig& config);

}  // namespace lathe
