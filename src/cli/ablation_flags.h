// Flags of `quantize` for what the methods' recommended settings leave out: single ingredients of
// MR-GPTQ and of its baselines, to reproduce a paper's table or to see what one of them is worth.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "compress/quantize_options.h"

namespace lathe {

struct AblationFlags {  // empty: what is recommended
  std::optional<std::string> column_order;
  std::vector<double> damping;
  std::optional<std::string> scale_search;
  std::optional<double> error_norm;
  std::optional<std::string> column_weights;
  std::optional<int> refinements;
  std::optional<int> sweeps;
  std::optional<int64_t> min_expert_tokens;
  std::optional<double> smooth_alpha;
  std::optional<int> awq_grid;
  bool sequential = false;
};
void add_ablation_flags(CLI::App& command, AblationFlags& flags);

// Into `options`, which have their method. Throws kInvalidArgument for a flag that the method (or
// the search for scales) would not look at, and for values that cannot be; check_options() has the
// rest.
void apply_ablations(const AblationFlags& flags, QuantizeOptions& options);

}  // namespace lathe
