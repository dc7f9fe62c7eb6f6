#include "compress/quantize_options.h"

#include <sstream>

#include "base/error.h"
#include "quant/hadamard.h"

namespace lathe {
namespace {

constexpr QuantizeMethod kMethods[] = {QuantizeMethod::kMrGptq, QuantizeMethod::kGptq,
                                       QuantizeMethod::kRtn,    QuantizeMethod::kSmoothQuant,
                                       QuantizeMethod::kQuaRot, QuantizeMethod::kAwq};

template <typename T>
std::string joined(const std::vector<T>& values) {
  std::ostringstream text;
  for (std::size_t i = 0; i < values.size(); ++i) text << (i > 0 ? "," : "") << values[i];
  return std::move(text).str();
}

}  // namespace

std::string_view quantize_method_name(QuantizeMethod method) {
  switch (method) {
    case QuantizeMethod::kRtn:
      return "rtn";
    case QuantizeMethod::kGptq:
      return "gptq";
    case QuantizeMethod::kMrGptq:
      return "mr-gptq";
    case QuantizeMethod::kSmoothQuant:
      return "smoothquant";
    case QuantizeMethod::kQuaRot:
      return "quarot";
    case QuantizeMethod::kAwq:
      return "awq";
  }
  return "?";
}

QuantizeMethod quantize_method_from_name(std::string_view name) {
  std::string known;
  for (const QuantizeMethod method : kMethods) {
    if (quantize_method_name(method) == name) return method;
    known += (known.empty() ? "" : ", ");
    known += quantize_method_name(method);
  }
  fail(ErrorCode::kInvalidArgument, "method '", name, "' is not known; take one of ", known);
}

std::string_view column_weights_name(ColumnWeights weights) {
  switch (weights) {
    case ColumnWeights::kNone:
      return "none";
    case ColumnWeights::kDiagonal:
      return "diagonal";
    case ColumnWeights::kPivot:
      return "pivot";
  }
  return "?";
}

ColumnWeights column_weights_from_name(std::string_view name) {
  for (const ColumnWeights weights :
       {ColumnWeights::kNone, ColumnWeights::kDiagonal, ColumnWeights::kPivot}) {
    if (column_weights_name(weights) == name) return weights;
  }
  fail(ErrorCode::kInvalidArgument, "column weights '", name,
       "' are not known; take one of none, diagonal, pivot");
}

QuantizeOptions recommended_options(const WeightFormat& format, QuantizeMethod method,
                                    ActivationFormat activations) {
  QuantizeOptions options;
  options.format = format;
  options.method = method;
  options.activations = activations;
  options.scales.search = ScaleSearch::kExhaustive;
  switch (method) {
    case QuantizeMethod::kMrGptq:
      // One scale group per rotation block is the paper's recipe.
      options.hadamard = {format.group_size == 16 || format.group_size == 32 ? format.group_size
                                                                             : int64_t{0}};
      break;
    case QuantizeMethod::kQuaRot:
      options.hadamard = {128};
      options.scales.search = ScaleSearch::kAbsmax;
      break;
    case QuantizeMethod::kGptq:
      options.order = ColumnOrder::kNatural;
      options.scales.search = ScaleSearch::kAbsmax;
      break;
    case QuantizeMethod::kRtn:
    case QuantizeMethod::kSmoothQuant:
    case QuantizeMethod::kAwq:
      options.scales.search = ScaleSearch::kAbsmax;
      break;
  }
  return options;
}

void check_options(const QuantizeOptions& options, bool storable) {
  if (options.hadamard.empty() || options.damping.empty()) {
    fail(ErrorCode::kInvalidArgument, "no rotation or no damping to choose from");
  }
  for (const int64_t block : options.hadamard) check_hadamard(block, block);
  for (const double damping : options.damping) {
    if (!(damping > 0 && damping <= 1e6)) {
      fail(ErrorCode::kInvalidArgument, "damping ", damping, " is not a positive number");
    }
  }
  if (options.chooses() && !options.uses_gptq() && options.method != QuantizeMethod::kRtn) {
    fail(ErrorCode::kInvalidArgument,
         "choosing the rotation or damping by held-out error goes with ",
         "rtn, gptq and mr-gptq, not with ", quantize_method_name(options.method));
  }
  if (options.samples < 1 || options.seq_len < 1) {
    fail(ErrorCode::kInvalidArgument, "calibration with ", options.samples, " samples of ",
         options.seq_len, " tokens cannot be");
  }
  if (options.chooses() && options.samples < 2) {
    fail(ErrorCode::kInvalidArgument,
         "choosing by held-out error needs at least 2 calibration samples");
  }
  if (!(options.scales.norm >= 1 && options.scales.norm <= 8)) {
    fail(ErrorCode::kInvalidArgument, "error norm ", options.scales.norm, " is not in 1..8");
  }
  if (options.awq_grid < 1 || !(options.smooth_alpha >= 0 && options.smooth_alpha <= 1)) {
    fail(ErrorCode::kInvalidArgument, "smooth alpha ", options.smooth_alpha,
         " must be in 0..1 and the AWQ grid ", options.awq_grid, " at least 1");
  }
  if (storable) {
    const WeightFormat& format = options.format;
    if (format.scale == ScaleType::kLogLinear8 ||
        (format.element == ElementType::kInt4 &&
         (format.scale == ScaleType::kE8M0 || format.scale == ScaleType::kE4M3))) {
      fail(ErrorCode::kUnsupported, weight_format_name(format),
           " has no place in compressed-tensors; take mxfp4, nvfp4 or int4, or measure it with "
           "--emulate");
    }
    if (options.format == weight_format_from_name("mxfp4") &&
        mx_global_scale(options.scales.mx_rule) != 1.0f) {
      fail(ErrorCode::kUnsupported, "scale rule ", mx_scale_rule_name(options.scales.mx_rule),
           " cannot be stored in compressed-tensors; take ct_even, ocp_floor, ceil or mse_pow2, or "
           "measure it with --emulate");
    }
  }
}

std::string settings_text(const QuantizeOptions& options) {
  return str("format=", weight_format_name(options.format),
             " method=", quantize_method_name(options.method),
             " activations=", activation_format_name(options.activations),
             " hadamard=", joined(options.hadamard), " damping=", joined(options.damping),
             " order=", options.order == ColumnOrder::kActivation ? "activation" : "natural",
             " scales=", scale_search_name(options.scales.search),
             " mx_rule=", mx_scale_rule_name(options.scales.mx_rule), " norm=", options.scales.norm,
             " alternate_global=", options.scales.alternate_global ? 1 : 0,
             " column_weights=", column_weights_name(options.column_weights),
             " refinements=", options.refinements, " sweeps=", options.sweeps,
             " smooth_alpha=", options.smooth_alpha, " awq_grid=", options.awq_grid,
             " sequential=", options.sequential ? 1 : 0,
             " min_expert_tokens=", options.min_expert_tokens, " samples=", options.samples,
             " seq_len=", options.seq_len, " seed=", options.seed);
}

}  // namespace lathe
