// Flags that say how tokens are chosen.
#pragma once
#include <CLI/CLI.hpp>

#include "engine/sampling_params.h"

namespace lathe {

// --temperature --top-p --top-k --min-p --seed --max-tokens --stop, with the defaults that `params`
// comes with.
void add_sampling_flags(CLI::App& command, SamplingParams& params);
// Throws kInvalidArgument, naming the flag: before a model is loaded for nothing.
void check_sampling_flags(const SamplingParams& params);

}  // namespace lathe
