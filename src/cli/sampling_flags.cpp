#include "cli/sampling_flags.h"

#include <cstdint>
#include <limits>

#include "cli/flags.h"

namespace lathe {

void add_sampling_flags(CLI::App& command, SamplingParams& params) {
  const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
    command.add_option(name, value, help)->capture_default_str()->type_name(type);
  };
  add("--temperature", params.temperature, "Randomness; 0: always the most probable token", "X");
  add("--top-p", params.top_p, "Sample from the most probable tokens that together reach this",
      "X");
  add("--top-k", params.top_k, "Sample from so many tokens; 0: all", "N");
  add("--min-p", params.min_p, "Leave out tokens below this share of the most probable one", "X");
  add("--seed", params.seed, "The same seed gives the same text", "N");
  command.add_flag("--coupled", params.coupled,
                   "Draw by noise of seed, position and token: other tokens of the same "
                   "distribution, and the same ones with and without --draft");
  add("--max-tokens", params.max_tokens, "Stop after so many tokens; -1: when the context is full",
      "N");
  command
      .add_option("--stop", params.stop,
                  "Stop before this text (may be given several times, once per text)")
      ->type_name("TEXT")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
}

void check_sampling_flags(const SamplingParams& params) {
  name_flags([&] { validate(params, std::numeric_limits<int64_t>::max()); });
}

}  // namespace lathe
