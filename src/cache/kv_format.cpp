#include "cache/kv_format.h"

#include <string>

#include "base/error.h"
#include "kernels/attention/kv_codes.h"

namespace lathe {
namespace {

struct FormatRow {
  KvFormat format;
  KvElement element;
  std::string_view name;
};
constexpr FormatRow kFormats[] = {
    {KvFormat::kF32, KvElement::kF32, "f32"},
    {KvFormat::kBF16, KvElement::kBF16, "bf16"},
    {KvFormat::kFp8, KvElement::kFp8, "fp8"},
    {KvFormat::kInt8, KvElement::kInt8, "int8"},
    {KvFormat::kQ4, KvElement::kQ4, "q4"},
    {KvFormat::kHiggs4, KvElement::kHiggs4, "higgs4"},
    {KvFormat::kHiggs3, KvElement::kHiggs3, "higgs3"},
    {KvFormat::kHiggs2, KvElement::kHiggs2, "higgs2"},
};

const FormatRow& row_of(KvFormat format) {
  for (const FormatRow& row : kFormats) {
    if (row.format == format) return row;
  }
  fail(ErrorCode::kInternal, "no row for cache format ", static_cast<int>(format));
}

}  // namespace

KvFormat kv_format_from_name(std::string_view name) {
  std::string known;
  for (const FormatRow& row : kFormats) {
    if (row.name == name) return row.format;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  fail(ErrorCode::kUnsupported, "cache format '", name, "' (", known, ")");
}

std::string_view kv_format_name(KvFormat format) { return row_of(format).name; }

KvElement kv_element(KvFormat format) { return row_of(format).element; }

int64_t kv_token_bytes(KvFormat format, const ModelConfig& config) {
  return 2 * config.num_layers * config.num_kv_heads *
         kv_head_bytes(kv_element(format), config.head_dim) / kBlockSize;
}

}  // namespace lathe
