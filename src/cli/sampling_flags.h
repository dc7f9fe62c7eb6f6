// Flags that say how tokens are chosen.
#pragma once
#include <CLI/CLI.hpp>

#include "engine/sampling_params.h"

namespace lathe {

// --temperature --top-p --top-k --min-p --seed --max-tokens --stop, with the defaults that `params`
// comes with. Ranges are checked by validate(), when the vocabulary is known.
void add_sampling_flags(CLI::App& command, SamplingParams& params);

}  // namespace lathe
