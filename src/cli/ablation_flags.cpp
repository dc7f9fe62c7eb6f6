#include "cli/ablation_flags.h"

#include "base/error.h"

namespace lathe {
namespace {

ColumnOrder column_order_from_name(const std::string& name) {
  if (name == "activation") return ColumnOrder::kActivation;
  if (name == "natural") return ColumnOrder::kNatural;
  fail(ErrorCode::kInvalidArgument, "--column-order ", name,
       ": unknown; choose activation or natural");
}

}  // namespace

void add_ablation_flags(CLI::App& command, AblationFlags& flags) {
  const auto add = [&](const char* name, auto& value, const char* type, const char* help) {
    command.add_option(name, value, help)->type_name(type)->group("Ablations");
  };
  add("--column-order", flags.column_order, "NAME",
      "GPTQ: columns by descending activation (mr-gptq) or in natural order (gptq)");
  add("--damping", flags.damping, "X...",
      "GPTQ: share of the Hessian's mean diagonal added to it (0.01); several: the best by "
      "held-out error, for each group of layers");
  command
      .add_flag(
          "--sequential", flags.sequential,
          "GPTQ: calibrate each part of a layer behind the quantized parts in front of it, in four "
          "passes")
      ->group("Ablations");
  add("--sweeps", flags.sweeps, "N", "GPTQ: sweeps of coordinate descent behind it, at most (0)");
  add("--refinements", flags.refinements, "N",
      "GPTQ: times that it is run again with scales searched for what it rounded (0); goes with "
      "the exhaustive search");
  add("--column-weights", flags.column_weights, "NAME",
      "GPTQ: what a column's error counts in the search for scales: none, diagonal or pivot "
      "(none)");
  add("--min-expert-tokens", flags.min_expert_tokens, "N",
      "GPTQ: experts that fewer calibration tokens reached are rounded to nearest (256)");
  add("--scale-search", flags.scale_search, "NAME",
      "Group scales: absmax (rtn, gptq, smoothquant, awq, quarot), paper_grid (the MSE grid of "
      "MR-GPTQ's authors) or exhaustive (mr-gptq)");
  add("--error-norm", flags.error_norm, "P",
      "The exhaustive search minimises the sum of |error|^P, 1 to 8 (2)");
  add("--smooth-alpha", flags.smooth_alpha, "X",
      "SmoothQuant: share of the difficulty that moves to the weights, 0 to 1 (0.6)");
  add("--awq-grid", flags.awq_grid, "N", "AWQ: exponents tried for the factors (20)");
}

void apply_ablations(const AblationFlags& flags, QuantizeOptions& options) {
  const auto check = [&](bool given, bool fits, const char* flag, const char* with) {
    if (given && !fits) {
      fail(ErrorCode::kInvalidArgument, flag, " goes with ", with, ", not with --method ",
           quantize_method_name(options.method), " --scale-search ",
           scale_search_name(options.scales.search));
    }
  };
  const auto at_least_0 = [](auto value, const char* flag) {
    if (value < 0) fail(ErrorCode::kInvalidArgument, flag, " ", value, ": at least 0");
    return value;
  };
  if (flags.scale_search) options.scales.search = scale_search_from_name(*flags.scale_search);
  const bool gptq = options.uses_gptq();
  const bool exhaustive = options.scales.search == ScaleSearch::kExhaustive;
  const char* gptqs = "--method gptq and mr-gptq";
  check(flags.column_order.has_value(), gptq, "--column-order", gptqs);
  check(!flags.damping.empty(), gptq, "--damping", gptqs);
  check(flags.sequential, gptq, "--sequential", gptqs);
  check(flags.sweeps.has_value(), gptq, "--sweeps", gptqs);
  check(flags.column_weights.has_value(), gptq, "--column-weights", gptqs);
  check(flags.min_expert_tokens.has_value(), gptq, "--min-expert-tokens", gptqs);
  check(flags.refinements.has_value(), gptq && exhaustive, "--refinements",
        "--method gptq and mr-gptq and --scale-search exhaustive");
  check(flags.error_norm.has_value(), exhaustive, "--error-norm", "--scale-search exhaustive");
  check(flags.smooth_alpha.has_value(), options.method == QuantizeMethod::kSmoothQuant,
        "--smooth-alpha", "--method smoothquant");
  check(flags.awq_grid.has_value(), options.method == QuantizeMethod::kAwq, "--awq-grid",
        "--method awq");
  if (flags.column_order) options.order = column_order_from_name(*flags.column_order);
  if (!flags.damping.empty()) options.damping = flags.damping;
  if (flags.column_weights)
    options.column_weights = column_weights_from_name(*flags.column_weights);
  if (flags.sweeps) options.sweeps = at_least_0(*flags.sweeps, "--sweeps");
  if (flags.refinements) options.refinements = at_least_0(*flags.refinements, "--refinements");
  if (flags.min_expert_tokens) {
    options.min_expert_tokens = at_least_0(*flags.min_expert_tokens, "--min-expert-tokens");
  }
  if (flags.error_norm) options.scales.norm = *flags.error_norm;
  if (flags.smooth_alpha) options.smooth_alpha = *flags.smooth_alpha;
  if (flags.awq_grid) options.awq_grid = *flags.awq_grid;
  options.sequential = flags.sequential;
}

}  // namespace lathe
