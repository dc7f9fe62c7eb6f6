// Names and limits of KvFitOptions.
#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "compress/kv_fit.h"
#include "kernels/attention/kv_layout.h"

namespace lathe {
namespace {

constexpr std::array<std::pair<std::string_view, KvFitMethod>, 3> kMethods = {{
    {"aqua", KvFitMethod::kAqua},
    {"higgs", KvFitMethod::kHiggs},
    {"int", KvFitMethod::kInt},
}};
constexpr std::array<std::pair<std::string_view, KvFitVariant>, 5> kVariants = {{
    {"dense", KvFitVariant::kDense},
    {"low-rank", KvFitVariant::kLowRank},
    {"block-diagonal", KvFitVariant::kBlockDiagonal},
    {"star", KvFitVariant::kStar},
    {"latent", KvFitVariant::kLatent},
}};

template <typename Table>
auto from_name(const Table& table, std::string_view name, const char* what) {
  std::string choices;
  for (const auto& [known, value] : table) {
    if (known == name) return value;
    choices += (choices.empty() ? "" : ", ") + std::string(known);
  }
  fail(ErrorCode::kInvalidArgument, what, " ", name, ": unknown; choose one of ", choices);
}

template <typename Table, typename Value>
std::string_view name_of(const Table& table, Value value) {
  const auto place = std::find_if(table.begin(), table.end(),
                                  [&](const auto& entry) { return entry.second == value; });
  return place->first;
}

void check_range(const char* what, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    fail(ErrorCode::kInvalidArgument, what, " ", value, " is not between ", low, " and ", high);
  }
}

}  // namespace

KvFitMethod kv_fit_method_from_name(std::string_view name) {
  return from_name(kMethods, name, "method");
}
KvFitVariant kv_fit_variant_from_name(std::string_view name) {
  return from_name(kVariants, name, "variant");
}
std::string_view kv_fit_method_name(KvFitMethod method) { return name_of(kMethods, method); }
std::string_view kv_fit_variant_name(KvFitVariant variant) { return name_of(kVariants, variant); }

RowFormat KvFitOptions::format(int plane_bits, const RowShape& shape) const {
  RowFormat format;
  format.bits = plane_bits;
  if (method == KvFitMethod::kInt) {
    format.method = RowMethod::kUniform;
    if (shape.width() % format.group != 0) format.group = shape.head_dim;
    return format;
  }
  format.grid_dim = plane_bits == 2 ? grid_dim : std::min<int64_t>(grid_dim, 2);
  format.scale = scale;
  format.hadamard = hadamard;
  return format;
}

int KvFitOptions::resolved_first_layer_bits() const {
  if (first_layer_bits > 0) return first_layer_bits;
  return method == KvFitMethod::kAqua && !has_latents() ? std::max(bits, 4) : bits;
}

int64_t KvFitOptions::resolved_rank(const RowShape& shape) const {
  if (rank > 0) return rank;
  const int64_t half = std::max<int64_t>(2, shape.width() / 2);
  // can_attend_to_latents() of kernels/attention/latent_attention_cuda.h
  return values_from_keys ? half : std::min(half, 2 * shape.head_dim);
}

void check_kv_fit_options(const KvFitOptions& options, const ModelConfig& config) {
  check_range("--bits", options.bits, 2, 4);
  if (options.first_layer_bits != 0)
    check_range("--first-layer-bits", options.first_layer_bits, 2, 4);
  check_range("--sinks", options.num_sinks, 0, 4096);
  check_range("--window", options.window, 0, int64_t{1} << 20);
  check_range("--chunk-tokens", options.chunk_tokens, kBlockSize, 65536);
  if (options.chunk_tokens % kBlockSize != 0) {
    fail(ErrorCode::kInvalidArgument, "--chunk-tokens ", options.chunk_tokens,
         " is not a multiple of ", kBlockSize);
  }
  check_range("--group-layers", options.group_layers, 2, 64);
  if (options.rank != 0) check_range("--rank", options.rank, 1, 16384);
  if (options.latent_bits != 4 && options.latent_bits != 8) {
    fail(ErrorCode::kInvalidArgument, "--latent-bits ", options.latent_bits, ": 4 or 8");
  }
  if (options.grid_dim != 1 && options.grid_dim != 2 &&
      !(options.grid_dim == 4 && options.bits == 2)) {
    fail(ErrorCode::kInvalidArgument, "--grid-dim ", options.grid_dim,
         ": 1 or 2, and 4 with --bits 2");
  }
  if (!(options.ridge > 0 && options.ridge <= 1)) {
    fail(ErrorCode::kInvalidArgument, "--ridge ", options.ridge, ": above 0, at most 1");
  }
  const RowShape shape{config.num_kv_heads, config.head_dim};
  if (options.has_latents() && options.latent_bits == 4 && options.resolved_rank(shape) % 2 != 0) {
    fail(ErrorCode::kInvalidArgument, "--rank ", options.resolved_rank(shape),
         ": a latent of 4-bit codes needs an even rank");
  }
  for (const int bits : {options.bits, options.resolved_first_layer_bits()}) {
    check_row_format(options.format(bits, shape), shape);
  }
}

}  // namespace lathe
